"""SearchIndex: texts with their vectors, and exact search for the nearest texts, in numpy."""

import dataclasses
import functools
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from safetensors import SafetensorError, safe_open

from minibert import ops, similarity
from minibert.encoder import SentenceEncoder
from minibert.errors import IndexFileError, WeightsError
from minibert.files.checkpoint import open_safetensors, save_safetensors
from minibert.inputs import as_texts, require_int, require_text
from minibert.safe.atomic import whole_file
from minibert.typing import Array, Float, Int, PathLike

#: The name of the built-in model.
BUILTIN_NAME = "built-in"

#: The first entries of the file's metadata. The version changes if the tensors or their meanings change.
_FORMAT = {"format": "minibert search index", "version": "1"}
#: The attributes that the metadata hold.
_STRINGS = ("model", "fingerprint", "similarity_fn_name", "document_prompt", "query_prompt")
#: The encoder's settings that change vectors. The metadata hold them, too, in JSON. Older files do not have them.
_SETTINGS = {"max_seq_length": r"[1-9][0-9]{0,8}", "include_prompt": "true|false"}
#: The tensors of the file, with safetensors' codes of their dtypes.
_TENSORS = {"vectors": "F32", "numbers": "I64", "texts": "U8", "offsets": "I64"}


class Hit(NamedTuple):
    """A text that was found.

    Attributes:
        score: Its similarity to the query. Larger means more similar. A distance is negated.
        number: Its number, from :attr:`SearchIndex.numbers`.
        text: The text.
    """

    score: float
    number: int
    text: str


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SearchIndex:
    """Texts with their vectors, for search by meaning. Each query is compared with every text.

    :meth:`build` and :meth:`load` make an index. The index also defines how queries are encoded: with
    :attr:`query_prompt`, and truncated to the width of :attr:`vectors`. So they fit the texts, even if a later encoder
    has other settings.

    Attributes:
        texts: The N texts.
        vectors: Their vectors, ``(N, D)``, float32, as ``encode_document`` returns them.
        numbers: The number of each text, ``(N,)``, int64, increasing; for example, its line in a file, counted from 1.
        model: The model's name at the time of :meth:`build`; ``"built-in"`` for the built-in model.
        fingerprint: The model's :attr:`~minibert.encoder.SentenceEncoder.fingerprint`.
        similarity_fn_name: The function that compares texts and queries.
        document_prompt: The prompt before each text when it was encoded.
        query_prompt: The prompt before each query.
        max_seq_length: Maximum number of tokens of texts and queries, or None if the file does not say.
        include_prompt: Whether pooling includes the tokens of the prompt, or None if the file does not say.

    Example:
        >>> from minibert import SearchIndex, SentenceEncoder
        >>> encoder = SentenceEncoder()
        >>> index = SearchIndex.build(encoder, ["The cat is asleep.", "A man plays the violin."])
        >>> index
        SearchIndex(2 texts, model 'built-in')
        >>> hits = index.search(encoder, "A man plays the violin.", top_k=1)[0]
        >>> hits[0].number, hits[0].text
        (2, 'A man plays the violin.')
    """

    texts: list[str]
    vectors: Float[Array, "N D"]
    numbers: Int[Array, "N"]
    model: str
    fingerprint: str
    similarity_fn_name: str
    document_prompt: str = ""
    query_prompt: str = ""
    max_seq_length: int | None = None
    include_prompt: bool | None = None

    @classmethod
    def build(
        cls,
        encoder: SentenceEncoder,
        texts: Iterable[str],
        *,
        numbers: Sequence[int] | Int[Array, "N"] | None = None,
        document_prompt: str | None = None,
        query_prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> Self:
        """Return an index of ``texts``, encoded by ``encoder.encode_document``.

        Args:
            encoder: The model. The index uses its ``similarity_fn_name`` and ``truncate_dim``.
            texts: An ordered iterable of at least one text.
            numbers: A number for each text, increasing, at least 1. The default is 1, 2, 3, ...
            document_prompt: The prompt before each text. By default, the encoder defines it.
            query_prompt: The prompt before each query. By default, the encoder defines it.
            batch_size: As in :meth:`~minibert.encoder.SentenceEncoder.encode`.
            show_progress_bar: As in ``encode``.

        Raises:
            TypeError: An item or a prompt is not a text; the message has the index of the item.
            ValueError: There is no text, the numbers do not fit, or a vector has NaN or infinity.
            TruncationError: A text is too long, and the encoder's ``on_truncate`` is ``"error"``.
        """
        texts = as_texts(texts)[0]
        fingerprint = encoder.fingerprint  # before encoding: it can take hours, and files can change
        if query_prompt is not None:
            require_text("query_prompt", query_prompt)
        if not texts:
            raise ValueError("an index must have at least one text; there is none.")
        given = np.arange(1, len(texts) + 1) if numbers is None else np.asarray(numbers)
        where = given.astype(np.int64) if given.dtype.kind in "iu" else np.empty(0)
        if where.shape != (len(texts),) or not _are_numbers(where):
            raise ValueError(
                f"numbers must be whole numbers from 1 for each of the {len(texts)} texts, in increasing order; "
                f"they are {given.dtype} {given.shape}, {np.array2string(given, threshold=4, edgeitems=2)}."
            )
        document_prompt = encoder.prompt_for("document") if document_prompt is None else document_prompt
        vectors = encoder.encode_document(
            texts, prompt=document_prompt, batch_size=batch_size, show_progress_bar=show_progress_bar
        )
        return cls(
            texts=texts,
            vectors=_finite(vectors.astype(np.float32, copy=False), "text"),
            numbers=where,
            model=_name(encoder),
            fingerprint=fingerprint,
            similarity_fn_name=encoder.similarity_fn_name,
            document_prompt=document_prompt,
            query_prompt=encoder.prompt_for("query") if query_prompt is None else query_prompt,
            max_seq_length=encoder.max_seq_length,
            include_prompt=encoder.include_prompt,
        )

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Return the index from a file that :meth:`save` wrote. The whole file is checked. It cannot run code.

        Raises:
            IndexFileError: The file is missing, damaged, of another version, or not an index.
        """
        path = Path(path)
        try:
            tensors = open_safetensors(path)
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
            attributes = {**_checked_strings(path, metadata), **_checked_settings(path, metadata)}
            _check_shapes(path, {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
            arrays = {name: tensor.read() for name, tensor in tensors.items()}
        except FileNotFoundError:
            raise IndexFileError(f"{path} does not exist. `minibert index` makes such a file.") from None
        except OSError as error:
            raise IndexFileError(f"{path} cannot be read: {error.strerror}.") from error
        except (SafetensorError, WeightsError) as error:
            reason = str(error).replace("Download it again.", "Build the index again.")
            raise IndexFileError(f"a search index must be a safetensors file: {reason}") from error
        if not _are_numbers(arrays["numbers"]):
            raise _damaged(path, "numbers must begin at 1 or above and increase; they do not")
        rows = np.isfinite(arrays["vectors"]).all(axis=1)
        if not rows.all():
            raise _damaged(path, f"vectors must be finite; that of text {int(rows.argmin()) + 1} is not")
        texts = list(_split(path, arrays["texts"], arrays["offsets"]))
        return cls(texts=texts, vectors=arrays["vectors"], numbers=arrays["numbers"], **attributes)

    def save(self, path: PathLike) -> None:
        """Write the index to a file. An existing file is replaced. The file is written completely or not at all.

        It is a safetensors file with four tensors: ``vectors``, float32 ``(N, D)``; ``numbers``, int64 ``(N,)``;
        ``texts``, uint8, the concatenation of all texts in UTF-8; ``offsets``, int64 ``(N + 1,)``, the start of each
        text in ``texts`` and the end of the last. The metadata hold the other attributes.

        Raises:
            OSError: The file cannot be written.
        """
        encoded = [text.encode("utf-8") for text in self.texts]
        tensors = {
            "vectors": np.ascontiguousarray(self.vectors),
            "numbers": np.ascontiguousarray(self.numbers),
            "texts": np.frombuffer(b"".join(encoded), np.uint8),
            "offsets": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        }
        strings = {name: getattr(self, name) for name in _STRINGS}
        settings = {name: json.dumps(getattr(self, name)) for name in _SETTINGS if getattr(self, name) is not None}
        with whole_file(path) as new:
            save_safetensors(new, tensors, {**_FORMAT, **strings, **settings})

    def search(self, encoder: SentenceEncoder, queries: str | Iterable[str], top_k: int = 5) -> list[list[Hit]]:
        """Return the ``top_k`` best texts for each query, the best first. A smaller index returns all its texts.

        If scores are equal, the lower number comes first. A score depends only on its two vectors, not on other texts
        or queries.

        Args:
            encoder: An encoder with the model that made the index.
            queries: A query, or an ordered iterable of queries.
            top_k: Number of texts to find.

        Raises:
            TypeError: A query is not a text.
            ValueError: The encoder has another model or other settings, ``top_k`` is less than 1, the vector of a query
                has NaN, or a score is too large for float32.
            TruncationError: A query is too long, and the encoder's ``on_truncate`` is ``"error"``.
        """
        self.check_model(encoder)
        if require_int("top_k", top_k) < 1:
            raise ValueError(f"top_k must be at least 1; it is {top_k}.")
        width = self.vectors.shape[1]
        vectors = encoder.encode_query(as_texts(queries)[0], prompt=self.query_prompt, truncate_dim=width)
        if vectors.shape[1] != width:
            raise ValueError(f"the index has vectors of {width} dimensions; the model gives {vectors.shape[1]}.")
        return [self._nearest(vector, top_k) for vector in _finite(vectors, "query").astype(np.float32, copy=False)]

    def check_model(self, encoder: SentenceEncoder) -> None:
        """Raise ValueError unless ``encoder`` has the model and the settings that made the index.

        Vectors of different models are not comparable. Two settings are compared: ``max_seq_length``, and
        ``include_prompt`` if there is a prompt. The index itself stores prompts and the number of dimensions.
        """
        if encoder.fingerprint != self.fingerprint:
            raise ValueError(
                f"an index must be searched with the model that made it, {self.model!r} with fingerprint "
                f"{self.fingerprint[:12]}; the encoder's is {_name(encoder)!r} with fingerprint "
                f"{encoder.fingerprint[:12]}. Load that model, or build the index again with this one."
            )
        compared = _SETTINGS if self.document_prompt or self.query_prompt else ("max_seq_length",)
        for name in compared:
            own = getattr(self, name)
            if own is not None and own != getattr(encoder, name):
                raise ValueError(
                    f"an index must be searched with the settings that made it, {name} = {own}; the encoder has "
                    f"{getattr(encoder, name)}. Set encoder.{name} = {own}, or build the index again."
                )

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"SearchIndex({len(self):,} text{'s' * (len(self) > 1)}, model {self.model!r})"

    def _nearest(self, query: Float[Array, "D"], top_k: int) -> list[Hit]:
        with np.errstate(all="ignore"):
            scores = self._scores(query)
        if not np.isfinite(scores).all():
            number = self.numbers[np.isfinite(scores).argmin()]
            raise ValueError(
                f"scores must be finite; that of text {number} is not: its vector, or the query's, is too large for "
                "float32. Check the model, or build the index again."
            )
        # Take all texts with at least the k-th best score. With partition alone, the choice among equals is arbitrary.
        least = np.partition(scores, -top_k)[-top_k] if top_k < len(scores) else -np.inf
        rows = np.flatnonzero(scores >= least)
        rows = rows[np.argsort(-scores[rows], kind="stable")][:top_k]
        return [Hit(float(scores[row]), int(self.numbers[row]), self.texts[row]) for row in rows]

    def _scores(self, query: Float[Array, "D"]) -> Float[Array, "N"]:
        """Return the score of each text. Each has its own dot product, so its bits depend only on the two vectors."""
        if self.similarity_fn_name == "cosine":
            return np.vecdot(self.vectors, ops.l2_normalize(query)) / self._lengths
        if self.similarity_fn_name == "dot":
            return np.vecdot(self.vectors, query)
        return similarity.SIMILARITY[self.similarity_fn_name](self.vectors, query[None])[:, 0]

    @functools.cached_property
    def _lengths(self) -> Float[Array, "N"]:
        return np.maximum(np.sqrt(np.vecdot(self.vectors, self.vectors)), 1e-12)  # as in ops.l2_normalize


def _name(encoder: SentenceEncoder) -> str:
    """Return the name of the encoder's model."""
    name = encoder.get_params()["model_name_or_path"]
    return BUILTIN_NAME if name is None else os.fspath(name)


def _finite(vectors: Array, what: str) -> Array:
    """Return ``vectors``, or raise ValueError if one is not finite."""
    rows = np.isfinite(vectors).all(axis=1)
    if not rows.all():
        raise ValueError(
            f"vectors to search must be finite; that of {what} {int(rows.argmin()) + 1} has NaN or infinity. "
            "Check the model."
        )
    return vectors


def _are_numbers(numbers: Array) -> bool:
    """Return whether ``numbers`` (at least one) are at least 1 and increase."""
    return bool(numbers[0] >= 1 and (numbers[1:] > numbers[:-1]).all())


def _checked_strings(path: Path, metadata: dict[str, str]) -> dict[str, str]:
    """Check the attributes in a file's metadata and return them."""
    if metadata.get("format") != _FORMAT["format"]:
        raise IndexFileError(
            f'{path} must have metadata with the format "{_FORMAT["format"]}"; it is another safetensors file. '
            "`minibert index` makes a search index."
        )
    if metadata.get("version") != _FORMAT["version"]:
        raise IndexFileError(
            f"{path} must have version {_FORMAT['version']} of the format; it has {metadata.get('version')!r}. "
            "Update minibert, or build the index again."
        )
    if missing := [name for name in _STRINGS if name not in metadata]:
        raise _damaged(path, f"the metadata must have {', '.join(_STRINGS)}; {', '.join(missing)} is missing")
    if not re.fullmatch("[0-9a-f]{64}", metadata["fingerprint"]):
        raise _damaged(path, f"the fingerprint must be 64 hexadecimal digits; it is {metadata['fingerprint']!r}")
    try:
        similarity.check_name(metadata["similarity_fn_name"])
    except ValueError as error:
        raise _damaged(path, str(error).removesuffix(".")) from None
    return {name: metadata[name] for name in _STRINGS}


def _checked_settings(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """Check the settings in a file's metadata and return them. Older files have none."""
    for name, pattern in _SETTINGS.items():
        if name in metadata and not re.fullmatch(pattern, metadata[name]):
            raise _damaged(path, f"{name} must match {pattern}; it is {metadata[name]!r}")
    return {name: json.loads(metadata[name]) for name in _SETTINGS if name in metadata}


def _check_shapes(path: Path, found: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Raise IndexFileError unless a file has the tensors of an index, and their dtypes and shapes match."""
    if found.keys() != _TENSORS.keys():
        raise _damaged(path, f"the tensors must be {', '.join(sorted(_TENSORS))}; they are {', '.join(sorted(found))}")
    for name, (dtype, _) in found.items():
        if dtype != _TENSORS[name]:
            raise _damaged(path, f"{name} must have dtype {_TENSORS[name]}; it has {dtype}")
    shapes = {name: shape for name, (_, shape) in found.items()}
    if len(shapes["vectors"]) != 2 or 0 in shapes["vectors"]:
        raise _damaged(path, f"vectors must have a shape (N, D), neither of them 0; it is {shapes['vectors']}")
    count = shapes["vectors"][0]
    for name, rows in (("numbers", count), ("offsets", count + 1)):
        if shapes[name] != (rows,):
            raise _damaged(path, f"{name} must have shape ({rows},) for {count} texts; it has {shapes[name]}")
    if len(shapes["texts"]) != 1:
        raise _damaged(path, f"texts must be bytes in one dimension; they have shape {shapes['texts']}")


def _split(path: Path, blob: Array, offsets: Array) -> Iterator[str]:
    """Yield the texts in ``blob``, which is their concatenation."""
    if offsets[0] != 0 or offsets[-1] != len(blob) or (offsets[1:] < offsets[:-1]).any():
        raise _damaged(path, f"offsets must go from 0 up to {len(blob)}, the bytes of the texts; they do not")
    content = blob.tobytes()
    for number, (start, end) in enumerate(itertools.pairwise(offsets.tolist()), 1):
        try:
            yield content[start:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise _damaged(path, f"text {number} must be UTF-8; its byte {error.start + 1} is not") from None


def _damaged(path: Path, rule: str) -> IndexFileError:
    return IndexFileError(f"{path}: {rule}. The file is damaged, or no index of minibert's: build it again.")
