"""From a model's name to a local folder: which repo, which files, and what is said when it fails."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from minibert.errors import ConfigError, HubError
from minibert.files.hub import module_folders, needed_files, repo_id, resolve

_spec = importlib.util.spec_from_file_location("fake_hub", Path(__file__).with_name("fake_hub.py"))
fake_hub = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_hub)

CONFIGS = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"]
CLUTTER = [
    ".gitattributes",
    "README.md",
    "data_config.json",
    "flax_model.msgpack",
    "onnx/config.json",
    "onnx/model.onnx",
    "openvino/openvino_model.bin",
    "openvino/openvino_model.xml",
    "rust_model.ot",
    "tf_model.h5",
    "train_script.py",
]

# ---------------------------------------------------------------- names and paths


def test_folder_is_returned_resolved(tmp_path, monkeypatch):
    """A folder is its own answer, as an absolute path (L2)."""
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)

    assert resolve("model") == (tmp_path / "model").resolve()


def test_folder_may_be_a_path_object(tmp_path):
    """A folder may be given as a Path."""
    assert resolve(tmp_path) == tmp_path.resolve()


def test_folder_takes_neither_network_nor_huggingface_hub(tmp_path):
    """A folder is resolved without a socket and without importing huggingface_hub."""
    script = """
import socket, sys
def refuse(*_):
    raise AssertionError("a socket was opened")
socket.socket.__init__ = refuse
from minibert.files.hub import resolve
resolve(sys.argv[1])
print("huggingface_hub" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "False"


def test_file_is_refused(tmp_path):
    """A file is not a model, and the message says to give its folder (L2)."""
    file = tmp_path / "model.safetensors"
    file.touch()

    with pytest.raises(NotADirectoryError, match=r"model\.safetensors is a file\. Give the folder"):
        resolve(file)


@pytest.mark.parametrize(
    "name",
    ["a/b/c", "/nowhere", "./model", "../model", ".model", "~/model", "models/", "models\\bert", "C:\\bert"],
)
def test_missing_path_is_refused(name):
    """What looks like a path is not asked of the hub, and the message names it (L2)."""
    with pytest.raises(FileNotFoundError) as caught:
        resolve(name)

    assert str(caught.value).endswith(f"there is no folder {name}.")


def test_empty_name_is_refused():
    """The empty string is not the current folder."""
    with pytest.raises(ValueError, match="received an empty string"):
        resolve("")


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("bert-base-uncased", "bert-base-uncased"),
        ("BERT-Base-Uncased", "BERT-Base-Uncased"),
        ("bert-large-cased-whole-word-masking", "bert-large-cased-whole-word-masking"),
        ("bert-base-nli-mean-tokens", "sentence-transformers/bert-base-nli-mean-tokens"),
        ("BAAI/bge-small-en", "BAAI/bge-small-en"),
    ],
)
def test_repo_of_a_name(name, repo):
    """A name without "/" is sentence-transformers', unless it is an old BERT's (L2)."""
    assert repo_id(name) == repo


@pytest.mark.parametrize("token", ["", "hf_secret\n", "hf secret", "hf_sécret"])
def test_token_that_cannot_be_sent_is_refused_unseen(token):
    """A token that no header can hold is refused, and the message does not show it."""
    with pytest.raises(ValueError, match="token must be printable ASCII") as caught:
        resolve("organisation/model", token=token)

    assert "hf" not in str(caught.value)


# ---------------------------------------------------------------- which files


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        pytest.param(["model.safetensors", "pytorch_model.bin"], ["model.safetensors"], id="safetensors before bin"),
        pytest.param(
            ["model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors"],
            ["model.safetensors"],
            id="whole before sharded",
        ),
        pytest.param(
            [
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "pytorch_model.bin",
            ],
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ],
            id="sharded safetensors before bin",
        ),
        pytest.param(["pytorch_model.bin"], ["pytorch_model.bin"], id="bin"),
        pytest.param(
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
            ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
            id="sharded bin",
        ),
        pytest.param(
            ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin"], ["pytorch_model.bin"], id="stray shard"
        ),
        pytest.param(["model.fp16.safetensors", "training_args.bin"], [], id="other weights"),
    ],
)
def test_weights_of_one_kind(present, chosen):
    """Of the weights, one kind is needed: safetensors before pickle, whole before sharded (W1)."""
    assert needed_files([*CONFIGS, *present], [""]) == sorted([*CONFIGS, *chosen])


def test_clutter_is_not_needed():
    """Other frameworks' weights, exports, training files and the README are not needed."""
    assert needed_files([*CLUTTER, *CONFIGS, "model.safetensors"], [""]) == sorted([*CONFIGS, "model.safetensors"])


def test_configuration_at_the_root_is_needed():
    """Every file that configures the pipeline, the transformer or the tokenizer is needed."""
    files = [
        "added_tokens.json",
        "config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "sentence_bert_config.json",
        "sentence_xlm-roberta_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]

    assert needed_files(files, [""]) == files


def test_files_of_the_named_folders_are_needed():
    """Folders count because modules.json names them, whatever their names are (L4)."""
    inside = ["head/config.json", "head/pytorch_model.bin", "pool/config.json", "pool/lstm_config.json"]
    outside = [
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "head/old/config.json",
        "headless/config.json",
    ]

    assert needed_files([*inside, *outside], ["", "pool", "head"]) == inside


def test_each_module_has_its_own_kind_of_weights():
    """A safetensors file in one folder does not replace a pickle in another."""
    listing = ["1_Dense/pytorch_model.bin", "model.safetensors", "pytorch_model.bin"]

    assert needed_files(listing, ["", "1_Dense"]) == ["1_Dense/pytorch_model.bin", "model.safetensors"]


def test_transformer_in_a_folder():
    """In the old layout, the weights are those of 0_Transformer; a copy at the root is not needed."""
    listing = [
        "0_Transformer/model.safetensors",
        "0_Transformer/vocab.txt",
        "config.json",
        "model.safetensors",
    ]

    assert needed_files(listing, ["0_Transformer"]) == [
        "0_Transformer/model.safetensors",
        "0_Transformer/vocab.txt",
        "config.json",
    ]


@pytest.mark.parametrize("folder", ["1_Pooling", "1_Pooling/", "./1_Pooling"])
def test_spelling_of_a_folder(folder):
    """A module's path may end with "/" or start with "./"."""
    assert needed_files(["1_Pooling/config.json"], [folder]) == ["1_Pooling/config.json"]


def test_module_folders(tmp_path):
    """The folders of a modules.json are its paths, in order; the root is ""."""
    file = tmp_path / "modules.json"
    file.write_text('[{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}]')

    assert module_folders(file) == ["", "1_Pooling"]


@pytest.mark.parametrize(
    "path",
    [
        '"../other"',
        '"a/../../b"',
        '"/etc"',
        '"C:\\\\x"',
        '"a\\\\..\\\\b"',
        '"\\\\\\\\host\\\\share"',
        "null",
        "1",
    ],
)
def test_module_outside_the_repo_is_refused(tmp_path, path):
    """A module's path that is absolute or has ".." is refused, in POSIX and in Windows spelling (L4)."""
    file = tmp_path / "modules.json"
    file.write_text(f'[{{"path": {path}}}]')

    with pytest.raises(ConfigError, match='each module must have a "path" inside the repo'):
        module_folders(file)


@pytest.mark.parametrize("content", ["[1]", "[{}]", "{}", "not JSON"])
def test_malformed_modules_json_is_refused(tmp_path, content):
    """A modules.json that is not a list of objects with paths is a ConfigError that names the file."""
    file = tmp_path / "modules.json"
    file.write_text(content)

    with pytest.raises(ConfigError, match=r"modules\.json"):
        module_folders(file)


# ---------------------------------------------------------------- against a hub on the loopback interface

# huggingface_hub reads its environment when it is imported: each environment takes a process.
CLIENT = """
import json, sys, traceback
from minibert.errors import MinibertError
from minibert.files.hub import resolve
answers = []
for arguments in json.load(sys.stdin):
    try:
        answers.append({"folder": str(resolve(**arguments))})
    except (MinibertError, ValueError) as error:
        answers.append({
            "error": type(error).__name__,
            "message": str(error),
            "cause": type(error.__cause__).__name__,
            "traceback": traceback.format_exc(),
        })
print(json.dumps(answers))
"""

FETCHED = sorted([*CONFIGS, "1_[Pooling]/config.json", "model.safetensors", "modules.json"])
TINY = {name: name.encode() for name in [*CLUTTER, *FETCHED, "pytorch_model.bin", "1_P/config.json"]}
TINY["modules.json"] = json.dumps([{"path": ""}, {"path": "1_[Pooling]"}]).encode()
OLDER = {"config.json": b"older", "pytorch_model.bin": b"older"}


class Answer(NamedTuple):
    """What one call of resolve came to: a folder, or an error."""

    folder: str | None = None
    error: str | None = None
    message: str = ""
    cause: str | None = None
    traceback: str = ""


class Session(NamedTuple):
    """What the calls of one process came to, and what the hub was asked meanwhile."""

    answers: list[Answer]
    requests: list

    @property
    def folder(self) -> Path:
        """The folder that the only call returned."""
        (answer,) = self.answers
        assert answer.folder, answer.traceback
        return Path(answer.folder)


def resolve_in_process(hub, home, *calls, **environment) -> Session:
    """Resolve in a process of its own, whose hub is ``hub`` and whose cache is under ``home``."""
    foreign = ("HF_", "HUGGING", "SENTENCE_TRANSFORMERS_", "TRANSFORMERS_", "XDG_")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(foreign) and "proxy" not in k.lower()}
    ours = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    before = len(hub.requests)
    ran = subprocess.run(
        [sys.executable, "-c", CLIENT],
        input=json.dumps(calls),
        env={**clean, **ours, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return Session([Answer(**answer) for answer in json.loads(ran.stdout)], hub.requests[before:])


def files_under(folder):
    """Return the paths of the files under a folder, relative to it, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def hub():
    """Return a running hub with a usable repo and some that are not."""
    with fake_hub.serve() as hub:
        hub.add("sentence-transformers/tiny", {"main": TINY, "v1": OLDER})
        hub.add("organisation/private", {"main": TINY}, token="hf_secret")  # noqa: S106
        hub.add("organisation/gated", {"main": TINY}, refusal=fake_hub.GATED)
        hub.add("organisation/disabled", {"main": TINY}, refusal=fake_hub.DISABLED)
        hub.add("organisation/words", {"main": {"README.md": b"no model"}})
        hub.add("organisation/hostile", {"main": {"modules.json": b'[{"path": "../../other"}]'}})
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return the folder of the cache that ``online`` fills."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(hub, home):
    """Return the session that fetched the usable repo by its short name."""
    return resolve_in_process(hub, home, {"model_name_or_path": "tiny"})


@pytest.fixture(scope="module")
def refusals(hub, tmp_path_factory):
    """Return the answers to calls that must fail, by what is wrong with them."""
    calls = {
        "missing": {"model_name_or_path": "nowhere"},
        "private": {"model_name_or_path": "organisation/private", "token": "hf_wrong"},
        "gated": {"model_name_or_path": "organisation/gated"},
        "revision": {"model_name_or_path": "tiny", "revision": "v9"},
        "not cached": {"model_name_or_path": "organisation/other", "local_files_only": True},
        "malformed": {"model_name_or_path": "organisation/a--b"},
        "disabled": {"model_name_or_path": "organisation/disabled"},
        "words": {"model_name_or_path": "organisation/words"},
        "hostile": {"model_name_or_path": "organisation/hostile"},
    }
    session = resolve_in_process(hub, tmp_path_factory.mktemp("refusals"), *calls.values())
    return dict(zip(calls, session.answers, strict=True))


def test_only_needed_files_are_asked_for(online):
    """Of a cluttered repo, the hub is asked for the needed files and no other."""
    asked = {request.path.split("/", 5)[5] for request in online.requests if "/resolve/" in request.path}

    assert sorted(asked) == FETCHED


def test_snapshot_holds_the_needed_files(online):
    """The folder holds exactly the needed files; brackets in a folder's name are no pattern."""
    assert files_under(online.folder) == FETCHED


def test_snapshot_holds_what_the_hub_serves(online):
    """A large file, which the hub serves from elsewhere, arrives with its bytes."""
    assert (online.folder / "model.safetensors").read_bytes() == TINY["model.safetensors"]


def test_short_name_is_looked_up_at_sentence_transformers(online):
    """A name without "/" asks for sentence-transformers/NAME and for nothing else."""
    assert all("/sentence-transformers/tiny" in request.path for request in online.requests)


def test_cached_files_are_not_fetched_again(hub, home, online):
    """A second call asks what the revision is, and downloads nothing."""
    again = resolve_in_process(hub, home, {"model_name_or_path": "tiny"})

    assert again.folder == online.folder
    assert all(request.path.startswith("/api/") for request in again.requests)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [({"local_files_only": True}, {}), ({}, {"HF_HUB_OFFLINE": "1"})],
    ids=["local_files_only", "HF_HUB_OFFLINE"],
)
def test_offline_call_gives_the_cached_folder(hub, home, online, arguments, environment):
    """Offline, the cached snapshot is the answer and the hub is not asked at all."""
    offline = resolve_in_process(hub, home, {"model_name_or_path": "tiny", **arguments}, **environment)

    assert offline.folder == online.folder
    assert offline.requests == []


@pytest.mark.parametrize("broken", ["/broken/503", "/broken/200"], ids=["hub down", "login page"])
def test_cached_folder_serves_when_the_hub_does_not(hub, home, online, broken):
    """Where the hub does not answer as a hub, the cached snapshot is the answer."""
    cached = resolve_in_process(hub, home, {"model_name_or_path": "tiny"}, HF_ENDPOINT=hub.url + broken)

    assert cached.folder == online.folder


def test_revision_is_the_one_fetched(hub, tmp_path):
    """Of a revision, the files are chosen and fetched that it holds."""
    session = resolve_in_process(hub, tmp_path, {"model_name_or_path": "tiny", "revision": "v1"})

    assert files_under(session.folder) == sorted(OLDER)
    assert (session.folder / "config.json").read_bytes() == OLDER["config.json"]


def test_revision_that_is_gone_is_not_served_from_the_cache(hub, tmp_path):
    """A revision that the hub knows no longer is refused, though it is cached."""
    hub.add("organisation/moving", {"v1": OLDER})
    call = {"model_name_or_path": "organisation/moving", "revision": "v1"}
    before = resolve_in_process(hub, tmp_path, call)
    hub.add("organisation/moving", {"v2": OLDER})
    (after,) = resolve_in_process(hub, tmp_path, call).answers

    assert before.folder.is_dir()
    assert "has no revision v1" in after.message


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [({"token": "hf_secret"}, {}), ({}, {"HF_TOKEN": "hf_secret"})],
    ids=["token", "HF_TOKEN"],
)
def test_token_is_sent(hub, tmp_path, arguments, environment):
    """A private repo can be read with its token, which every request carries."""
    call = {"model_name_or_path": "organisation/private", **arguments}
    session = resolve_in_process(hub, tmp_path, call, **environment)

    assert files_under(session.folder) == FETCHED
    assert {request.authorization for request in session.requests} == {"Bearer hf_secret"}


def test_sentence_transformers_home_is_the_cache(hub, tmp_path):
    """Without cache_folder, the cache is in SENTENCE_TRANSFORMERS_HOME (L1)."""
    ours, other = tmp_path / "ours", tmp_path / "other"
    environment = {"SENTENCE_TRANSFORMERS_HOME": str(ours)}
    session = resolve_in_process(hub, other, {"model_name_or_path": "tiny"}, **environment)

    assert session.folder.is_relative_to(ours)


def test_cache_folder_beats_the_environment(hub, tmp_path):
    """cache_folder holds everything that is fetched, whatever the environment says."""
    ours, other = tmp_path / "ours", tmp_path / "other"
    call = {"model_name_or_path": "tiny", "cache_folder": str(ours)}
    session = resolve_in_process(hub, other, call, SENTENCE_TRANSFORMERS_HOME=str(other))

    assert session.folder.is_relative_to(ours)
    assert not other.exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    {
        "missing": (
            "sentence-transformers/nowhere is neither a local folder nor a hub repo that may be read. "
            "Check the name; for a private repo pass token= or set HF_TOKEN."
        ),
        "private": (
            "organisation/private is neither a local folder nor a hub repo that may be read. "
            "Check the name; for a private repo pass token= or set HF_TOKEN."
        ),
        "gated": (
            "organisation/gated is gated. Ask for access on its page on the hub, then pass token= or set HF_TOKEN."
        ),
        "revision": ("sentence-transformers/tiny has no revision v9. Give one of its branches, tags or commits."),
        "not cached": (
            "organisation/other is not in the cache, and local_files_only or HF_HUB_OFFLINE forbids to "
            "fetch it. Run `minibert download organisation/other` with a network, or unset them."
        ),
        "words": ("organisation/words holds no file of a BERT model: neither config.json nor weights nor a tokenizer."),
    }.items(),
)
def test_refusal_says_what_to_do(refusals, wrong, message):
    """A repo that cannot be had is a HubError that names it and the remedy, in one line."""
    assert (refusals[wrong].error, refusals[wrong].message) == ("HubError", message)


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ("missing", "RepositoryNotFoundError"),
        ("gated", "GatedRepoError"),
        ("revision", "RevisionNotFoundError"),
        ("not cached", "LocalEntryNotFoundError"),
    ],
)
def test_refusal_keeps_its_cause(refusals, wrong, cause):
    """The error of huggingface_hub is kept as the cause."""
    assert refusals[wrong].cause == cause


def test_other_refusal_is_told_as_the_hub_told_it(refusals):
    """Where files are refused after the listing, the message is the hub's reason, in one line."""
    assert refusals["disabled"].message.startswith("organisation/disabled could not be fetched: ")
    assert "Access to this resource is disabled" in refusals["disabled"].message
    assert "\n" not in refusals["disabled"].message


def test_refusal_does_not_show_the_token(refusals):
    """A refused token is in no line of the traceback."""
    assert "hf_wrong" not in refusals["private"].traceback


def test_malformed_repo_id_is_a_value_error(refusals):
    """A name that no repo can have is a ValueError that shows it."""
    assert refusals["malformed"].error == "ValueError"
    assert "organisation/a--b is neither" in refusals["malformed"].message


def test_hostile_modules_json_is_refused(refusals):
    """A fetched modules.json that points out of the repo is a ConfigError, not followed."""
    assert refusals["hostile"].error == "ConfigError"


def test_offline_without_a_cache_says_what_to_do(hub, tmp_path):
    """With HF_HUB_OFFLINE and nothing cached, the message names the variable and the download command."""
    call = {"model_name_or_path": "tiny", "revision": "v1"}
    (answer,) = resolve_in_process(hub, tmp_path, call, HF_HUB_OFFLINE="1").answers

    assert answer.message == (
        "sentence-transformers/tiny at revision v1 is not in the cache, and local_files_only or "
        "HF_HUB_OFFLINE forbids to fetch it. Run `minibert download sentence-transformers/tiny` with a "
        "network, or unset them."
    )


def test_hub_that_cannot_be_reached_is_a_hub_error(hub, tmp_path):
    """A refused connection is a HubError that says to check the network."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    call = {"model_name_or_path": "tiny"}
    (answer,) = resolve_in_process(hub, tmp_path, call, HF_ENDPOINT=f"http://127.0.0.1:{port}").answers

    assert answer.error == "HubError"
    assert answer.message.startswith("sentence-transformers/tiny could not be fetched: ")
    assert answer.message.endswith(". Check the network and HF_ENDPOINT, or give a local folder.")


def test_hub_that_never_answers_is_a_hub_error(hub, tmp_path):
    """A hub that takes the request and says nothing is given up, after the library's own timeout."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        call = {"model_name_or_path": "tiny"}
        environment = {"HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}", "HF_HUB_ETAG_TIMEOUT": "1"}
        (answer,) = resolve_in_process(hub, tmp_path, call, **environment).answers

    assert answer.error == "HubError"
    assert "could not be fetched: " in answer.message


def test_broken_xet_download_is_a_hub_error(monkeypatch):
    """The RuntimeError by which hf_xet tells that a download broke off is a HubError."""

    def break_off(*_, **__):
        raise RuntimeError("Data processing error: Timer expired")

    monkeypatch.setattr("huggingface_hub.HfApi.snapshot_download", break_off)

    with pytest.raises(HubError, match="organisation/model could not be fetched: RuntimeError: Data processing"):
        resolve("organisation/model", local_files_only=True)


def test_login_page_is_a_hub_error(hub, tmp_path):
    """A network that answers with its own page, and nothing cached, is a HubError."""
    call = {"model_name_or_path": "tiny"}
    (answer,) = resolve_in_process(hub, tmp_path, call, HF_ENDPOINT=hub.url + "/broken/200").answers

    assert answer.error == "HubError"
