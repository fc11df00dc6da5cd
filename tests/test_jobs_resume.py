"""Jobs that stop at any moment go on to the same bytes; other jobs are refused; damage is found."""

import errno
import io
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from cli_support import BUFFERED, listing
from jobs_support import TEXTS, command, content, embed, write_records, write_texts
from support import ROOT, edit_json, needs

import minibert
from minibert import SentenceEncoder
from minibert.cli import main
from minibert.errors import JobError
from minibert.jobs import embed_files, folder, inputs, run, shards, verify

#: Runs a command line, and kills its own process before a call of a function.
KILLED = """
import os, signal, sys
from pathlib import Path
from minibert.cli import main
from minibert.jobs import folder, shards

places = {"os": os, "Path": Path, "Folder": folder.Folder, "_Npy": shards._Npy, "_Parquet": shards._Parquet}
place, name, wanted = sys.argv[1:4]
function, calls = getattr(places[place], name), 0

def killing(*arguments, **options):
    global calls
    calls += 1
    if calls == int(wanted):
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments, **options)

setattr(places[place], name, killing)
sys.exit(main(sys.argv[4:]))
"""


def start(code, *arguments, **options):
    """Start Python code in a process of its own."""
    environment = {**BUFFERED, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    command_line = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True, env=environment, **options)


@pytest.fixture
def texts(here):
    """Write an input of 25 rows, which are three shards."""
    return write_texts(here / "a.txt")


@pytest.fixture
def undisturbed(repo, here, texts):
    """Return the files of a job that was not stopped."""
    assert embed(repo, texts, format="npy", output="undisturbed") == 0
    return content(here / "undisturbed")


# --- kill -9, a full disk, signals -----------------------------------------------------------------------------------

#: Moments: before the first file of the job, before its name, inside a shard, between two files of a shard, before the
#: sidecar, before the folder is synced after it, and before the manifest.
MOMENTS = [
    ("os", "fsync", 1),
    ("Path", "replace", 1),
    ("_Npy", "write", 2),
    ("Path", "replace", 3),
    ("Folder", "add", 2),
    ("os", "fsync", 8),
    ("Folder", "finish", 1),
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: " ".join(map(str, moment)))
def test_kill(repo, here, texts, undisturbed, moment):
    """After kill -9 at each of these moments, the same command gives the same bytes, and no other file is left."""
    killed = start(KILLED, *moment, *command(repo, texts, format="npy"))
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert listing(here / "out") != sorted(undisturbed)

    assert embed(repo, texts, format="npy") == 0
    assert content(here / "out") == undisturbed
    assert main(["embed", "--verify", "out"]) == 0


def test_kill_parquet(repo, here):
    """The same holds for Parquet with columns, ids and skipped rows. Complete shards are not computed again."""
    needs("pyarrow")
    arguments = [write_records(here / "a.jsonl", [*TEXTS[:5], None, *TEXTS[5:]], n=int, x=lambda i: i / 7)]
    options = {"id_column": "key", "on_error": "skip", "compression": "zstd"}
    assert embed(repo, *arguments, output="undisturbed", **options) == 0
    killed = start(KILLED, "_Parquet", "write", 3, *command(repo, *arguments, **options))
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    times = {path.name: path.stat().st_mtime_ns for path in (here / "out").glob("*.parquet")}
    assert len(times) == 2

    assert embed(repo, *arguments, **options) == 0
    assert content(here / "out") == content(here / "undisturbed")
    assert all((here / "out" / name).stat().st_mtime_ns == time for name, time in times.items())


def test_full_disk(repo, here, capsys):
    """A disk that is full gives one line that names the file. What was complete stays, and the job goes on."""
    texts = write_texts(here / "a.txt", [*TEXTS, *(f"{text} and more" for text in TEXTS * 8)])
    assert embed(repo, texts, format="npy", output="undisturbed", shard_rows=100) == 0
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))\n"
    code += "import sys; from minibert.cli import main; sys.exit(main(sys.argv[1:]))"
    full = start(code, *command(repo, texts, format="npy", shard_rows=100))
    _, error = full.communicate(timeout=60)
    assert full.returncode == 1
    assert error.startswith("minibert: error: out/part-00000-of-00003.")
    assert error.endswith(" cannot be written: File too large. The job can go on later.\n")
    assert error.count("\n") == 1
    assert listing(here / "out") == ["_job.json"]

    assert embed(repo, texts, format="npy", shard_rows=100) == 0
    assert content(here / "out") == content(here / "undisturbed")


def test_full_disk_in_parquet(repo, here, capsys, monkeypatch):
    """The same holds where pyarrow writes: it raises no other error, and prints nothing."""
    needs("pyarrow")
    texts = write_texts(here / "a.txt")
    assert embed(repo, texts, output="undisturbed") == 0
    capsys.readouterr()
    held = folder._held

    def full(path):
        file = held(path)
        return io.BufferedRandom(Full(file.detach())) if "00001" in path.name else file

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_held", full)
        assert embed(repo, texts) == 1
    assert capsys.readouterr().err == (
        "minibert: error: out/part-00001-of-00003.parquet cannot be written: No space left on device. "
        "The job can go on later.\n"
    )
    assert embed(repo, texts) == 0
    assert content(here / "out") == content(here / "undisturbed")


def test_every_write_counts(repo, here, texts, undisturbed, capsys, monkeypatch):
    """A chunk that cannot be written stops the shard, also if later chunks could be written."""
    write, calls = shards._Npy.write, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "CHUNK_ROWS", 3)
        patch.setattr(shards._Npy, "write", failing)
        assert embed(repo, texts, format="npy") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert listing(here / "out") == ["_job.json"]
    assert embed(repo, texts, format="npy") == 0
    assert content(here / "out") == undisturbed


class Full(io.FileIO):
    """A file on a disk that is full after 100 bytes."""

    def __init__(self, file):
        super().__init__(os.dup(file.fileno()), "r+")
        file.close()

    def write(self, data):
        """Write, or fail."""
        if self.tell() + len(data) > 100:
            raise OSError(28, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(repo, here, texts, undisturbed, number):
    """A signal ends the job cleanly: no temporary file is left, the status is that of the signal, the job goes on."""
    code = (
        "import signal, sys, os; from minibert.cli import main; from minibert.jobs import shards\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # tests in the background ignore it
        "write = shards._Npy.write\n"
        "def slow(*a):\n    write(*a); os.kill(os.getpid(), int(sys.argv[1]))\n"
        "shards._Npy.write = slow; sys.exit(main(sys.argv[2:]))"
    )
    stopped = start(code, int(number), *command(repo, texts, format="npy"))
    _, error = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + number, error
    assert "Traceback" not in error
    assert not list((here / "out").glob("*.tmp"))
    assert not list((here / "out").glob(".*"))

    assert embed(repo, texts, format="npy") == 0
    assert content(here / "out") == undisturbed


@pytest.mark.skipif(not (ROOT / "tools").is_dir(), reason="the files of a checkout are not there")
def test_record():
    """The page states what tools/kill_jobs.py and tools/job_scale.py have measured."""
    record = json.loads((ROOT / "tools" / "results" / "jobs-killed.json").read_text("utf-8"))
    page = " ".join((ROOT / "docs" / "jobs.md").read_text("utf-8").split())

    assert len(record["killed"]) == record["killed_runs"]
    assert all(run["moments"] for run in record["killed"])
    wrong = [run for run in record["killed"] + record["filled"] if run["differences"] or not run.get("clean", True)]
    counts = f"[{len(record['killed'])} killed jobs and {len(record['filled'])} full disks]"
    assert counts in page
    assert f"(../tools/results/jobs-killed.json), {len(wrong)} gave another byte." in page

    scale = json.loads((ROOT / "tools" / "results" / "jobs-scale.json").read_text("utf-8"))
    (job,) = (run for run in scale["runs"] if run["what"] == "job")
    assert f"A job of {scale['rows']:,} short texts in Parquet took {job['seconds']:.1f} s" in page
    assert f"{scale['median_ratio']:.2f} of the speed of `encode_stream` alone" in page
    growth = max(job["tenths_mb"]) - job["tenths_mb"][0]
    assert f"its memory grew by {growth:.1f} MB" in page


# --- other jobs ------------------------------------------------------------------------------------------------------


def changed_model(repo):
    """Change a file of the model."""
    edit_json(repo / "config_sentence_transformers.json", prompts={"q": ""})


CHANGES = {
    "a text": (lambda _: write_texts(Path("a.txt"), ["a", *TEXTS[1:]]), {}, "input file 1: expected "),
    "a text of the same size": (
        lambda _: write_texts(Path("a.txt"), [TEXTS[0].replace("man", "cat"), *TEXTS[1:]]),
        {},
        "input file 1: expected ",
    ),
    "a file more": (
        lambda _: write_texts(Path("b.txt")),
        {"more": ["b.txt"]},
        "input files: expected 1, found 2",
    ),
    "the model": (changed_model, {}, "fingerprint: expected "),
    "the prompt": (None, {"prompt": "the "}, 'prompt: expected "", found "the "'),
    "normalize": (None, {"more": ["--normalize"]}, "normalize: expected false, found true"),
    "dimensions": (None, {"truncate_dim": 3}, "dimensions: expected 16, found 3"),
    "the precision": (None, {"precision": "binary"}, 'precision: expected "float32", found "binary"'),
    "the dtype": (None, {"dtype": "float64"}, 'dtype: expected "float32", found "float64"'),
    "the size of shards": (None, {"shard_rows": 11}, "shard_rows: expected 10, found 11"),
    "columns": (None, {"keep": "text"}, 'keep: expected [], found ["text"]'),
    "skipping": (None, {"on_error": "skip"}, 'on_error: expected "error", found "skip"'),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_job(repo, here, texts, undisturbed, capsys, name):
    """Another input, model or setting is refused, with what differs; nothing changes."""
    change, options, message = CHANGES[name]
    if change is not None:
        change(repo)
    capsys.readouterr()

    options = {"format": "npy", "output": "undisturbed", **options}
    assert embed(repo, texts.name, *options.pop("more", []), **options) == 1
    error = capsys.readouterr().err
    assert error.startswith("minibert: error: undisturbed/_job.json is the plan of another job: ")
    assert message in error
    assert error.count("\n") == 1
    assert content(here / "undisturbed") == undisturbed


def test_versions_and_kernels(repo, here, texts, undisturbed, capsys, monkeypatch):
    """Another version is refused. All native kernels count as one, but numpy is something else."""
    versions = run._versions
    with monkeypatch.context() as patch:
        patch.setattr(run, "_versions", lambda *_: {**versions(*_), "minibert": "9", "BLAS": "madeup"})
        assert embed(repo, texts, format="npy", output="undisturbed") == 1
    assert 'minibert: expected "' in capsys.readouterr().err
    own = SentenceEncoder(repo).kernels
    plan = json.loads((here / "undisturbed" / "_job.json").read_text())["plan"]
    assert plan["model"]["kernels"] == ("numpy" if own == "numpy" else "native")
    monkeypatch.setenv("MINIBERT_KERNELS", "numpy")
    assert embed(repo, texts, format="npy", output="undisturbed") == int(own != "numpy")
    assert ('kernels: expected "native", found "numpy"' in capsys.readouterr().err) == (own != "numpy")
    assert embed(repo, texts, format="npy", output="numpy") == 0
    plan = json.loads((here / "numpy" / "_job.json").read_text())["plan"]
    assert plan["model"]["kernels"] == "numpy"
    assert {"numpy", "BLAS"} < plan["versions"].keys()


@pytest.mark.parametrize("options", [{"shard_rows": 11}, {"keep": "text"}])
def test_input_that_is_the_same(repo, here, texts, undisturbed, capsys, options):
    """Facts of a file that follow from an option are not named as a change of the file."""
    assert embed(repo, texts, **{"format": "npy", "output": "undisturbed", **options}) == 1
    assert "input file" not in capsys.readouterr().err


def test_moved_input(repo, here, texts, undisturbed, capsys):
    """Where the files are does not count. A file whose hash is known is not checked again."""
    (here / "moved").mkdir()
    texts.rename(here / "moved" / "b.txt")
    (here / "undisturbed" / "_part-00001-of-00003.json").unlink()
    assert embed(repo, "moved/b.txt", format="npy", output="undisturbed") == 0
    assert "15 of 25 rows are already done" in capsys.readouterr().err
    assert content(here / "undisturbed") == undisturbed


def test_damaged_shards(repo, here, texts, undisturbed):
    """A shard with a file of another size, without a file, or with a damaged sidecar is computed again."""
    result = here / "undisturbed"
    (result / "part-00000-of-00003.npy").write_bytes(b"short")
    (result / "part-00001-of-00003.jsonl").unlink()
    (result / "_part-00002-of-00003.json").write_text("{}")
    assert embed(repo, texts, format="npy", output="undisturbed") == 0
    assert content(result) == undisturbed


def test_shards_of_another_job(repo, here, texts, undisturbed):
    """A shard counts only if its sidecar names the same plan, even if all sizes fit."""
    assert embed(repo, texts, "--normalize", format="npy") == 0
    for path in (here / "out").glob("*part-00001-*"):
        (here / "undisturbed" / path.name).write_bytes(path.read_bytes())
    assert embed(repo, texts, format="npy", output="undisturbed") == 0
    assert content(here / "undisturbed") == undisturbed


def test_settings_of_the_encoder(repo, here, texts):
    """In Python, the encoder's settings count, and the plan names the versions of what computes."""
    encoder = SentenceEncoder(repo)
    embed_files(encoder, texts, "out", output_format="npy")
    plan = json.loads((here / "out" / "_job.json").read_text())["plan"]
    expected = {"minibert": minibert.__version__, "tokenizers": tokenizers.__version__}
    assert expected.items() <= plan["versions"].items()
    assert plan["model"]["device"] == "cpu"
    for name, value in (("max_seq_length", 8), ("include_prompt", False)):
        other = SentenceEncoder(repo, **{name: value})
        with pytest.raises(JobError, match=f"{name}: expected .*, found "):
            embed_files(other, texts, "out", output_format="npy")


def test_damaged_plan(repo, here, texts, undisturbed, capsys):
    """A damaged _job.json is refused."""
    path = here / "undisturbed" / "_job.json"
    path.write_text(path.read_text().replace('"rows": 25', '"rows": 26'))
    assert embed(repo, texts, format="npy", output="undisturbed") == 1
    assert "_job.json must be as this version of minibert writes it; it is damaged" in capsys.readouterr().err


def test_input_that_changes_meanwhile(repo, here, texts, capsys, monkeypatch):
    """A file that changes after it was checked is an error: its rows would not be those of the plan."""
    agree = folder.Folder.agree

    def change(self, *arguments):
        agree(self, *arguments)
        with texts.open("a") as file:
            file.write("more\n")

    monkeypatch.setattr(folder.Folder, "agree", change)
    assert embed(repo, texts.name, format="npy") == 1
    assert "a.txt must not change while a job reads it; it did" in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["_scan_lines", "_text_of"])
def test_input_that_changes_while_it_is_read(repo, here, texts, capsys, monkeypatch, moment):
    """A change between hash and check gives no plan. A change inside the last shard gives no shard."""
    function, calls = getattr(inputs, moment), []

    def change(*arguments):
        calls.append(arguments)
        if len(calls) == (1 if moment == "_scan_lines" else 2 * 25):  # the last row of the second time
            with texts.open("a") as file:
                file.write("more\n")
        return function(*arguments)

    monkeypatch.setattr(inputs, moment, change)
    assert embed(repo, texts.name, format="npy", shard_rows=100) == 1
    assert "a.txt must not change while a job reads it; it did" in capsys.readouterr().err
    assert not (here / "out").exists() or listing(here / "out") == ["_job.json"]
    assert (here / "out").exists() == (moment == "_text_of")


def test_rows_are_not_lost(repo, here, texts, capsys, monkeypatch):
    """A file with fewer rows than it had is an error, even if its size and its time are as before."""
    agree, status = folder.Folder.agree, texts.stat()

    def change(self, *arguments):
        agree(self, *arguments)
        texts.write_bytes(texts.read_bytes().replace(b"\n", b" ", 20))
        os.utime(texts, ns=(status.st_atime_ns, status.st_mtime_ns))

    monkeypatch.setattr(folder.Folder, "agree", change)
    assert embed(repo, texts.name, format="npy", shard_rows=100) == 1
    assert "a.txt must have 25 rows, as when it was checked; it has fewer" in capsys.readouterr().err
    assert listing(here / "out") == ["_job.json"]


# --- several processes -----------------------------------------------------------------------------------------------


def test_parts(repo, here, texts, undisturbed, capsys):
    """Parts in any order give the bytes of one job. The last one writes the manifest."""
    for part in ("3/3", "1/3", "2/3"):
        assert not (here / "out" / "_manifest.json").exists()
        assert embed(repo, texts, format="npy", shards=part) == 0
    assert "part 3/3 is complete; shards of other parts are not yet" in capsys.readouterr().err
    assert content(here / "out") == undisturbed
    assert embed(repo, texts, format="npy", shards="4/4", output="undisturbed") == 0
    assert content(here / "undisturbed") == undisturbed


WAITING = """
import sys
from minibert.cli import main
from minibert.jobs import shards
write = shards._Npy.write
def waiting(*arguments):
    print("writing", file=sys.stderr, flush=True)
    sys.stdin.read()
    write(*arguments)
shards._Npy.write = waiting
sys.exit(main(sys.argv[1:]))
"""


def test_two_at_once(repo, here, texts, undisturbed, capsys):
    """An equal command is refused while a job runs; another part works, and leaves its files alone."""
    first = start(WAITING, *command(repo, texts, format="npy", shards="1/2"), stdin=subprocess.PIPE)
    assert "built-in" not in first.stderr.readline()
    try:
        assert embed(repo, texts, format="npy", shards="1/2") == 1
        assert "another process is running part 1/2 of this job in out" in capsys.readouterr().err
        assert embed(repo, texts, format="npy", shards="2/2") == 0
        left = list((here / "out").glob("*.tmp"))
        assert left
        dead = here / "out" / "part-00000-of-00003.npy.0123abcd.tmp"
        dead.touch()
        other = folder.Folder(here / "out", (1, 3))
        plan = json.loads((here / "out" / "_job.json").read_text())
        other.agree(plan["plan"], plan["shown"])
        assert list((here / "out").glob("*.tmp")) == left
        assert not dead.exists()
    finally:
        _, error = first.communicate("")
    assert first.returncode == 0, error
    assert content(here / "out") == undisturbed


def test_a_name_that_is_removed_before_the_lock(here, monkeypatch):
    """A lock on a file whose name is gone counts for nothing: the name is opened again."""
    flock, calls = folder.fcntl.flock, []

    def removing(file, flags):
        calls.append(flags)
        if len(calls) == 1:
            (here / "name").unlink()
        flock(file, flags)

    monkeypatch.setattr(folder.fcntl, "flock", removing)
    with folder._held(here / "name") as file:
        assert os.path.samestat(os.fstat(file.fileno()), (here / "name").stat())
    assert len(calls) == 2


def test_a_file_is_locked_until_it_has_its_name(here, monkeypatch):
    """No other process can take a file that will be renamed in a moment for one of a dead process."""
    replace, fsync, found = Path.replace, os.fsync, []

    def replacing(self, target):
        found.append(("replace", folder._held(self)))
        return replace(self, target)

    def syncing(file):
        found.append(("fsync", os.fstat(file).st_size if stat.S_ISREG(os.fstat(file).st_mode) else "folder"))
        fsync(file)

    monkeypatch.setattr(Path, "replace", replacing)
    monkeypatch.setattr(os, "fsync", syncing)
    with folder.whole(here / "name") as file:
        file.write(b"content")
    assert found == [("fsync", 7), ("replace", None), ("fsync", "folder")]
    assert (here / "name").read_bytes() == b"content"


def test_parts_that_start_together(repo, here, texts, undisturbed, monkeypatch):
    """Another part can write the plan at any moment. It is not taken for a strange file."""
    iterdir, plan = Path.iterdir, (here / "undisturbed" / "_job.json").read_bytes()

    def writing(self):
        if self.name == "out" and not (self / "_job.json").exists():
            (self / "_job.json").write_bytes(plan)
        return iterdir(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", writing)
        assert embed(repo, texts, format="npy") == 0
    assert content(here / "out") == undisturbed


def test_locks_of_dead_processes(repo, here, texts, undisturbed):
    """A job that ends with another number of parts than it began with leaves no lock file."""
    (here / "undisturbed" / ".part-3-of-8.lock").touch()
    assert embed(repo, texts, format="npy", output="undisturbed") == 0
    assert content(here / "undisturbed") == undisturbed


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_folders_that_cannot_be_synced(repo, here, texts, undisturbed, capsys, monkeypatch, number):
    """Some network file systems sync no folder, which is no error. A disk that fails is one."""
    fsync = os.fsync

    def refused(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(number, "refused")
        fsync(file)

    monkeypatch.setattr(os, "fsync", refused)
    assert embed(repo, texts, format="npy") == int(number == errno.EIO)
    if number == errno.EINVAL:
        assert content(here / "out") == undisturbed
    else:
        assert "out/_job.json cannot be written: refused" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["no module", "no locks"])
def test_without_locks(repo, here, texts, undisturbed, monkeypatch, kind):
    """Correctness does not depend on locks."""

    def refused(*_):
        raise OSError(95, "Operation not supported")

    if kind == "no module":
        monkeypatch.setattr(folder, "fcntl", None)
    else:
        monkeypatch.setattr(folder.fcntl, "flock", refused)
    assert embed(repo, texts, format="npy") == 0
    assert content(here / "out") == undisturbed


# --- verification ----------------------------------------------------------------------------------------------------


def test_verify_finds_every_damage(repo, here, capsys):
    """A flipped bit in any file of a result is found, and the file is named."""
    texts = write_records(here / "a.jsonl", [*TEXTS[:12], None])
    assert embed(repo, texts, format="npy", on_error="skip") == 0
    result = here / "out"
    names = listing(result)
    assert len(names) == 2 + 2 * 3 + 1
    for name in names:
        original = (result / name).read_bytes()
        for position in (0, len(original) // 3, len(original) - 1):
            damaged = bytearray(original)
            damaged[position] ^= 4
            (result / name).write_bytes(damaged)
            capsys.readouterr()
            assert main(["embed", "--verify", "out"]) == 1
            assert name in capsys.readouterr().err
        (result / name).write_bytes(original)
    assert main(["embed", "--verify", "out"]) == 0
    assert capsys.readouterr().out == "out: 2 shards with 12 vectors are as they were written\n"


def test_verify_in_python(here, undisturbed):
    """The function takes a name, too, and returns the manifest."""
    manifest = json.loads((here / "undisturbed" / "_manifest.json").read_text())
    assert verify("undisturbed") == verify(here / "undisturbed") == manifest


def test_verify_what_is_not_complete(repo, here, texts, undisturbed, capsys):
    """A folder without a job, a job without all shards, a missing and a strange file are named."""
    for arguments, message in (
        ([], "must be the folder of a job; it has no _job.json"),
        (["_manifest.json"], "undisturbed is not complete: 3 of 3 shards are"),
        (["_manifest.json", "_part-00001-of-00003.json"], "undisturbed is not complete: 2 of 3 shards are"),
        (["part-00001-of-00003.npy"], "differs from its manifest: part-00001-of-00003.npy. Delete"),
    ):
        result = here / ("undisturbed" if arguments else "none")
        kept = {name: (result / name).read_bytes() for name in arguments}
        for name in arguments:
            (result / name).unlink()
        assert main(["embed", "--verify", result.name]) == 1
        assert message in capsys.readouterr().err
        for name, data in kept.items():
            (result / name).write_bytes(data)
    (here / "undisturbed" / "part-00003-of-00004.npy").touch()
    assert main(["embed", "--verify", "undisturbed"]) == 1
    assert "part-00003-of-00004.npy, which is not in the manifest" in capsys.readouterr().err
