"""SentenceEncoder: text in, vectors out."""

import contextlib
import copy
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, Unpack, overload

import numpy as np

from minibert import instead, quantization, similarity
from minibert.adapters import LangChainEmbeddings, ScikitLearnTransformer, known_to_langchain
from minibert.arrays import array_namespace
from minibert.embedding import OutputValue, Request, Truncation, embed, embed_ids, refuse_truncation
from minibert.engine.devices import open_engine
from minibert.errors import DeviceError, TruncationWarning, warn_caller
from minibert.files import hub
from minibert.inputs import (
    as_id_arrays,
    as_texts,
    at_least_one,
    checked,
    iterate,
    refuse_torch_only,
    require_int,
    require_text,
)
from minibert.pipeline import Pipeline
from minibert.repo import DEFAULT_PROMPTS, ModelRepo
from minibert.settings import Setting, Settings, chosen
from minibert.typing import Array, DType, EncodeOptions, Float, Int, Num, OnTruncate, PathLike, Precision

if TYPE_CHECKING:
    from minibert.study import Edit, Similarity, Trace
    from minibert.study.reference import Reference

__all__ = ["SentenceEncoder", "Truncation"]

logger = logging.getLogger("minibert")

#: Threads that trace for the first time wait for one of them to load the reference.
_LOADING = threading.Lock()


class SentenceEncoder(LangChainEmbeddings, ScikitLearnTransformer):
    """A sentence-transformers model that runs without PyTorch. Its methods have the same names and meanings.

    After loading, only the settings can change, by assignment or with :meth:`set_params`. A new value is checked at
    once. A refused value changes nothing. Many threads can call ``encode``. Each call uses the settings at its start.

    Attributes:
        prompts: Prompt texts by name.
        default_prompt_name: Name of the prompt that ``encode`` uses by default, or None.
        similarity_fn_name: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``.
        truncate_dim: Number of dimensions that vectors are truncated to, or None.
        on_truncate: What happens if texts are longer than ``max_seq_length``: ``"warn"`` gives one
            :class:`~minibert.errors.TruncationWarning` per call. ``"ignore"`` does nothing. ``"error"`` raises a
            :class:`~minibert.errors.TruncationError` before any computation; the error names the first such text.
        num_threads: Number of threads of ``encode``.
        max_batch_tokens: Number of tokens that each thread computes at a time. A longer text is computed alone. Memory
            grows with this number; the results do not depend on it.
        max_seq_length: Maximum number of tokens of a text, with special tokens. Longer texts are truncated.
        include_prompt: Whether pooling includes the tokens of the prompt.
        truncation: What the last call of ``encode`` truncated, for every value of ``on_truncate``.

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
        kernels: str | None = None,
        on_truncate: OnTruncate = "warn",
        num_threads: int | None = None,
        max_batch_tokens: int | None = None,
        max_seq_length: int | None = None,
        include_prompt: bool | None = None,
        **torch_only: Any,
    ) -> None:
        """Load a model.

        Args:
            model_name_or_path: A local folder, or a hub repo id. None is the built-in English model. It has 128
                dimensions and 512 tokens, and needs no network.
            device: ``"cpu"``, or ``"cuda"`` or ``"cuda:1"`` for an NVIDIA GPU, which needs CuPy. None is always the
                CPU. So the results of a program do not depend on the presence of a GPU, and float16 is never a
                surprise.
            prompts: Prompt texts by name. They take precedence over the prompts of the model.
            default_prompt_name: Name of the prompt that ``encode`` uses by default.
            cache_folder: Folder for hub repos. By default, it is the Hugging Face cache.
            revision: Branch, tag or commit of the hub repo.
            local_files_only: Whether to use only files in the cache.
            token: Access token for private repos. By default, it is the token of the Hugging Face login.
            similarity_fn_name: Similarity function. By default, the model defines it, or it is ``"cosine"``.
            truncate_dim: Number of dimensions that vectors are truncated to. By default, the model defines it.
            dtype: On a CPU, ``float32`` (default) or ``float64``. This is the precision of arithmetic and vectors, for
                any precision of the file. On a GPU, ``float16`` (default), ``"bfloat16"`` or ``float32``. This is the
                precision of weights and hidden states. Sums and vectors are in float32.
            kernels: What computes on a CPU: ``"numpy"``, or native kernels for an instruction set: ``"avx512"``,
                ``"avx2"`` or ``"neon"``. All native kernels give the same bits. By default, it is the value of the
                environment variable ``MINIBERT_KERNELS``, or else the best that this machine has. float64 is always
                computed by numpy.
            on_truncate: See the class.
            num_threads: Number of threads. By default, it is the number of cores that the process may use, or the
                environment variable ``OMP_NUM_THREADS`` if that is less. On a GPU, it is the number of streams, by
                default 2.
            max_batch_tokens: See the class. By default, it is 256 to 1536 with native kernels, up to 1024 with
                numpy (less for wider models), and 16,384 on a GPU.
            max_seq_length: See the class. By default, the model defines it.
            include_prompt: See the class. By default, the model defines it.
            **torch_only: Other arguments of sentence-transformers. Each one raises an error that says what to use
                instead.

        Raises:
            ModelFileError: A file of the repo cannot be used.
            HubError: The repo cannot be fetched.
            DeviceError: The device or the kernels cannot be used.
            TypeError: A prompt is not a text, or there is no such argument.
            ValueError: An argument has an unknown value, or it needs PyTorch.
        """
        arguments = dict(locals())
        del arguments["self"], arguments["torch_only"]
        refuse_torch_only("SentenceEncoder", torch_only, TypeError)
        known_to_langchain(SentenceEncoder)
        self._engine = open_engine(device, dtype, kernels)
        folder = hub.resolve(
            model_name_or_path,
            revision=revision,
            token=token,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
        )
        self._repo = ModelRepo.open(folder)
        positions = self._repo.config.max_tokens
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
        Settings(**chosen(arguments, own), lengths=(0, positions))  # find wrong settings before reading the weights
        self._pipeline = Pipeline.load(self._repo, self._engine)
        own["max_seq_length"], own["include_prompt"] = self._pipeline.max_seq_length, self._pipeline.include_prompt
        lengths = self._pipeline.tokenizer.special_tokens, positions
        self._arguments, self._own = arguments, own
        self._study: list[Reference] = []  # its copies have the same list
        self._settings = Settings(**chosen(arguments, own), lengths=lengths)
        self.truncation = Truncation(0, 0, self.max_seq_length)

    @property
    def device(self) -> str:
        """The device that computes: ``"cpu"``, or the name of a GPU, such as ``"cuda:0"``."""
        return self._engine.name

    @property
    def dtype(self) -> np.dtype[Any]:
        """The precision of vectors."""
        return self._engine.dtype

    @property
    def kernels(self) -> str:
        """What computes: ``"numpy"``, the instruction set of native kernels, such as ``"avx2"``, or ``"cuda"``."""
        return self._engine.kernels

    @property
    def fingerprint(self) -> str:
        """A hash of the model's files that identifies the model; see :attr:`minibert.repo.ModelRepo.fingerprint`.

        Encoders with the same fingerprint and the same settings give the same vectors. The first access computes the
        hash from the files at that time.
        """
        return self._repo.fingerprint

    @property
    def tokenizer(self) -> Any:
        """A copy of the ``tokenizers.Tokenizer``. Changes to the copy do not change the results of ``encode``."""
        return self._pipeline.tokenizer.public_copy

    def close(self) -> None:
        """Free what the encoder keeps between calls. The weights stay.

        With native kernels, this is memory of each thread, at most 64 MB. On a GPU, it is streams and their memory.

        The encoder is still usable. The next call creates what it needs again.
        """
        self._engine.close()

    def get_embedding_dimension(self) -> int:
        """Return the number of dimensions of the vectors of ``encode``."""
        return self._pipeline.width(self.truncate_dim)

    def get_sentence_embedding_dimension(self) -> int:
        """Return :meth:`get_embedding_dimension`. This is its older name."""
        return self.get_embedding_dimension()

    def get_max_seq_length(self) -> int:
        """Return :attr:`max_seq_length`."""
        return self.max_seq_length

    def set_pooling_include_prompt(self, include_prompt: bool) -> None:
        """Set :attr:`include_prompt`. sentence-transformers has this method name."""
        self.include_prompt = include_prompt

    @contextlib.contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Truncate vectors to ``truncate_dim`` dimensions inside a ``with`` block."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    def tokenize(self, texts: Iterable[str]) -> dict[str, Int[Array, "B S"]]:
        """Return the model's inputs for ``texts``: ``input_ids``, ``token_type_ids`` and ``attention_mask``.

        Texts get no prompt. They are truncated to :attr:`max_seq_length` and padded to the length of the longest text.
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
        """Return the vector of one text, ``(D,)``, or the vectors of many texts, ``(N, D)``.

        Args:
            inputs: A text, or an ordered iterable of texts (list, tuple, generator, numpy array, pandas or Arrow
                column).
            prompt_name: A name in :attr:`prompts`. Its text is put before each input.
            prompt: The prompt text itself. It takes precedence over ``prompt_name``.
            batch_size: Maximum number of texts that are computed together. By default, only :attr:`max_batch_tokens`
                limits it. It affects memory and speed, but not the results.
            show_progress_bar: Whether to show a progress bar. By default, it is shown if the level of the logger
                "minibert" is INFO or below.
            output_value: ``"sentence_embedding"``; ``"token_embeddings"`` for a list of ``(tokens, H)`` arrays, with
                special tokens; None for a dict of all features for each text, without padding.
            precision: ``"float32"`` does not change the vectors. For other values, see
                :func:`~minibert.quantization.quantize_embeddings`. Token vectors are quantized too. The ranges of
                ``"int8"`` and ``"uint8"`` come from all tokens of the call.
            convert_to_numpy: If False, return a list of vectors instead of one array. On a GPU, return one CuPy array
                ``(N, D)`` there; other libraries can take it with DLPack.
            convert_to_tensor: Must be False: vectors are numpy arrays.
            device: None, or the device of the encoder.
            normalize_embeddings: Whether to scale the vectors to length 1 (after ``truncate_dim``).
            truncate_dim: Number of dimensions that vectors are truncated to. The default is :attr:`truncate_dim`.
            pool: Must be None: there are no process pools.
            chunk_size: Must be None, for the same reason.
            **other: ``sentences``, the older name of ``inputs``.

        Returns:
            Vectors in float32 (in float64 from a float64 encoder) or in ``precision``. The shape is ``(0, D)`` if there
            are no texts.

        Raises:
            TypeError: An input is not a text; the message names its index and type. Nothing was computed.
            ValueError: An argument has an unknown value, or it needs PyTorch.
            TruncationError: A text is too long, and :attr:`on_truncate` is ``"error"``.
            VectorError: A vector has NaN or infinity; the message has the index of the text. There is one exception:
                ``max`` pooling without the prompt gives an infinite vector if the text has no token to pool.
        """
        if "sentences" in other:
            warn_caller("encode(sentences=) is now called encode(inputs=).", FutureWarning)
            inputs = other.pop("sentences")
        torch_only = {**other, "convert_to_tensor": convert_to_tensor, "pool": pool, "chunk_size": chunk_size}
        refuse_torch_only("encode", torch_only, ValueError)
        if device not in (None, self.device, self.device.removesuffix(":0")):
            raise DeviceError(f"device must be the encoder's own, {self.device!r}, or None; it is {device!r}.")

        # What the caller requests.
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

        # `embed` makes the batches and computes them.
        outputs, lengths = self._embed(texts, request, show_progress_bar)
        self._report(Truncation(0, 0, settings.max_seq_length).including(lengths), len(texts), settings)

        # What the caller gets.
        if precision != "float32" and output_value == "token_embeddings":
            outputs = quantization.quantize_tokens(outputs, precision)
        elif precision != "float32":
            outputs = quantization.quantize_embeddings(outputs, precision)
        if single:
            return outputs[0]
        return list(outputs) if array_namespace(outputs) is np and not convert_to_numpy else outputs

    def encode_ids(
        self,
        ids: Any,
        *,
        prompt_length: int = 0,
        batch_size: int | None = None,
        output_value: OutputValue = "sentence_embedding",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """Return :meth:`encode` of texts that another program has tokenized.

        The vectors are bit for bit those of the texts, if the ids are those of the model's tokenizer.

        Args:
            ids: The token ids of a text, or an iterable of the token ids of many: with special tokens, such as [CLS]
                and [SEP], and with the prompt if there is one, without padding.
            prompt_length: Number of tokens of the prompt at the start of each text, with the special tokens before it.
                It has an effect only if pooling leaves the prompt out (:attr:`include_prompt`).
            batch_size: As in :meth:`encode`.
            output_value: As in :meth:`encode`.
            normalize_embeddings: As in :meth:`encode`.
            truncate_dim: As in :meth:`encode`.

        Raises:
            TypeError: The ids are not whole numbers; the message has the index of the text.
            ValueError: An id is not in the vocabulary, a text ends with padding, or an argument has an unknown value.
            TruncationError: A text has more than :attr:`max_seq_length` tokens, for every value of
                :attr:`on_truncate`: only the tokenizer knows where a text may be cut.
            VectorError: A vector has NaN or infinity; the message has the index of the text.

        Example:
            >>> encoder = SentenceEncoder()
            >>> ids = encoder.tokenizer.encode("A sentence.").ids
            >>> bool((encoder.encode_ids(ids) == encoder.encode("A sentence.")).all())
            True
        """
        request = Request(
            settings=self._settings,
            prompt="",
            output_value=output_value,
            truncate_dim=truncate_dim,
            normalize=normalize_embeddings,
            batch_size=batch_size,
        )
        prompt_length = require_int("prompt_length", prompt_length)
        arrays, single = as_id_arrays(ids)
        pipeline = self._pipeline.with_prompt_pooled(request.settings.include_prompt)
        held = pipeline.checked_ids(arrays)
        refuse_truncation(held.lengths, request.settings.max_seq_length, 0)
        outputs = embed_ids(held, request, pipeline, self._engine, prompt_length)
        return outputs[0] if single else outputs

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
        """Yield the vectors of the texts in order, ``chunk_size`` at a time, in constant memory.

        The vectors are bit for bit those of :meth:`encode`. ``inputs`` is read one chunk at a time. Texts that are too
        long are reported at the end. If :attr:`on_truncate` is ``"error"``, the error comes before their chunk.

        Args:
            inputs: An ordered iterable of texts.
            prompt_name: As in :meth:`encode`.
            prompt: As in :meth:`encode`.
            chunk_size: Number of vectors to yield at a time. The last array may be shorter.
            batch_size: As in :meth:`encode`.
            normalize_embeddings: As in :meth:`encode`.
            truncate_dim: As in :meth:`encode`.
            progress: A function that is called repeatedly, from any thread. Its argument is the number of texts that
                were completed since the last call.

        Raises:
            TypeError: An input is not a text; the message has its index. Earlier chunks were already yielded.
            ValueError: An argument has an unknown value.
            TruncationError: A text is too long, and :attr:`on_truncate` is ``"error"``.
            VectorError: A vector has NaN or infinity; the message has the index of the text.
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
        """Return the requested outputs for ``texts``, and their token counts; see :func:`minibert.embedding.embed`."""
        pipeline = self._pipeline.with_prompt_pooled(request.settings.include_prompt)
        if show_progress_bar is None:
            show_progress_bar = logger.getEffectiveLevel() <= logging.INFO
        if not show_progress_bar:
            return embed(texts, request, pipeline, self._engine, progress or _ignore, start)
        from tqdm import tqdm

        with tqdm(total=len(texts), desc="Texts") as bar:
            return embed(texts, request, pipeline, self._engine, progress or bar.update, start)

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
        """Return :meth:`encode` of search queries. The default prompt is ``"query"``.

        All other arguments are the same as in :meth:`encode`.
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
        """Return :meth:`encode` of the documents of a search.

        The default prompt is the first of ``"document"``, ``"passage"`` and ``"corpus"`` that the model has. As in
        sentence-transformers, every model has a ``"document"`` prompt. It is empty by default; the configuration or
        the constructor can set it. All other arguments are the same as in :meth:`encode`.
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
        """Return the similarity of every row of ``embeddings1`` with every row of ``embeddings2``.

        :attr:`similarity_fn_name` names the function.
        """
        return similarity.similarity(self.similarity_fn_name, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Float[Array, "n"]:
        """Return the similarity of each row of ``embeddings1`` with the same row of ``embeddings2``.

        :attr:`similarity_fn_name` names the function.
        """
        return similarity.similarity_pairwise(self.similarity_fn_name, embeddings1, embeddings2)

    @overload
    def trace(  # type: ignore[overload-overlap]  # a str is an iterable of texts, too, to a type checker
        self,
        inputs: str,
        *,
        keep: str | Iterable[str] = "*",
        edit: "Mapping[str, Edit] | None" = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> "Trace": ...
    @overload
    def trace(
        self,
        inputs: Iterable[str],
        *,
        keep: str | Iterable[str] = "*",
        edit: "Mapping[str, Edit] | None" = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> "list[Trace]": ...
    def trace(
        self,
        inputs: Any,
        *,
        keep: str | Iterable[str] = "*",
        edit: "Mapping[str, Edit] | None" = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Any:
        """Return every result on the way from a text to its vector: a :class:`minibert.study.Trace`.

        The reference computes it in float64, from the same files: :mod:`minibert.model`, then the modules. The first
        call reads the parameters and keeps them: 8 bytes for each number of the checkpoint.

        Args:
            inputs: A text, or an iterable of texts, which gives a list of traces.
            keep: Names of results, or patterns such as ``"layers.*.weights"``: what the trace keeps.
            edit: For a name or pattern, a function of the result, such as :func:`minibert.study.without`. The model
                continues with what it returns. It gets a copy without the dimension of texts. Edits are made in order.
            prompt_name: As in :meth:`encode`.
            prompt: As in :meth:`encode`.

        Raises:
            TypeError: An input is not a text.
            ValueError: No result has such a name, or an edit returns another shape.
            TruncationError: A text is too long, and :attr:`on_truncate` is ``"error"``.
            ModelFileError: A file of the repo can no longer be used.

        Example:
            >>> trace = SentenceEncoder().trace("A man is eating food.", keep=["layers.*.weights", "layers.*.x"])
            >>> print(trace)
            Trace of 'A man is eating food.', 8 tokens
            layers.0.weights  2 heads x 8 tokens that attend x 8 tokens attended to  model.py:108
            layers.0.x        8 tokens x 128 dimensions                              model.py:119
            layers.1.weights  2 heads x 8 tokens that attend x 8 tokens attended to  model.py:108
            layers.1.x        8 tokens x 128 dimensions                              model.py:119
        """
        from minibert.study import Trace

        settings, (texts, single) = self._settings, as_texts(inputs)
        before, limit = settings.prompt(prompt, prompt_name), settings.max_seq_length
        tokenizer = self._pipeline.tokenizer
        lengths = tokenizer.lengths(tokenizer.encode([before + text for text in texts]))
        if settings.on_truncate == "error":
            refuse_truncation(lengths, limit, 0)
        model = self._reference.changed(include_prompt=settings.include_prompt, truncate_dim=settings.truncate_dim)
        patterns = [keep] if isinstance(keep, str) else list(keep)
        traces = [Trace.of(model, text, before, limit, patterns, edit or {}) for text in texts]
        self._report(Truncation(0, 0, limit).including(lengths), len(texts), settings)
        return traces[0] if single else traces

    def explain(self, a: "str | Trace", b: "str | Trace", *, tolerance: float = 0.01) -> "Similarity":
        """Return why two texts are similar: by words, tokens, heads and layers.

        The score is that of :attr:`similarity_fn_name`, which must be ``"cosine"`` or ``"dot"``. Each part of the
        result is computed when it is first used. The time of ``words`` and ``without_token`` grows with the square of
        the number of tokens.

        Args:
            a: A text, or a trace of this encoder with all results, for example with a prompt.
            b: The other text or trace.
            tolerance: The allowed error of each text's words, in lengths of its vector: 1e-5 or more, because
                derivatives are differences.

        Raises:
            TypeError: An input is neither a text nor a trace.
            ValueError: The encoder has another similarity function, a trace has edits or is of another encoder, or the
                tolerance is too small.
        """
        from minibert.study import Similarity, Trace

        def traced(name: str, text: str | Trace) -> Trace:
            if isinstance(text, Trace):
                if text.model.bert is not self._reference.bert:
                    raise ValueError(f"{name} must be a text or a trace of this encoder; it is a trace of another one.")
                return text
            require_text(name, text)
            return self.trace(text)

        return Similarity(traced("a", a), traced("b", b), self.similarity_fn_name, tolerance)

    @property
    def _reference(self) -> "Reference":
        from minibert.study.reference import Reference

        with _LOADING:
            if not self._study:
                self._study.append(Reference.load(self._repo, self._pipeline.tokenizer))
        return self._study[0]

    def prompt_for(self, kind: Literal["query", "document"]) -> str:
        """Return the text that :meth:`encode_query` or :meth:`encode_document` puts before each text, or ``""``."""
        return self._settings.prompt(None, self._settings.prompt_name(kind))

    def _report(self, truncation: Truncation, texts: int, settings: Settings) -> None:
        """Store what a call truncated, and warn about it if ``on_truncate`` is ``"warn"``."""
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
            "kernels": self.kernels,
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
        """Return an encoder with the same model (it is read-only) and a copy of the settings."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__, _settings=self._settings.copied())
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return copy.copy(self)

    def __getstate__(self) -> dict[str, Any]:
        pipeline = self._pipeline.portable(self._engine)
        return {**self.__dict__, "_pipeline": pipeline, "_engine": self.dtype.name, "_study": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore model and settings. Choose kernels, packing and threads again: they depend on the machine."""
        known_to_langchain(SentenceEncoder)
        self.__dict__.update(state)
        self._engine = open_engine("cpu", state["_engine"], self._arguments["kernels"])
        self._pipeline = self._pipeline.adopted(self._engine)
        if self.num_threads == self._own["num_threads"]:
            self.num_threads = self._engine.threads
        if self.max_batch_tokens == self._own["max_batch_tokens"]:
            self.max_batch_tokens = self._engine.batch_tokens(self._pipeline.config)
        self._own = {
            **self._own,
            "num_threads": self._engine.threads,
            "max_batch_tokens": self._engine.batch_tokens(self._pipeline.config),
        }

    if not TYPE_CHECKING:  # a type checker must report missing attributes

        def __getattr__(self, name: str) -> NoReturn:
            raise instead.missing(type(self).__name__, name, instead.METHODS)

        def __getitem__(self, item: object) -> NoReturn:
            raise TypeError(instead.ITEMS)


def _ignore(_: int) -> None:
    """Do nothing: there is no progress bar."""
