"""SentenceEncoder: text in, vectors out."""

import contextlib
import dataclasses
import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from minibert import quantization, similarity
from minibert.adapters import LangChainEmbeddings, ScikitLearnTransformer
from minibert.arrays import array_namespace
from minibert.embedding import Job, OutputValue, Request, TruncationCount
from minibert.engine.batches import Limits
from minibert.engine.devices import open_engine
from minibert.errors import DeviceError, TruncationWarning
from minibert.files import hub
from minibert.inputs import (
    as_texts,
    checked,
    iterate,
    refuse_torch_only,
    require_choice,
    require_int,
    require_text,
)
from minibert.pipeline import Pipeline
from minibert.repo import DEFAULT_PROMPTS, ModelRepo
from minibert.typing import Array, DType, Float, Int, OnTruncate, PathLike, Precision

__all__ = ["SentenceEncoder", "Truncation"]

logger = logging.getLogger("minibert")

#: The prompts for each kind of text, by the names that models give them; of several, the first is used.
_PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}


@dataclasses.dataclass(frozen=True)
class Truncation:
    """What a call of ``encode`` cut off.

    Attributes:
        count: How many texts were longer than the limit.
        longest: Tokens of the longest text before the cut, special tokens included.
        limit: ``max_seq_length`` at the time.
    """

    count: int
    longest: int
    limit: int


class SentenceEncoder(LangChainEmbeddings, ScikitLearnTransformer):
    """A sentence-transformers model, with its methods and their meanings, computed without PyTorch.

    Once loaded it is read-only, but for the settings below: ``encode`` can be called from many threads.

    Attributes:
        prompts: Prompt texts by name.
        default_prompt_name: The prompt that ``encode`` uses when it is given none, or None.
        similarity_fn_name: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``.
        truncate_dim: To how many dimensions vectors are cut, or None.
        on_truncate: What happens when texts are longer than :attr:`max_seq_length`: ``"warn"`` gives one
            :class:`~minibert.errors.TruncationWarning` a call, ``"ignore"`` nothing, ``"error"`` a
            :class:`~minibert.errors.TruncationError` that names the first such text, before anything is computed.
        num_threads: On how many threads ``encode`` computes.
        max_batch_tokens: How many tokens each of them computes at a time, but for a longer text. Memory grows with
            it; the results do not depend on it.
        truncation: What the last call of ``encode`` cut off, whatever ``on_truncate`` says.

    Example:
        >>> encoder = SentenceEncoder("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> encoder.encode(["A sentence.", "Another one."]).shape  # doctest: +SKIP
        (2, 384)
    """

    _SETTINGS: ClassVar[frozenset[str]] = frozenset(
        {
            "prompts",
            "default_prompt_name",
            "similarity_fn_name",
            "truncate_dim",
            "on_truncate",
            "num_threads",
            "max_batch_tokens",
        }
    )

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
            **torch_only: Further arguments of sentence-transformers; each raises, and says what to use instead.

        Raises:
            ModelFileError: A file of the repo cannot be used.
            HubError: The repo cannot be fetched.
            DeviceError: The device cannot be used.
            ValueError: An argument has an unknown value, or only PyTorch could honour it.
        """
        refuse_torch_only("SentenceEncoder", torch_only, TypeError)
        arguments = {
            "model_name_or_path": model_name_or_path,
            "device": device,
            "prompts": prompts,
            "default_prompt_name": default_prompt_name,
            "cache_folder": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
            "token": token,
            "similarity_fn_name": similarity_fn_name,
            "truncate_dim": truncate_dim,
            "dtype": dtype,
            "on_truncate": on_truncate,
            "num_threads": num_threads,
            "max_batch_tokens": max_batch_tokens,
        }
        self._engine = open_engine(device, dtype)
        folder = hub.resolve(
            model_name_or_path,
            revision=revision,
            token=token,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
        )
        self._repo = ModelRepo.open(folder)
        self._apply_settings(arguments)
        self._pipeline = Pipeline.load(self._repo, self._engine)
        self._max_seq_length = self._pipeline.max_seq_length
        self.truncation = Truncation(0, 0, self._max_seq_length)

    def _apply_settings(self, arguments: Mapping[str, Any]) -> None:
        """Set what can change after loading, from the constructor's arguments and the repo's own settings."""
        require_choice("on_truncate", arguments["on_truncate"], ("warn", "ignore", "error"))
        given = dict(arguments["prompts"] or {})
        prompts = {**DEFAULT_PROMPTS, **self._repo.prompts, **given}
        default_name = arguments["default_prompt_name"] or self._repo.default_prompt_name
        if default_name is not None and default_name not in prompts:
            raise ValueError(f"default_prompt_name must be one of {', '.join(prompts)}; it is {default_name!r}.")
        truncate_dim = self._repo.truncate_dim if arguments["truncate_dim"] is None else arguments["truncate_dim"]
        truncate_dim = None if truncate_dim is None else require_int("truncate_dim", truncate_dim)
        self.similarity_fn_name = similarity.check_name(
            arguments["similarity_fn_name"] or self._repo.similarity_fn_name or "cosine"
        )
        self.prompts = prompts
        self.default_prompt_name = default_name
        self.truncate_dim = truncate_dim
        self.on_truncate: OnTruncate = arguments["on_truncate"]
        self.num_threads = _at_least_one("num_threads", _default(arguments["num_threads"], self._engine.threads))
        tokens = self._engine.batch_tokens(self._repo.config)
        self.max_batch_tokens = _at_least_one("max_batch_tokens", _default(arguments["max_batch_tokens"], tokens))
        self._arguments = dict(arguments)

    @property
    def max_seq_length(self) -> int:
        """The most tokens of a text, special tokens included; what is longer is cut."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        least, most = self._pipeline.tokenizer.special_tokens, self._pipeline.config.max_position_embeddings
        if type(value) is not int or not least <= value <= most:
            raise ValueError(
                f"max_seq_length must be from {least}, the special tokens, to max_position_embeddings = {most}; "
                f"got {value!r}."
            )
        self._max_seq_length = value

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
        """Set whether the tokens of a prompt are pooled together with the text's own."""
        self._pipeline = self._pipeline.with_prompt_pooled(include_prompt)

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
                :func:`~minibert.quantization.quantize_embeddings` for the others.
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
        """
        if "sentences" in other:
            warnings.warn("encode(sentences=) is now called encode(inputs=).", FutureWarning, stacklevel=2)
            inputs = other.pop("sentences")
        torch_only = {**other, "convert_to_tensor": convert_to_tensor, "pool": pool, "chunk_size": chunk_size}
        refuse_torch_only("encode", torch_only, ValueError)
        if device not in (None, self.device, self.device.removesuffix(":0")):
            raise DeviceError(f"device must be the encoder's own, {self.device!r}, or None; it is {device!r}.")
        batch_size = None if batch_size is None else _at_least_one("batch_size", batch_size)
        require_choice("output_value", output_value, ("sentence_embedding", "token_embeddings", None))
        require_choice("precision", precision, quantization.PRECISIONS)
        truncate_dim = self.truncate_dim if truncate_dim is None else require_int("truncate_dim", truncate_dim)
        prompt = self._resolve_prompt(prompt, prompt_name)
        texts, single = as_texts(inputs)
        on_device = not convert_to_numpy and precision == "float32"
        request = Request(prompt or "", output_value, truncate_dim, normalize_embeddings, on_device)
        truncation = TruncationCount(self.max_seq_length)
        outputs = self._embed(texts, request, truncation, batch_size, show_progress_bar)
        self._report(truncation)
        if output_value != "sentence_embedding":
            return outputs[0] if single else outputs
        vectors: Array = outputs
        if precision != "float32":
            vectors = quantization.quantize_embeddings(vectors, precision)
        many = list(vectors) if array_namespace(vectors) is np and not convert_to_numpy else vectors
        return vectors[0] if single else many

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
        """
        items = iterate(inputs)
        batch_size = None if batch_size is None else _at_least_one("batch_size", batch_size)
        chunk_size = _at_least_one("chunk_size", chunk_size)
        truncate_dim = self.truncate_dim if truncate_dim is None else require_int("truncate_dim", truncate_dim)
        prompt = self._resolve_prompt(prompt, prompt_name)
        request = Request(prompt or "", "sentence_embedding", truncate_dim, normalize_embeddings)
        return self._stream(items, request, chunk_size, batch_size, progress)

    def _stream(
        self,
        inputs: Iterator[str],
        request: Request,
        chunk_size: int,
        batch_size: int | None,
        progress: Callable[[int], object] | None,
    ) -> Iterator[Float[Array, "n D"]]:
        truncation = TruncationCount(self.max_seq_length)
        while chunk := list(itertools.islice(inputs, chunk_size)):
            texts = checked(chunk, truncation.texts)
            yield self._embed(texts, request, truncation, batch_size, False, progress)
        self._report(truncation)

    def _embed(
        self,
        texts: list[str],
        request: Request,
        truncation: TruncationCount,
        batch_size: int | None,
        show_progress_bar: bool | None,
        progress: Callable[[int], object] | None = None,
    ) -> Any:
        """Return what is requested of ``texts``, computed with the settings as they are now."""
        limits = Limits(
            _at_least_one("max_batch_tokens", self.max_batch_tokens),
            batch_size,
            _at_least_one("num_threads", self.num_threads),
            self._engine.efficient_tokens,
        )
        refuse_truncation = self.on_truncate == "error"
        with _progress_bar(len(texts), show_progress_bar) as bar:
            done = bar if progress is None else progress
            job = Job(self._pipeline, self._engine, request, limits, truncation, refuse_truncation, done)
            return job.run(texts)

    def encode_query(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *args: Any,
        **options: Any,
    ) -> Any:
        """Return :meth:`encode` of search queries: with the prompt ``"query"``, unless another one is given."""
        if prompt_name is None and prompt is None:
            prompt_name = self._prompt_name("query")
        return self.encode(inputs, prompt_name, prompt, *args, **options)

    def encode_document(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *args: Any,
        **options: Any,
    ) -> Any:
        """Return :meth:`encode` of the texts that are searched.

        With the first of the prompts ``"document"``, ``"passage"`` and ``"corpus"`` that the model has, unless
        another one is given. As in sentence-transformers, every model has a ``"document"`` prompt, which is empty
        unless its configuration or the constructor says otherwise.
        """
        if prompt_name is None and prompt is None:
            prompt_name = self._prompt_name("document")
        return self.encode(inputs, prompt_name, prompt, *args, **options)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Float[Array, "n m"]:
        """Return the similarity, by :attr:`similarity_fn_name`, of every row of one with every row of the other."""
        return similarity.similarity(self.similarity_fn_name, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Float[Array, "n"]:
        """Return the similarity, by :attr:`similarity_fn_name`, of each row of one with the same row of the other."""
        return similarity.similarity_pairwise(self.similarity_fn_name, embeddings1, embeddings2)

    def prompt_for(self, kind: Literal["query", "document"]) -> str:
        """Return what :meth:`encode_query` or :meth:`encode_document` puts before each text; empty for nothing."""
        return self._resolve_prompt(None, self._prompt_name(kind)) or ""

    def _prompt_name(self, kind: str) -> str | None:
        return next((name for name in _PROMPT_NAMES[kind] if name in self.prompts), None)

    def _resolve_prompt(self, prompt: str | None, prompt_name: str | None) -> str | None:
        """Return the text that goes before each input: given, named, or by default."""
        if prompt is not None:
            require_text("prompt", prompt)
            if prompt_name is not None:
                logger.warning("encode was given both prompt and prompt_name: prompt is used")
            return prompt
        if prompt_name is not None:
            if prompt_name not in self.prompts:
                raise ValueError(f"prompt_name must be one of {', '.join(self.prompts)}; it is {prompt_name!r}.")
            return self.prompts[prompt_name]
        return None if self.default_prompt_name is None else self.prompts.get(self.default_prompt_name)

    def _report(self, truncation: TruncationCount) -> None:
        """Keep what a call cut off, and warn of it if that is wanted."""
        self.truncation = Truncation(truncation.cut, truncation.longest, truncation.limit)
        if truncation.cut and self.on_truncate == "warn":
            warnings.warn(
                f"{truncation.cut} of {truncation.texts} texts were cut to max_seq_length = {truncation.limit} tokens; "
                f"the longest has {truncation.longest}.",
                TruncationWarning,
                stacklevel=3,
            )


def _default(value: Any, default: Any) -> Any:
    return default if value is None else value


def _at_least_one(name: str, value: Any) -> int:
    """Return ``value`` as an int, or raise ValueError."""
    number = require_int(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1; it is {number}.")
    return number


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
