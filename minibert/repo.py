"""The description of a model repo: modules, sizes and prompts; everything except tokenizer and weights.

minibert reads repos of sentence-transformers 2 to 6, and plain transformers repos without ``modules.json``.
"""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any, NamedTuple, Self

from minibert.config import BertConfig
from minibert.errors import ConfigError, ModelFileError, UnsupportedModuleError
from minibert.files.hub import module_folder, needed_files
from minibert.modules.kinds import MODULES
from minibert.safe.escapes import printable
from minibert.safe.jsonfile import read_array, read_object, read_optional
from minibert.safe.regular import is_there, open_regular
from minibert.similarity import SIMILARITY

logger = logging.getLogger("minibert")

#: File names that sentence-transformers has used for the config of the transformer module.
TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)

#: Arguments for loading: the names in sentence-transformers 5.4, and the older names.
_KWARGS = {"model_kwargs": "model_args", "processor_kwargs": "tokenizer_args", "config_kwargs": "config_args"}

#: Arguments for loading the model that minibert can ignore. It chooses the precision itself.
_HARMLESS_MODEL_KWARGS = {
    "add_pooling_layer",
    "attn_implementation",
    "dtype",
    "torch_dtype",
    "trust_remote_code",
    "use_safetensors",
}

#: The default prompts of every model. The model or its user can change them.
DEFAULT_PROMPTS = {"query": "", "document": ""}


class ModuleFolder(NamedTuple):
    """A module after the transformer: its class and its folder.

    ``folder`` is None for the mean pooling of a repo without ``modules.json``.
    """

    kind: str
    folder: Path | None


#: The module that sentence-transformers adds after a plain transformers model.
_MEAN_POOLING = ModuleFolder("Pooling", None)


@dataclasses.dataclass(frozen=True)
class TransformerSettings:
    """The content of ``sentence_bert_config.json``.

    Attributes:
        max_seq_length: Maximum number of tokens of a text, with special tokens; None if the file does not say.
        do_lower_case: Whether texts are lower-cased before the tokenizer.
        tokenizer_overrides: Keys that override ``tokenizer_config.json``.
        config_overrides: Keys that override ``config.json``.
    """

    max_seq_length: int | None = None
    do_lower_case: bool = False
    tokenizer_overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    config_overrides: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Return the settings in ``folder``, or the defaults if there is no such file."""
        path = next((folder / name for name in TRANSFORMER_CONFIGS if is_there(folder / name)), None)
        if path is None:
            return cls()
        config = read_object(path)
        for name, older in _KWARGS.items():
            if older in config:
                config.setdefault(name, config.pop(older))
        kwargs = {name: _without_trust(path, name, config.pop(name, None)) for name in _KWARGS}
        max_seq_length = config.pop("max_seq_length", None)
        if max_seq_length is not None and (type(max_seq_length) is not int or max_seq_length < 1):
            raise ConfigError(f"{path}: max_seq_length must be a positive whole number; it is {max_seq_length!r}.")
        settings = cls(
            max_seq_length=max_seq_length,
            do_lower_case=_flag(path, config, "do_lower_case"),
            tokenizer_overrides=kwargs["processor_kwargs"],
            config_overrides=kwargs["config_kwargs"],
        )
        if unsupported := sorted(kwargs["model_kwargs"].keys() - _HARMLESS_MODEL_KWARGS):
            raise ConfigError(f"{path}: model_kwargs {', '.join(unsupported)} are not implemented.")
        _refuse_other_inference(path, config)
        return settings


@dataclasses.dataclass(frozen=True)
class ModelRepo:
    """The description of a sentence encoder in a local folder.

    Attributes:
        folder: The repo.
        transformer_folder: The folder of the BertModel and its tokenizer: ``folder`` itself, or a folder inside it.
        config: The BertModel's config.
        transformer: The content of ``sentence_bert_config.json``.
        modules: The modules after the transformer, in order.
        prompts: Prompt texts by name.
        default_prompt_name: Name of the prompt that ``encode`` uses by default, or None.
        similarity_fn_name: The model's similarity function, or None.
        truncate_dim: Number of dimensions that vectors are truncated to, or None.
        dtype: The precision of the saved weights according to ``config.json``, for information.
        tokenizer_class: The tokenizer's class if ``tokenizer_config.json`` names none, or None.
    """

    folder: Path
    transformer_folder: Path
    config: BertConfig
    transformer: TransformerSettings
    modules: tuple[ModuleFolder, ...]
    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity_fn_name: str | None
    truncate_dim: int | None
    dtype: str | None
    tokenizer_class: str | None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Return the description of the repo in ``folder``.

        Raises:
            ConfigError: A file is missing, malformed, or needs something that minibert does not implement.
            UnsupportedModuleError: ``modules.json`` names a module that minibert does not implement.
        """
        settings = read_optional(folder / "config_sentence_transformers.json")
        kind = settings.get("model_type", "SentenceTransformer")
        if kind != "SentenceTransformer":
            logger.warning(
                "%s was saved as a %s: its transformer is used with mean pooling", folder, printable(str(kind))
            )
        if kind == "SentenceTransformer" and is_there(folder / "modules.json"):
            transformer_folder, modules = _modules(folder)
            transformer = TransformerSettings.from_folder(transformer_folder)
        else:  # a plain transformers repo: sentence-transformers ignores its own other files there
            transformer_folder, modules = folder, (_MEAN_POOLING,)
            transformer, settings = TransformerSettings(), {}
        config_path = transformer_folder / "config.json"
        raw = read_object(config_path)
        config = BertConfig.from_file(config_path, transformer.config_overrides)
        path = folder / "config_sentence_transformers.json"
        # Functions of other model types, such as "maxsim", do not apply to single vectors.
        similarity = _optional(path, settings, "similarity_fn_name", str)
        return cls(
            folder=folder,
            transformer_folder=transformer_folder,
            config=config,
            transformer=transformer,
            modules=modules,
            prompts=_prompts(path, settings),
            default_prompt_name=_optional(path, settings, "default_prompt_name", str),
            similarity_fn_name=similarity if similarity in SIMILARITY else None,
            truncate_dim=_optional(path, settings, "truncate_dim", int),
            dtype=raw.get("dtype") or raw.get("torch_dtype"),
            tokenizer_class=raw.get("tokenizer_class"),
        )

    def files(self) -> list[str]:
        """Return the files of the repo that minibert reads, as sorted paths relative to its folder."""
        modules = [self.transformer_folder, *(path for _, path in self.modules if path is not None)]
        found = [path for folder in {self.folder, *modules} for path in folder.glob("*") if path.is_file()]
        return needed_files(
            [path.relative_to(self.folder).as_posix() for path in found],
            [folder.relative_to(self.folder).as_posix() for folder in modules],
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash that identifies the model: the SHA-256 (hexadecimal) of the names and contents of its files.

        It is the hash of the output of ``sha256sum`` for these files, in the order of :meth:`files`. The first access
        reads the files.
        """
        import hashlib  # it loads OpenSSL, and most programs do not need it

        listing = hashlib.sha256()
        for name in self.files():
            with open_regular(self.folder / name, ModelFileError) as file:
                listing.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())
        return listing.hexdigest()

    def max_seq_length(self, model_max_length: int | None) -> int:
        """Return the maximum number of tokens of a text, with special tokens.

        Args:
            model_max_length: The tokenizer's limit, or None.

        Raises:
            ConfigError: The repo's limit is larger than the model's position table.
        """
        limit = self.config.max_tokens
        stated = self.transformer.max_seq_length
        if "model_max_length" in self.transformer.tokenizer_overrides:  # precedence as in sentence-transformers
            stated = model_max_length
        if stated is None:
            return limit if model_max_length is None else min(model_max_length, limit)
        if stated > self.config.max_position_embeddings:
            raise ConfigError(
                f"{self.transformer_folder}: max_seq_length must be at most max_position_embeddings = "
                f"{self.config.max_position_embeddings}; it is {stated}, and a text of that length would fail."
            )
        if stated > limit:  # sentence-transformers writes this number itself, and fails on a text of that length
            logger.warning(
                "%s: max_seq_length is %d, but positions begin after the padding id: texts are cut to %d tokens",
                self.transformer_folder, stated, limit,
            )  # fmt: skip
        return min(stated, limit)


def _modules(folder: Path) -> tuple[Path, tuple[ModuleFolder, ...]]:
    """Return the transformer's folder and the modules after it, from modules.json."""
    path = folder / "modules.json"
    (first, transformer_folder), *rest = [_module(path, entry) for entry in read_array(path)] or [("nothing", folder)]
    if first != "Transformer":
        raise UnsupportedModuleError(f"{path}: the first module must be a Transformer; it is {first}.")
    for kind, _ in rest:
        if kind not in MODULES:
            raise UnsupportedModuleError(
                f"{path}: the module {kind} is not implemented; minibert knows {', '.join(MODULES)}."
            )
    return transformer_folder, tuple(ModuleFolder(*module) for module in rest)


def _module(path: Path, entry: Any) -> tuple[str, Path]:
    """Return class and folder of a module. The class is compared with known names and never imported."""
    folder = path.parent / module_folder(path, entry)
    if not isinstance(entry.get("type"), str):
        raise ConfigError(f"{path}: each module must have a type; found {entry!r}.")
    package, _, class_path = entry["type"].partition(".")
    if package != "sentence_transformers":
        raise UnsupportedModuleError(
            f"{path}: the module type {entry['type']!r} is not sentence_transformers' own; "
            "minibert never runs code from a repo."
        )
    return class_path.rpartition(".")[2], folder


def _refuse_other_inference(path: Path, config: dict[str, Any]) -> None:
    """Raise ConfigError if other keys of sentence_bert_config.json could change the vectors."""
    same = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
    }
    for key, value in same.items():
        if config.pop(key, value) not in (value, None):
            raise ConfigError(f"{path}: {key} must be {value!r}, as for every BertModel encoder.")
    config.pop("unpad_inputs", None)  # it affects padding, not the vectors
    for key in ("processing_kwargs", "query_length", "document_length", "query_expansion"):
        if config.pop(key, None):
            raise ConfigError(f"{path}: {key} is not implemented, and would change the vectors.")
    if config:
        raise ConfigError(f"{path}: the keys {', '.join(sorted(config))} are unknown, and may change the vectors.")


def _without_trust(path: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict | None):
        raise ConfigError(f"{path}: {name} must be an object; it is {value!r}.")
    return {key: item for key, item in (value or {}).items() if key != "trust_remote_code"}


def _flag(path: Path, config: dict[str, Any], key: str) -> bool:
    """Remove a flag from a config and return it. A text is refused: "false" would count as true."""
    value = config.pop(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{path}: {key} must be true or false; it is {value!r}.")
    return value


def _prompts(path: Path, settings: dict[str, Any]) -> dict[str, str]:
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise ConfigError(f"{path}: prompts must map names to texts; it is {prompts!r}.")
    return {name: text or "" for name, text in prompts.items()}


def _optional(path: Path, settings: dict[str, Any], key: str, kind: type) -> Any:
    value = settings.get(key)
    if value is not None and type(value) is not kind:
        raise ConfigError(f"{path}: {key} must be null or of type {kind.__name__}; it is {value!r}.")
    return value
