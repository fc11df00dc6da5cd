"""Tokenizer files: set up the ``tokenizers`` library from the files of a repo.

transformers 5 does not simply load ``tokenizer.json``. For most classes, it takes only the vocabulary and the added
tokens from this file. It rebuilds the rest from the flags in ``tokenizer_config.json``. So the flags for casing take
precedence over ``tokenizer.json``. This module does the same. The code in transformers is in
``tokenization_utils_tokenizers.py`` and ``models/{bert,camembert,mpnet,roberta,xlm_roberta}/tokenization_*.py``,
https://github.com/huggingface/transformers/tree/v5.23.0/src/transformers
"""

import base64
import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from minibert.errors import ConfigError, TokenizerError
from minibert.safe.jsonfile import read_optional
from minibert.safe.regular import is_there, read_regular

#: Maximum size of tokenizer.json or vocab.txt, in bytes. XLM-RoBERTa has 17 MB.
MAX_BYTES = 64 << 20
#: Maximum number of brackets, commas and colons in tokenizer.json. LaBSE, with 501,153 tokens, has a million.
MAX_ITEMS = 2_000_000
#: Maximum number of tokens of a vocabulary. The library's tables take about 400 bytes per token.
MAX_TOKENS = 1_000_000
#: Maximum number of bytes of all pieces of a Unigram vocabulary. XLM-RoBERTa has about 2.3 million. The library stores
#: them as a tree, which takes up to 340 bytes per byte.
MAX_PIECES_BYTES = 3_000_000
#: Maximum number of characters of a piece. sentencepiece makes at most 16. With about 100,000, the tree is so deep that
#: the library overflows the stack when it frees the tree, and the process dies.
MAX_PIECE_LENGTH = 1_000
#: Maximum factor by which all steps of a normalizer may make a text longer. Thirty steps "replace a by aa" make it a
#: billion times longer.
MAX_GROWTH = 1_000
#: Maximum number of bytes of a table of characters, in base64. XLM-RoBERTa has about 300,000.
MAX_CHARSMAP_BYTES = 4_000_000
#: Maximum number of bytes of all added tokens. The library searches for them with an automaton. It takes 70 bytes per
#: byte, and one or two seconds per million bytes to build.
MAX_ADDED_BYTES = 1_000_000
#: White space that is removed at the end of a line in vocab.txt: Unicode's white space, as in the library.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"

#: The names of special tokens in tokenizer_config.json. transformers adds them in this order.
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_BERT_SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_XLM_ROBERTA_SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}


class TokenizerFiles(NamedTuple):
    """The tokenizer files of a folder.

    Attributes:
        folder: The folder.
        config: ``tokenizer_config.json``, with the overrides of ``sentence_bert_config.json``.
        json: ``tokenizer.json``.
        special_map: ``special_tokens_map.json``.
        added: ``added_tokens.json``.
    """

    folder: Path
    config: dict[str, Any]
    json: dict[str, Any]
    special_map: dict[str, Any]
    added: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, overrides: Mapping[str, Any]) -> "TokenizerFiles":
        """Return the files in ``folder``. Missing files count as empty."""
        try:
            return cls(
                folder=folder,
                config={**read_optional(folder / "tokenizer_config.json"), **overrides},
                json=read_optional(folder / "tokenizer.json", MAX_BYTES, MAX_ITEMS),
                special_map=read_optional(folder / "special_tokens_map.json"),
                added=read_optional(folder / "added_tokens.json"),
            )
        except ConfigError as error:
            raise TokenizerError(str(error)) from error

    @property
    def max_length(self) -> int | None:
        """The limit in the files, in tokens; None if it is absent or transformers' placeholder."""
        limit = self.config.get("model_max_length", self.config.get("max_len"))
        if limit is None:
            return None
        if isinstance(limit, bool) or not isinstance(limit, int | float) or limit < 1:
            raise TokenizerError(f"{self.folder}: model_max_length must be a positive number; it is {limit!r}.")
        return int(limit) if limit < 1e20 else None

    @property
    def truncation_side(self) -> str:
        """The side from which long texts are truncated: ``"right"`` or ``"left"``."""
        truncation = self.json.get("truncation")
        direction = truncation.get("direction", "right") if isinstance(truncation, dict) else "right"
        side = self.config.get("truncation_side", str(direction).lower())
        if side not in ("left", "right"):
            raise TokenizerError(f'{self.folder}: truncation_side must be "left" or "right"; it is {side!r}.')
        return side

    def added_tokens(self) -> dict[int, AddedToken]:
        """Return the added tokens by id, from tokenizer_config.json, or else from the older files."""
        if "added_tokens_decoder" in self.config:
            return {int(i): _added_token(token) for i, token in self.config["added_tokens_decoder"].items()}
        special = {_content(token) for token in self.named_tokens().values()}
        older = {
            index: AddedToken(token, normalized=token not in special, special=token in special)
            for token, index in self.added.items()
        }
        newer = {entry["id"]: _added_token(entry) for entry in self.json.get("added_tokens", ())}
        return older | newer

    def named_tokens(self) -> dict[str, Any]:
        """Return the special tokens that the files name, by role (``cls_token``, ...)."""
        files = self.config if "added_tokens_decoder" in self.config else {**self.config, **self.special_map}
        return {role: files[role] for role in _SPECIAL if files.get(role) is not None}

    def extra_tokens(self) -> list[Any]:
        """Return the special tokens that have no role."""
        files = self.config if "added_tokens_decoder" in self.config else {**self.config, **self.special_map}
        extra = files.get("extra_special_tokens") or files.get("additional_special_tokens") or []
        return list(extra.values() if isinstance(extra, dict) else extra)

    def vocabulary(self) -> Any:
        """Return the vocabulary of tokenizer.json or vocab.txt."""
        if self.json:
            return self.json.get("model", {}).get("vocab", {})
        path = self.folder / "vocab.txt"
        if not is_there(path):
            self.refuse_sentencepiece()
            raise TokenizerError(f"{self.folder} holds no tokenizer: it has neither tokenizer.json nor vocab.txt.")
        return _read_vocab(path)

    def byte_pairs(self) -> tuple[Any, list[tuple[str, str]]]:
        """Return the vocabulary and the merges of tokenizer.json, or of vocab.json and merges.txt."""
        if self.json:
            model = self.json.get("model", {})
            merges = model.get("merges", [])
            return model.get("vocab", {}), [_merge(self.folder / "tokenizer.json", merge) for merge in merges]
        paths = [self.folder / name for name in ("vocab.json", "merges.txt")]
        if not all(map(is_there, paths)):
            self.refuse_sentencepiece()
            raise TokenizerError(
                f"{self.folder} holds no tokenizer: it has neither tokenizer.json nor both vocab.json and merges.txt."
            )
        try:
            vocabulary = read_optional(paths[0], MAX_BYTES, MAX_ITEMS)
        except ConfigError as error:
            raise TokenizerError(str(error)) from error
        lines = (line.removesuffix("\r") for line in _read_lines(paths[1]))
        return vocabulary, [_merge(paths[1], line) for line in lines if line and not line.startswith("#version")]

    def refuse_sentencepiece(self) -> None:
        """Raise TokenizerError if there is a file of sentencepiece; the caller has found no other tokenizer."""
        for name in ("sentencepiece.bpe.model", "sentencepiece.model", "spiece.model"):
            if is_there(self.folder / name):
                raise TokenizerError(
                    f"{self.folder}: the tokenizer must be a tokenizer.json; there is only {name}. Write one where "
                    "transformers and sentencepiece are installed: "
                    "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
                )


def _read_vocab(path: Path) -> dict[str, int]:
    """Return the tokens of vocab.txt (one per line) with their ids. As in the library, the last equal token wins."""
    return {line.rstrip(_WHITE_SPACE): number for number, line in enumerate(_read_lines(path))}


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, which must not be too many."""
    content = read_regular(path, TokenizerError, MAX_BYTES)
    if (count := content.count(b"\n")) > MAX_TOKENS:
        raise TokenizerError(f"{path} has {count:,} lines; at most {MAX_TOKENS:,} are read.")
    return content.decode("utf-8").removesuffix("\n").split("\n")


def _require_vocabulary(path: Path, vocabulary: Any) -> None:
    """Raise TokenizerError if the library's tables of a vocabulary would take too much memory."""
    if not isinstance(vocabulary, dict | list):
        raise TokenizerError(f"{path}: the vocabulary must be an object or an array; it is {vocabulary!r:.100}.")
    if len(vocabulary) > MAX_TOKENS:
        raise TokenizerError(
            f"{path}: a vocabulary must have at most {MAX_TOKENS:,} tokens; it has {len(vocabulary):,}."
        )
    if isinstance(vocabulary, list):
        pieces = [entry[0] for entry in vocabulary if isinstance(entry, list) and entry and isinstance(entry[0], str)]
        _require_bytes(path, "the pieces of a vocabulary", pieces, MAX_PIECES_BYTES)
        if (longest := max(map(len, pieces), default=0)) > MAX_PIECE_LENGTH:
            raise TokenizerError(
                f"{path}: a piece must have at most {MAX_PIECE_LENGTH:,} characters; one has {longest:,}."
            )


def _require_modest(path: Path, normalizer: Any) -> None:
    """Raise TokenizerError if a normalizer could make texts much longer."""
    growth = 1
    for step in _steps(normalizer):
        if step.get("type") == "Replace":
            pattern, content = step.get("pattern"), step.get("content", "")
            exact = isinstance(pattern, dict) and pattern.get("String")
            growth *= max(1, len(content)) if exact else 1 + len(content)  # a regex can match between characters
        elif step.get("type") == "Precompiled":
            encoded = step.get("precompiled_charsmap") or ""
            _require_bytes(path, "a precompiled_charsmap", [encoded], MAX_CHARSMAP_BYTES)
            charsmap = base64.b64decode(encoded, validate=True)
            # Format: the size of a table of characters, the table, the replacements. Each replacement ends with a NUL.
            replacements = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]
            growth *= max(1, *map(len, replacements.split(b"\0")))
    if growth > MAX_GROWTH:
        raise TokenizerError(
            f"{path}: the steps of the normalizer must make a text at most {MAX_GROWTH:,} times longer; they could "
            f"make it {growth:,} times longer."
        )


def _steps(normalizer: Any) -> list[Any]:
    """Return the steps of tokenizer.json's normalizer, with those of nested sequences."""
    if not isinstance(normalizer, dict):
        return []
    if normalizer.get("type") != "Sequence":
        return [normalizer]
    return [step for inner in normalizer["normalizers"] for step in _steps(inner)]


def _require_bytes(path: Path, what: str, texts: list[str], most: int) -> None:
    """Raise TokenizerError if all texts together have more than ``most`` bytes."""
    size = len("".join(texts).encode("utf-8"))
    if size > most:
        raise TokenizerError(f"{path}: {what} must have at most {most:,} bytes; received {size:,}.")


class _Built(NamedTuple):
    """The library's tokenizer without added tokens, and the largest id of its vocabulary."""

    tokenizer: Tokenizer
    largest_id: int


def _bert(files: TokenizerFiles, named: Mapping[str, Any]) -> _Built:
    """Return BERT's tokenizer: BERT's normalizer and WordPiece, with the flags of tokenizer_config.json."""
    vocabulary = files.vocabulary()
    if isinstance(vocabulary, list):
        vocabulary = {entry[0] if isinstance(entry, list) else entry: i for i, entry in enumerate(vocabulary)}
    _require_vocabulary(files.folder, vocabulary)
    unknown = _content(named["unk_token"])
    if unknown not in vocabulary:
        raise TokenizerError(f"{files.folder}: the vocabulary must hold the unknown token {unknown!r}; it does not.")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=files.config.get("tokenize_chinese_chars", True),
        strip_accents=files.config.get("strip_accents"),
        lowercase=files.config.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return _Built(tokenizer, max(vocabulary.values()))  # faster than the tokenizer's get_vocab


def _roberta(files: TokenizerFiles, _named: Mapping[str, Any]) -> _Built:
    """Return RoBERTa's tokenizer: pairs of bytes, merged in the order of their frequency."""
    vocabulary, merges = files.byte_pairs()
    if not isinstance(vocabulary, dict):
        raise TokenizerError(f"{files.folder}: RobertaTokenizer needs a BPE vocabulary, an object; it is another type.")
    _require_vocabulary(files.folder, vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=files.config.get("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    return _Built(tokenizer, max(vocabulary.values(), default=-1))


def _merge(path: Path, merge: Any) -> tuple[str, str]:
    """Return the two parts of a merge. In the files, it is a pair, or a text with a space between the parts."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts)):
        raise TokenizerError(f"{path}: a merge must have two parts, with a space between them; it is {merge!r:.80}.")
    return parts[0], parts[1]


def _xlm_roberta(files: TokenizerFiles, _named: Mapping[str, Any]) -> _Built:
    """Return XLM-RoBERTa's tokenizer. The multilingual MiniLM and e5 models use it."""
    return _unigram(files, lambda _: 3)


def _camembert(files: TokenizerFiles, named: Mapping[str, Any]) -> _Built:
    """Return CamemBERT's tokenizer. The unknown token can have any id."""
    unknown = _content(named["unk_token"])
    return _unigram(files, lambda pieces: pieces.index(unknown) if unknown in pieces else 0)


def _unigram(files: TokenizerFiles, unknown_id: Callable[[list[str]], int]) -> _Built:
    """Return a tokenizer with a Unigram model."""
    vocabulary = files.vocabulary()
    if not isinstance(vocabulary, list):
        raise TokenizerError(f"{files.folder}: the tokenizer needs a tokenizer.json with a Unigram vocabulary.")
    _require_vocabulary(files.folder, vocabulary)
    unknown = unknown_id([piece for piece, _ in vocabulary])
    tokenizer = Tokenizer(models.Unigram([(piece, score) for piece, score in vocabulary], unknown, False))
    _require_modest(files.folder, files.json.get("normalizer"))
    charsmap = _charsmap(files.json.get("normalizer"))
    if charsmap is not None:
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    scheme = "always" if files.config.get("add_prefix_space", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return _Built(tokenizer, len(vocabulary) - 1)


def _as_is(files: TokenizerFiles, _named: Mapping[str, Any]) -> _Built:
    """Return the tokenizer that tokenizer.json describes."""
    path = files.folder / "tokenizer.json"
    if not is_there(path):
        raise TokenizerError(f"{files.folder} holds no tokenizer.json, which its tokenizer_class needs.")
    _require_vocabulary(path, files.vocabulary())
    _require_modest(path, files.json.get("normalizer"))
    added = [_content(entry) for entry in files.json.get("added_tokens", ())]
    _require_bytes(path, "the added tokens", added, MAX_ADDED_BYTES)
    tokenizer = Tokenizer.from_buffer(read_regular(path, TokenizerError, MAX_BYTES))
    return _Built(tokenizer, max(tokenizer.get_vocab().values(), default=-1))


class _Recipe(NamedTuple):
    """How to set up a tokenizer class of transformers.

    Attributes:
        build: Makes the library's tokenizer from the files and the named special tokens.
        special: The default special tokens of the class, by role.
        around: The roles of the tokens before and after a text; None if tokenizer.json defines them.
        extra: Special tokens without a role, if the vocabulary has them and the files name none.
    """

    build: Callable[["TokenizerFiles", Mapping[str, Any]], _Built]
    special: dict[str, str]
    around: tuple[str, str] | None
    extra: tuple[str, ...] = ()


_BERT = _Recipe(_bert, _BERT_SPECIAL, ("cls_token", "sep_token"))
_AS_IS = _Recipe(_as_is, {}, None)

#: The recipes by the tokenizer_class in the files, with or without "Fast".
_RECIPES = {
    "BertTokenizer": _BERT,
    "CamembertTokenizer": _Recipe(
        _camembert,
        _XLM_ROBERTA_SPECIAL,
        ("bos_token", "eos_token"),
        ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
    ),
    "DistilBertTokenizer": _BERT,
    "ElectraTokenizer": _BERT,
    "MPNetTokenizer": _Recipe(
        _bert,
        {**_XLM_ROBERTA_SPECIAL, "unk_token": "[UNK]"},
        ("cls_token", "sep_token"),
    ),
    "PreTrainedTokenizerFast": _AS_IS,
    "RobertaTokenizer": _Recipe(_roberta, _XLM_ROBERTA_SPECIAL, ("cls_token", "sep_token")),
    "TokenizersBackend": _AS_IS,
    "XLMRobertaTokenizer": _Recipe(_xlm_roberta, _XLM_ROBERTA_SPECIAL, ("bos_token", "eos_token")),
}


@contextlib.contextmanager
def library_errors(folder: Path) -> Iterator[None]:
    """Convert every error of the tokenizers library about unusable files to a TokenizerError."""
    try:
        yield
    except (TokenizerError, MemoryError):
        raise
    except BaseException as error:
        # It raises plain Exception. If its Rust code panics, it raises a BaseException of a class that it hides.
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        raise TokenizerError(f"{folder}: the tokenizer files cannot be used: {error!r}.") from error


@contextlib.contextmanager
def encoding_errors(folder: Path) -> Iterator[None]:
    """Convert an error of the tokenizers library on a text to a TokenizerError, if the files are its cause."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and not _is_panic(error):  # a wrong text gives a TypeError
            raise
        raise TokenizerError(
            f"{folder}: the tokenizer failed on a text: {error}. Its files do not fit together. Download them again."
        ) from error


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"


def build_tokenizer(files: TokenizerFiles, default_class: str | None) -> tuple[Tokenizer, dict[str, str], int]:
    """Return the library's tokenizer, its special tokens by role, and the largest id of all its tokens.

    Args:
        files: The tokenizer files of a folder.
        default_class: The class if ``tokenizer_config.json`` names none. None is BertTokenizer.

    Raises:
        TokenizerError: The files cannot be used, or are for a class that minibert does not implement.
    """
    name = str(files.config.get("tokenizer_class") or default_class or "BertTokenizer")
    recipe = _RECIPES.get(name) or _RECIPES.get(name.removesuffix("Fast"))
    if recipe is None:
        known = ", ".join(_RECIPES)
        raise TokenizerError(f"{files.folder}: tokenizer_class {name!r} is not implemented; minibert knows {known}.")
    with library_errors(files.folder):
        named: dict[str, Any] = {**recipe.special, **files.named_tokens()}
        tokenizer, largest_id = recipe.build(files, named)
        extra = files.extra_tokens() or [token for token in recipe.extra if tokenizer.token_to_id(token) is not None]
        _add_tokens(tokenizer, files, named, extra)
        if recipe.around is not None:
            before, after = (_content(named[role]) for role in recipe.around)
            tokenizer.post_processor = processors.TemplateProcessing(
                single=[before, "$A", after],
                special_tokens=[(token, tokenizer.token_to_id(token)) for token in {before, after}],
            )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    largest_id = max([largest_id, *tokenizer.get_added_tokens_decoder()])
    return tokenizer, {role: _content(token) for role, token in named.items()}, largest_id


def _add_tokens(backend: Tokenizer, files: TokenizerFiles, named: Mapping[str, Any], extra: list[Any]) -> None:
    """Register the added and the special tokens, in transformers' order. The order defines the ids of new tokens."""
    by_id = files.added_tokens()
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    pending = [token for _, token in sorted(by_id.items()) if token.content not in known]
    known |= {token.content for token in pending}
    special = {_content(token) for token in named.values()}
    for token in [*named.values(), *extra]:
        if _content(token) not in known:
            known.add(_content(token))
            pending.append(_added_token(token, special=True))
    for token in pending:
        if token.content in special:
            token.special = True
    _require_bytes(files.folder, "the added tokens", [token.content for token in pending], MAX_ADDED_BYTES)
    backend.add_tokens(pending)


def _charsmap(normalizer: Any) -> bytes | None:
    """Return the first precompiled character map among the steps of tokenizer.json's normalizer."""
    if not isinstance(normalizer, dict):
        return None
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    for step in steps:
        if step.get("type") == "Precompiled" and "precompiled_charsmap" in step:
            return base64.b64decode(step["precompiled_charsmap"], validate=True)
    return None


def _content(token: Any) -> str:
    """Return the text of a token. In the files, it is a string or an object with flags."""
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise TypeError(f"a special token must be a string, or an object with a content; found {token!r}")
    return content


def _added_token(token: Any, *, special: bool = False) -> AddedToken:
    """Convert a token in the files to an AddedToken of the tokenizers library."""
    if not isinstance(token, dict):
        return AddedToken(_content(token), special=special, normalized=not special)
    flags = {k: bool(token[k]) for k in ("single_word", "lstrip", "rstrip", "normalized", "special") if k in token}
    return AddedToken(_content(token), **{"special": special, **flags})
