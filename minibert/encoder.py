"""SentenceEncoder: text in, vectors out."""

import contextlib
import copy
import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, Unpack, overload

import numpy as np

from minibert import instead, quantization, similarity
from minibert.adapters import LangChainEmbeddings, ScikitLearnTransformer
from minibert.arrays import array_namespace
from minibert.embedding import OutputValue, Request, Truncation, embed
from minibert.engine.devices import open_engine
from minibert.errors import DeviceError, TruncationWarning, warn_caller
from minibert.files import hub
from minibert.inputs import as_texts, at_least_one, checked, iterate, refuse_torch_only
from minibert.pipeline import Pipeline
from minibert.repo import DEFAULT_PROMPTS, ModelRepo
from minibert.settings import Setting, Settings, chosen
from minibert.typing import Array, DType, EncodeOptions, Float, Int, Num, OnTruncate, PathLike, Precision

__all__ = ["SentenceEncoder", "Truncation"]

logger = logging.getLogger("minibert")


class SentenceEncoder(LangChainEmbeddings, ScikitLearnTransformer):
    """A sentence-transformers model, with its methods and their meanings, computed without PyTorch.

    Once loaded, only its settings can change, by assignment or by :meth:`set_params`. A new value is checked at once;
    a value that is refused changes nothing. ``encode`` can be called from many threads: each call uses the settings
    that it finds when it begins.

    Attributes:
        prompts: Prompt texts by name.
        default_prompt_name: The prompt that ``encode`` uses when it is given none, or None.
        similarity_fn_name: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``.
        truncate_dim: To how many dimensions vectors are cut, or None.
        on_truncate: What happens when texts are longer than ``max_seq_length``: ``"warn"`` gives one
            :class:`~minibert.errors.TruncationWarning` a call, ``"ignore"`` nothing, ``"error"`` a
            :class:`~minibert.errors.TruncationError` that names the first such text, before anything is computed.
        num_threads: On how many threads ``encode`` computes.
        max_batch_tokens: How many tokens each of them computes at a time, but for a longer text. Memory grows with
            it; the results do not depend on it.
        max_seq_length: The most tokens of a text, special tokens included; what is longer is cut.
        include_prompt: Whether the tokens of a prompt are pooled together with the text's own.
        truncation: What the last call of ``encode`` cut off, whatever ``on_truncate`` says.

    Example:
        >>> encoder = SentenceEncoder("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> encoder.encode(["A sentence.", "Another one."]).shape  # doctest: +SKIP
        (2, 384)
    """

    prompts = Setting[dict[str, str]]()
    default_prompt_name = Setting[str | None]()
    similarity_fn_name = Setting[str]()
    truncate_dim = Setting[int | None]()
    on_truncate = Setting[OnTruncate]()
    num_threads = Setting[int]()
    max_batch_tokens = Setting[int]()
    max_seq_length = Setting[int]()
    include_prompt = Setting[bool]()

    def __init__(
        self,
        model_name_or_path: PathLike | None = None,
        *,
        device: str | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: PathLike | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        similarity_fn_name: str | None = None,
        truncate_dim: int | None = None,
        dtype: DType | str = None,
        on_truncate: OnTruncate = "warn",
        num_threads: int | None = None,
        max_batch_tokens: int | None = None,
        max_seq_length: int | None = None,
        include_prompt: bool | None = None,
        **torch_only: Any,
    ) -> None:
        """Load a model.

        Args:
            model_name_or_path: A local folder, or a hub repo id. None is the built-in model, for English: 128
                dimensions, 512 tokens; it needs no network.
            device: ``"cpu"``, or ``"cuda"`` or ``"cuda:1"`` for an NVIDIA GPU, which needs CuPy. None is the CPU, with
                or without a GPU: so what a program computes does not depend on whether a GPU is there, and nobody has
                float16 without asking.
            prompts: Prompt texts by name; they take precedence over the model's own.
            default_prompt_name: The prompt that ``encode`` uses when it is given none.
            cache_folder: Where hub repos are kept; by default the Hugging Face cache.
            revision: Branch, tag or commit of the hub repo.
            local_files_only: Whether to use only what is in the cache.
            token: Access token for private repos; by default the one that is logged in.
            similarity_fn_name: Similarity function; by default the model's own, or ``"cosine"``.
            truncate_dim: To how many dimensions vectors are cut; by default the model's own choice.
            dtype: On a CPU ``float32`` (default) or ``float64``: the precision of arithmetic and vectors, whatever the
                precision of the file. On a GPU ``float16`` (default), ``"bfloat16"`` or ``float32``: the precision of
                weights and hidden states; sums, and the vectors, are in float32.
            on_truncate: See the class.
            num_threads: How many threads compute; by default one for each core that the process may use. On a GPU, how
                many streams; by default 2.
            max_batch_tokens: See the class; by default up to 1024, and fewer for wider models; on a GPU 16,384.
            max_seq_length: See the class; by default the model's own.
            include_prompt: See the class; by default the model's own.
            **torch_only: Further arguments of sentence-transformers; each raises, and says what to use instead.

        Raises:
            ModelFileError: A file of the repo cannot be used.
            HubError: The repo cannot be fetched.
            DeviceError: The device cannot be used.
            TypeError: A prompt is not a text, or there is no such argument.
            ValueError: An argument has an unknown value, or only PyTorch could honour it.
        """
        arguments = dict(locals())
        del arguments["self"], arguments["torch_only"]
        refuse_torch_only("SentenceEncoder", torch_only, TypeError)
        self._engine = open_engine(device, dtype)
        folder = hub.resolve(
            model_name_or_path,
            revision=revision,
            token=token,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
        )
        self._repo = ModelRepo.open(folder)
        positions = self._repo.config.max_position_embeddings
        own: dict[str, Any] = {
            "prompts": DEFAULT_PROMPTS | self._repo.prompts,
            "default_prompt_name": self._repo.default_prompt_name,
            "similarity_fn_name": self._repo.similarity_fn_name or "cosine",
            "truncate_dim": self._repo.truncate_dim,
            "on_truncate": "warn",
            "num_threads": self._engine.threads,
            "max_batch_tokens": self._engine.batch_tokens(self._repo.config),
            "max_seq_length": positions,
            "include_prompt": True,
        }
        Settings(**chosen(arguments, own), lengths=(0, positions))  # what is wrong is found before the weights are read
        self._pipeline = Pipeline.load(self._repo, self._engine)
        own["max_seq_length"], own["include_prompt"] = self._pipeline.max_seq_length, self._pipeline.include_prompt
        lengths = self._pipeline.tokenizer.special_tokens, positions
        self._arguments, self._own = arguments, own
        self._settings = Settings(**chosen(arguments, own), lengths=lengths)
        self.truncation = Truncation(0, 0, self.max_seq_length)

    @property
    def device(self) -> str:
        """Where vectors are computed: ``"cpu"``, or a GPU's name such as ``"cuda:0"``."""
        return self._engine.name

    @property
    def dtype(self) -> np.dtype[Any]:
        """The precision of vectors."""
        return self._engine.dtype

    @property
    def fingerprint(self) -> str:
        """What tells the model from every other: a hash of its files; see :attr:`minibert.repo.ModelRepo.fingerprint`.

        Encoders with the same one give the same vectors, but for their settings. It is computed when first asked for,
        of the files as they are then.
        """
        return self._repo.fingerprint

    @property
    def tokenizer(self) -> Any:
        """A copy of the ``tokenizers.Tokenizer``: what is changed in it does not change what ``encode`` returns."""
        return self._pipeline.tokenizer.public_copy

    def close(self) -> None:
        """Give back what is kept from call to call: on a GPU, streams and their memory. The weights stay.

        The encoder can be used afterwards; the next call makes what it needs anew.
        """
        self._engine.close()

    def get_embedding_dimension(self) -> int:
        """Return the width of the vectors that ``encode`` returns."""
        return self._pipeline.width(self.truncate_dim)

    def get_sentence_embedding_dimension(self) -> int:
        """Return :meth:`get_embedding_dimension`, whose older name this is."""
        return self.get_embedding_dimension()

    def get_max_seq_length(self) -> int:
        """Return :attr:`max_seq_length`."""
        return self.max_seq_length

    def set_pooling_include_prompt(self, include_prompt: bool) -> None:
        """Set :attr:`include_prompt`, under sentence-transformers' name."""
        self.include_prompt = include_prompt

    @contextlib.contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Cut vectors to ``truncate_dim`` dimensions inside a ``with`` block."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    def tokenize(self, texts: Iterable[str]) -> dict[str, Int[Array, "B S"]]:
        """Return the model's inputs for ``texts``: ``input_ids``, ``token_type_ids`` and ``attention_mask``.

        Texts are cut to :attr:`max_seq_length`, without a prompt, and padded to the longest.
        """
        return self._pipeline.pad(self._pipeline.tokenizer(as_texts(texts)[0], self.max_seq_length).ids)

    @overload
    def encode(
        self,
        inputs: str,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding"] = "sentence_embedding",
        **options: Unpack[EncodeOptions],
    ) -> Num[Array, "D"]: ...
    @overload
    def encode(
        self,
        inputs: Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding"] = "sentence_embedding",
        *,
        convert_to_numpy: Literal[True] = True,
        **options: Unpack[EncodeOptions],
    ) -> Num[Array, "N D"]: ...
    @overload
    def encode(  # type: ignore[overload-overlap]  # a str is an iterable of texts, too, to a type checker
        self,
        inputs: str,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        *,
        output_value: Literal["token_embeddings"],
        **options: Unpack[EncodeOptions],
    ) -> Num[Array, "tokens H"]: ...
    @overload
    def encode(
        self,
        inputs: Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        *,
        output_value: Literal["token_embeddings"],
        **options: Unpack[EncodeOptions],
    ) -> list[Num[Array, "tokens H"]]: ...
    @overload
    def encode(  # type: ignore[overload-overlap]  # a str is an iterable of texts, too, to a type checker
        self,
        inputs: str,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        *,
        output_value: None,
        **options: Unpack[EncodeOptions],
    ) -> dict[str, Any]: ...
    @overload
    def encode(
        self,
        inputs: Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        *,
        output_value: None,
        **options: Unpack[EncodeOptions],
    ) -> list[dict[str, Any]]: ...
    @overload
    def encode(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: OutputValue = "sentence_embedding",
        precision: Precision = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: None = None,
        chunk_size: None = None,
        **other: Any,
    ) -> Any: ...
    def encode(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: OutputValue = "sentence_embedding",
        precision: Precision = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: None = None,
        chunk_size: None = None,
        **other: Any,
    ) -> Any:
        """Return the vectors of one text, ``(D,)``, or of many, ``(N, D)``.

        Args:
            inputs: A text, or an iterable of texts in a definite order (list, tuple, generator, numpy array, pandas
                or Arrow column).
            prompt_name: The name, in :attr:`prompts`, of a text that is put before each input.
            prompt: That text itself; it takes precedence over ``prompt_name``.
            batch_size: The most texts that are computed together; by default, :attr:`max_batch_tokens` alone decides.
                It changes memory and speed, never a result.
            show_progress_bar: Whether to show one; by default only while the logger "minibert" is at INFO or below.
            output_value: ``"sentence_embedding"``; ``"token_embeddings"`` for a list of ``(tokens, H)`` arrays, the
                special tokens' vectors included; None for a dict of everything for each text, nothing of it padded.
            precision: ``"float32"`` leaves the vectors as they were computed; see
                :func:`~minibert.quantization.quantize_embeddings` for the others. Token vectors are quantized too;
                the ranges of ``"int8"`` and ``"uint8"`` are those of all tokens of the call.
            convert_to_numpy: False returns a list of vectors instead of one array; from an encoder on a GPU, one CuPy
                array ``(N, D)`` there, which other libraries can take by DLPack.
            convert_to_tensor: Must be False: vectors are numpy arrays.
            device: None, or the encoder's own.
            normalize_embeddings: Whether to scale the vectors to length 1 (after ``truncate_dim``).
            truncate_dim: To how many dimensions the vectors are cut; by default :attr:`truncate_dim`.
            pool: Must be None: there are no process pools.
            chunk_size: Must be None, likewise.
            **other: ``sentences``, the older name of ``inputs``.

        Returns:
            float32 vectors (float64 from a float64 encoder), or those of ``precision``. No text at all gives
            ``(0, D)``.

        Raises:
            TypeError: An input is not a text; the message names its index and type. Nothing was computed.
            ValueError: An argument has an unknown value, or only PyTorch could honour it.
            TruncationError: A text is too long, and :attr:`on_truncate` is ``"error"``.
            VectorError: A vector has NaN or infinity; the message has the text's index. Only a text of which no token
                is pooled (pooling by ``max``, without the prompt) has the infinite vector that its definition gives.
        """
        if "sentences" in other:
            warn_caller("encode(sentences=) is now called encode(inputs=).", FutureWarning)
            inputs = other.pop("sentences")
        torch_only = {**other, "convert_to_tensor": convert_to_tensor, "pool": pool, "chunk_size": chunk_size}
        refuse_torch_only("encode", torch_only, ValueError)
        if device not in (None, self.device, self.device.removesuffix(":0")):
            raise DeviceError(f"device must be the encoder's own, {self.device!r}, or None; it is {device!r}.")

        # What is asked.
        settings = self._settings
        request = Request(
            settings=settings,
            prompt=settings.prompt(prompt, prompt_name),
            output_value=output_value,
            precision=precision,
            truncate_dim=truncate_dim,
            normalize=normalize_embeddings,
            batch_size=batch_size,
            on_device=not convert_to_numpy and precision == "float32" and output_value == "sentence_embedding",
        )
        texts, single = as_texts(inputs)

        # How the texts are cut into batches, and what computes them: see `embed`.
        outputs, lengths = self._embed(texts, request, show_progress_bar)
        self._report(Truncation(0, 0, settings.max_seq_length).including(lengths), len(texts), settings)

        # What is returned.
        if precision != "float32" and output_value == "token_embeddings":
            outputs = quantization.quantize_tokens(outputs, precision)
        elif precision != "float32":
            outputs = quantization.quantize_embeddings(outputs, precision)
        if single:
            return outputs[0]
        return list(outputs) if array_namespace(outputs) is np and not convert_to_numpy else outputs

    def encode_stream(
        self,
        inputs: Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        chunk_size: int = 4096,
        batch_size: int | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Iterator[Float[Array, "n D"]]:
        """Yield the vectors of the texts in order, ``chunk_size`` at a time: any number, in constant memory.

        They are the very vectors of :meth:`encode`. ``inputs`` is read as far as it is needed. Texts that are too long
        are reported at the end; with :attr:`on_truncate` ``"error"``, before the chunk that they are in.

        Args:
            inputs: An iterable of texts in a definite order.
            prompt_name: As in :meth:`encode`, like all that follow.
            prompt: As there.
            chunk_size: How many vectors to yield at a time. The last array may be shorter.
            batch_size: As there.
            normalize_embeddings: As there.
            truncate_dim: As there.
            progress: Is called again and again with a number of texts that are done, from any thread.

        Raises:
            TypeError: An input is not a text; the message has its index. The chunks before it were yielded.
            ValueError: An argument has an unknown value.
            TruncationError: A text is too long, and :attr:`on_truncate` is ``"error"``.
            VectorError: A vector has NaN or infinity; the message has the text's index.
        """
        items = iterate(inputs)
        chunk_size = at_least_one("chunk_size", chunk_size)
        request = Request(
            settings=self._settings,
            prompt=self._settings.prompt(prompt, prompt_name),
            truncate_dim=truncate_dim,
            normalize=normalize_embeddings,
            batch_size=batch_size,
        )
        return self._stream(items, request, chunk_size, progress)

    def _stream(
        self, inputs: Iterator[str], request: Request, chunk_size: int, progress: Callable[[int], object] | None
    ) -> Iterator[Float[Array, "n D"]]:
        count, truncation = 0, Truncation(0, 0, request.settings.max_seq_length)
        while chunk := list(itertools.islice(inputs, chunk_size)):
            texts = checked(chunk, count)
            vectors, lengths = self._embed(texts, request, False, count, progress)
            count, truncation = count + len(chunk), truncation.including(lengths)
            yield vectors
        self._report(truncation, count, request.settings)

    def _embed(
        self,
        texts: list[str],
        request: Request,
        show_progress_bar: bool | None,
        start: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[Any, Int[Array, "texts"]]:
        """Return what is requested of ``texts``, and how many tokens each has; see :func:`minibert.embedding.embed`."""
        pipeline = self._pipeline.with_prompt_pooled(request.settings.include_prompt)
        with _progress_bar(len(texts), show_progress_bar) as bar:
            return embed(texts, request, pipeline, self._engine, progress or bar, start)

    def encode_query(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: OutputValue = "sentence_embedding",
        precision: Precision = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: None = None,
        chunk_size: None = None,
        **other: Any,
    ) -> Any:
        """Return :meth:`encode` of search queries: with the prompt ``"query"``, unless another one is given.

        All other arguments are those of :meth:`encode`.
        """
        if prompt_name is None and prompt is None:
            prompt_name = self._settings.prompt_name("query")
        return self.encode(
            inputs,
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            output_value=output_value,
            precision=precision,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            device=device,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            pool=pool,
            chunk_size=chunk_size,
            **other,
        )

    def encode_document(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: OutputValue = "sentence_embedding",
        precision: Precision = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: None = None,
        chunk_size: None = None,
        **other: Any,
    ) -> Any:
        """Return :meth:`encode` of the texts that are searched.

        With the first of the prompts ``"document"``, ``"passage"`` and ``"corpus"`` that the model has, unless
        another one is given. As in sentence-transformers, every model has a ``"document"`` prompt, which is empty
        unless its configuration or the constructor says otherwise. All other arguments are those of :meth:`encode`.
        """
        if prompt_name is None and prompt is None:
            prompt_name = self._settings.prompt_name("document")
        return self.encode(
            inputs,
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            output_value=output_value,
            precision=precision,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            device=device,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            pool=pool,
            chunk_size=chunk_size,
            **other,
        )

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Float[Array, "n m"]:
        """Return the similarity, by :attr:`similarity_fn_name`, of every row of one with every row of the other."""
        return similarity.similarity(self.similarity_fn_name, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Float[Array, "n"]:
        """Return the similarity, by :attr:`similarity_fn_name`, of each row of one with the same row of the other."""
        return similarity.similarity_pairwise(self.similarity_fn_name, embeddings1, embeddings2)

    def prompt_for(self, kind: Literal["query", "document"]) -> str:
        """Return what :meth:`encode_query` or :meth:`encode_document` puts before each text; empty for nothing."""
        return self._settings.prompt(None, self._settings.prompt_name(kind))

    def _report(self, truncation: Truncation, texts: int, settings: Settings) -> None:
        """Keep what a call cut off, and warn of it if that is wanted."""
        self.truncation = truncation
        if truncation.count and settings.on_truncate == "warn":
            warn_caller(
                f"{truncation.count} of {texts} texts were cut to max_seq_length = {truncation.limit} tokens; "
                f"the longest has {truncation.longest}.",
                TruncationWarning,
            )

    def __repr__(self) -> str:
        name = self._arguments["model_name_or_path"]
        parts = {
            "device": self.device,
            "dtype": self._engine.precision,
            "max_seq_length": self.max_seq_length,
            **self._settings.different(self._own),
        }
        shown = [
            *([] if name is None else [repr(os.fspath(name))]),
            *(f"{key}={value!r}" for key, value in parts.items()),
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __copy__(self) -> Self:
        """Return an encoder with the same model, which is never written to, and with settings of its own."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__, _settings=self._settings.copied())
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return copy.copy(self)

    def __getstate__(self) -> dict[str, Any]:
        if self.device != "cpu":
            raise TypeError(
                f"an encoder on {self.device} cannot be pickled: its weights are in the GPU's memory. Load the model "
                'in each process, or pickle an encoder with device="cpu".'
            )
        return {**self.__dict__, "_engine": self.dtype.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over model and settings. What depends on the machine is found anew: how to pack, how many threads."""
        self.__dict__.update(state)
        self._engine = open_engine("cpu", state["_engine"])
        rule = self._engine.row_rule(self._pipeline.config)
        self._pipeline = dataclasses.replace(self._pipeline, row_rule=rule)
        if self.num_threads == self._own["num_threads"]:
            self.num_threads = self._engine.threads
        self._own = {**self._own, "num_threads": self._engine.threads}

    if not TYPE_CHECKING:  # a type checker shall know that these are missing

        def __getattr__(self, name: str) -> NoReturn:
            raise instead.missing(type(self).__name__, name, instead.METHODS)

        def __getitem__(self, item: object) -> NoReturn:
            raise TypeError(instead.ITEMS)


@contextlib.contextmanager
def _progress_bar(texts: int, show: bool | None) -> Iterator[Callable[[int], object]]:
    """Give a function to call with a number of texts that are done; it moves a progress bar if one is to be shown."""
    if show is None:
        show = logger.getEffectiveLevel() <= logging.INFO
    if not show:
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=texts, desc="Texts") as bar:
        yield bar.update
