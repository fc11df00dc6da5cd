"""From a model's name to a local folder: the folder itself, or a cached repo of the Hugging Face hub.

huggingface_hub handles the cache, resumed downloads and the environment variables (``HF_HOME``, ``HF_HUB_OFFLINE``,
``HF_TOKEN``, ...). This module decides which repo a name means, which files are fetched, and how errors are explained.
"""

import contextlib
import glob
import os
import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from minibert.errors import ConfigError, HubError
from minibert.files.checkpoint import WEIGHTS_FILES
from minibert.safe.jsonfile import read_array
from minibert.safe.regular import open_regular
from minibert.typing import PathLike

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: BERT checkpoints that are older than the hub's "organisation/name". Their repo ids have no "/".
TRANSFORMERS_NAMES = {
    "bert-base-cased",
    "bert-base-cased-finetuned-mrpc",
    "bert-base-chinese",
    "bert-base-german-cased",
    "bert-base-german-dbmdz-cased",
    "bert-base-german-dbmdz-uncased",
    "bert-base-multilingual-cased",
    "bert-base-multilingual-uncased",
    "bert-base-uncased",
    "bert-large-cased",
    "bert-large-cased-whole-word-masking",
    "bert-large-cased-whole-word-masking-finetuned-squad",
    "bert-large-uncased",
    "bert-large-uncased-whole-word-masking",
    "bert-large-uncased-whole-word-masking-finetuned-squad",
}

#: The folder of the built-in model. Any program that reads sentence-transformers repos can load it.
BUILTIN_MODEL = Path(__file__).parents[1] / "builtin"

#: Maximum size of a cache file with the commit of a branch. A commit has 40 bytes.
MAX_REF_BYTES = 1024

#: Files that are read, if they exist, from the repo's root and from each module's folder.
CONFIG_FILES: tuple[str, ...] = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


def resolve(
    model_name_or_path: PathLike | None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_folder: PathLike | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the local folder of a model: the folder itself, or the snapshot of a hub repo, fetched if necessary.

    Args:
        model_name_or_path: A folder or a hub repo; see :func:`repo_id` for short names. None is the built-in model.
        revision: The repo's branch, tag or commit. None is its main branch.
        token: The hub token to send. True requires the stored token, False sends none, None sends the stored token if
            there is one.
        cache_folder: The cache. None is ``SENTENCE_TRANSFORMERS_HOME``, or else the cache of huggingface_hub.
        local_files_only: Use only the cache, not the network.

    Raises:
        NotADirectoryError: The path is a file.
        FileNotFoundError: The path does not exist.
        ValueError: The name is neither a path nor a well-formed repo id, or the token cannot be sent.
        HubError: The repo is not in the cache and cannot be fetched.
        ConfigError: The repo's ``modules.json`` is malformed, or points out of the repo.
    """
    name = os.fspath(BUILTIN_MODEL if model_name_or_path is None else model_name_or_path)
    if not name:
        raise ValueError("a model must be a folder or a hub repo id; received an empty string.")
    folder = Path(name)
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise NotADirectoryError(f"a model must be a folder; {name} is a file. Give the folder that holds it.")
    if name.count("/") > 1 or "\\" in name or name[0] in "./~" or name.endswith("/"):
        raise FileNotFoundError(
            f"a model must be a folder or a hub repo id (organisation/name); there is no folder {name}."
        )
    # HTTP libraries quote a refused header in their errors: this would print the token.
    if isinstance(token, str) and not re.fullmatch("[!-~]+", token):
        raise ValueError(
            "token must be printable ASCII without spaces; received one that is empty or has other "
            "characters. Does it end with a newline?"
        )

    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    repo = repo_id(name)
    cache = cache_folder or os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    try:
        hub = HfApi(token=token)
        return Path(_snapshot(hub, repo, revision, Path(cache) if cache else None, local_files_only)).resolve()
    except HFValidationError as error:
        raise ValueError(f"a model must be a folder or a hub repo id; {name} is neither: {error}") from error
    except (ConfigError, HubError):
        raise
    except _hub_errors() as error:
        raise HubError(_explain(error, repo, revision)) from error


def repo_id(name: str) -> str:
    """Return the hub repo for a name. A name without "/" is a repo of sentence-transformers or an old BERT."""
    return name if "/" in name or name.lower() in TRANSFORMERS_NAMES else f"sentence-transformers/{name}"


def needed_files(listing: Collection[str], module_folders: Sequence[str]) -> list[str]:
    """Return the files in ``listing`` that minibert reads, sorted.

    These are the configuration and tokenizer files at the root and in the modules' folders ("" is the root), and the
    weights of each module, in the first kind that exists. Old repos hold the same weights for many frameworks: all of
    them have several times the size.
    """
    root = PurePosixPath()
    modules = {PurePosixPath(folder) for folder in module_folders}
    needed = []
    for folder in {root, *modules}:
        here = {path.name: str(path) for path in map(PurePosixPath, listing) if path.parent == folder}
        # At the root, other configs are for training and deployment: data_config.json, ort_config.json.
        patterns = CONFIG_FILES if folder == root else (*CONFIG_FILES, "*_config.json")
        if folder in modules:
            patterns += next((kind for kind in WEIGHTS_FILES if kind[0] in here), ())
        needed += [path for file, path in here.items() if any(fnmatchcase(file, p) for p in patterns)]
    return sorted(needed)


def module_folders(modules_json: Path) -> list[str]:
    """Return the folders that a ``modules.json`` names; check that they are inside the repo."""
    return [module_folder(modules_json, module) for module in read_array(modules_json)]


def module_folder(modules_json: Path, module: object) -> str:
    """Return the folder that an entry of ``modules.json`` names; check that it is inside the repo.

    Raises:
        ConfigError: It names no folder, or a folder outside the repo.
    """
    folder = module.get("path") if isinstance(module, dict) else None
    if not isinstance(folder, str) or not _is_inside(folder):
        raise ConfigError(
            f'{modules_json}: each module must have a "path" inside the repo, such as "1_Pooling"; received {module!r}.'
        )
    return folder


def _is_inside(folder: str) -> bool:
    """Return whether a relative path stays in its folder, on every system."""
    path = PureWindowsPath(folder)  # its rules include all separators and roots of POSIX
    return folder.isprintable() and not path.anchor and ".." not in path.parts


def _snapshot(hub: "HfApi", repo: str, revision: str | None, cache: Path | None, local_only: bool) -> str:
    """Return the cached snapshot of a repo. If the hub answers, fetch the needed files first."""
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

    _require_readable_ref(repo, revision or "main", cache)
    download = partial(hub.snapshot_download, repo, revision=revision, cache_dir=cache)
    # No patterns: files that minibert never fetches must not make a snapshot "incomplete".
    cached = partial(download, local_files_only=True, allow_patterns=[])
    if local_only:
        return cached()
    try:
        # The library has a timeout for such requests, but does not set it here. Without it, this could wait forever.
        info = hub.model_info(repo, revision=revision, timeout=HF_HUB_ETAG_TIMEOUT)
    except RevisionNotFoundError:
        raise
    except _hub_errors() as error:  # offline, no network, hub down: use the cache, as snapshot_download does
        try:
            return cached()
        except LocalEntryNotFoundError:
            raise error from None
    listing = [file.rfilename for file in info.siblings or ()]
    folders = [""]
    if "modules.json" in listing:
        modules_json = hub.hf_hub_download(repo, "modules.json", revision=info.sha, cache_dir=cache)
        folders = module_folders(Path(modules_json))
    needed = needed_files(listing, folders)
    if not needed:
        raise HubError(f"{repo} holds no file of a BERT model: neither config.json nor weights nor a tokenizer.")
    return download(allow_patterns=[glob.escape(file) for file in needed])


def _require_readable_ref(repo: str, revision: str, cache: Path | None) -> None:
    """Raise ConfigError if the cache file with the commit of a branch is a pipe, a device, or too large.

    huggingface_hub reads the whole file without such a check.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(cache or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    with contextlib.suppress(FileNotFoundError):
        open_regular(folder / "refs" / revision, ConfigError, MAX_REF_BYTES).close()


def _hub_errors() -> tuple[type[Exception], ...]:
    """Return the classes of the errors that huggingface_hub raises if it fails.

    Its own errors and those of requests are OSError. Newer versions use httpx and httpx2, whose errors derive from an
    HTTPError. RuntimeError means that a download by hf_xet stopped early. ValueError means that an answer is not JSON,
    for example a login page.
    """
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    return HTTPError, OSError, RuntimeError, ValueError


def _explain(error: Exception, repo: str, revision: str | None) -> str:
    """Return the meaning of an error of huggingface_hub, and the remedy, in one line."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why the hub could not be reached
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated. Ask for access on its page on the hub, then pass token= or set HF_TOKEN."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{repo} is neither a local folder nor a hub repo that may be read. Check the name; "
            "for a private repo pass token= or set HF_TOKEN."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision}. Give one of its branches, tags or commits."
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        at = f" at revision {revision}" if revision else ""
        return (
            f"{repo}{at} is not in the cache, and local_files_only or HF_HUB_OFFLINE forbids to fetch it. "
            f"Run `minibert download {repo}` with a network, or unset them."
        )
    return (
        f"{repo} could not be fetched: {type(error).__name__}: {' '.join(str(error).split())}. "
        "Check the network and HF_ENDPOINT, or give a local folder."
    )
