"""The folder of a job: every file in it is whole or absent, and a shard counts only with a sidecar that fits.

Locks keep two processes from doing the same work. No result depends on them.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from minibert.errors import JobError
from minibert.safe.atomic import beside
from minibert.typing import PathLike

try:
    import fcntl
except ImportError:  # Windows: an open file cannot be removed there
    fcntl = None  # type: ignore[assignment]

#: Readers of a folder of Parquet files pass over names that begin with this character: pyarrow, pandas, Spark, Hive.
_HIDDEN = "_"
JOB, MANIFEST = f"{_HIDDEN}job.json", f"{_HIDDEN}manifest.json"
#: The attribute of both that says what they are.
_FORMAT = {"format": "minibert job", "version": 1}


def sha256_of(value: Any) -> str:
    """Return the hash of a JSON value."""
    return hashlib.sha256(_dump(value)).hexdigest()


def _dump(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode("ascii")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Give a new file that becomes ``path`` if the block ends without an exception; else it is removed.

    File and folder are synced to disk. The process holds a lock on the file until it has its name, so that others do
    not remove it.

    Raises:
        OSError: The file cannot be written; the error names ``path``.
    """
    new = beside(path)
    try:
        with _naming(path):
            held = _held(new)
        assert held is not None  # noqa: S101 - a new name
        file = _Output(held.detach(), path)
        try:
            yield file
            with _naming(path):
                file.flush()
                os.fsync(file.fileno())
            if os.name == "nt":  # an open file cannot be renamed
                file.close()
            with _naming(path):
                new.replace(path)
                _sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):  # the disk can still be full
                file.close()
    finally:
        new.unlink(missing_ok=True)


class _Output(io.BufferedRandom):
    """A file whose errors name the file that it becomes."""

    def __init__(self, raw: io.RawIOBase, path: Path) -> None:
        super().__init__(raw)
        self._path = path

    def write(self, data: Any) -> int:
        with _naming(self._path):
            return super().write(data)

    def seek(self, offset: int, whence: int = 0) -> int:  # it also writes what was buffered
        with _naming(self._path):
            return super().seek(offset, whence)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block, such as that of a full disk, name a file."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}. The job can go on later.") from error


def _sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk, where the system can do this."""
    try:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:  # Windows; some network file systems
        if error.errno not in {errno.EACCES, errno.EINVAL, errno.ENOTSUP}:
            raise


def _held(path: Path) -> io.BufferedRandom | None:
    """Open a file, perhaps a new one, and lock it; return None if another process holds the lock."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # a file system without locks
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()  # another process removed the name before the lock


class Folder:
    """The files of a job.

    Attributes:
        path: The folder.
        part: The number of this part of the job, and the number of all parts.
    """

    def __init__(self, path: Path, part: tuple[int, int] = (1, 1)) -> None:
        self.path = path
        self.part = part
        self.job = ""
        self.shards = 0

    @contextlib.contextmanager
    def opened(self, inputs: Iterable[Path]) -> Iterator[None]:
        """Create the folder if necessary, and keep equal commands out during the block.

        Raises:
            JobError: The folder cannot be that of this job, or the same part of the job is running.
            OSError: The folder cannot be created.
        """
        if not self.path.resolve().parent.is_dir():
            raise JobError(f"--output must lie in a folder; there is no folder {self.path.parent}. Create it first.")
        if self.path.exists() and not self.path.is_dir():
            raise JobError(f"--output must be a folder; {self.path} is not. Give another name.")
        for source in inputs:
            if source.resolve().is_relative_to(self.path.resolve()):
                raise JobError(f"--output must not hold an input file; {source} is in it. Give another --output.")
        is_new = not self.path.exists()
        self.path.mkdir(exist_ok=True)
        names = [path.name for path in self.path.iterdir()]  # once: another part can write its plan at this moment
        others = [name for name in names if not name.startswith((".part-", f"{JOB}."))]
        if others and JOB not in names:
            raise JobError(
                f"--output must be empty or a job; {self.path} has {min(others)!r} and no {JOB}. Give another --output."
            )
        number, parts = self.part
        name = self.path / f".part-{number}-of-{parts}.lock"
        lock = _held(name)
        if lock is None:
            what = f"part {number}/{parts} of this job" if parts > 1 else "this job"
            raise JobError(f"another process is running {what} in {self.path}. Wait for it, or stop it first.")
        with lock:
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # Windows; a folder that is not empty
                    name.unlink()
                    if is_new:
                        self.path.rmdir()

    def known(self) -> dict[str, Any]:
        """Return the plan that is in the folder, or an empty one if there is none.

        Raises:
            JobError: The file is damaged.
        """
        if not (self.path / JOB).exists():
            return {}
        content = _read(self.path / JOB)
        sound = content is not None and content.get("sha256") == sha256_of({**content, "sha256": ""})
        if content is None or not sound or content != {**content, **_FORMAT}:
            raise JobError(
                f"{self.path / JOB} must be as this version of minibert writes it; it is damaged, or of another "
                "version. Start with a new --output."
            )
        plan: dict[str, Any] = content["plan"]
        return plan

    def agree(self, plan: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
        """Write the plan, or compare it with the plan that is there.

        Args:
            plan: All that decides about the bytes of the result.
            shown: What only explains, such as paths.

        Raises:
            JobError: The plans differ; the message names each difference.
        """
        content = {**_FORMAT, "plan": plan, "shown": shown, "sha256": ""}
        path = self.path / JOB
        if not path.exists():
            with whole(path) as file:
                file.write(_dump({**content, "sha256": sha256_of(content)}))
        known = self.known()  # again: another part can have written it
        if _dump(known) != _dump(plan):
            found = differences(known, json.loads(_dump(plan)))
            more = [f"and {len(found) - 5} more"] if len(found) > 5 else []
            raise JobError(
                f"{path} is the plan of another job: {'; '.join(found[:5] + more)}. Give the same input, model and "
                "options as before, or another --output."
            )
        self.job, self.shards = sha256_of(plan), plan["shards"]
        own = {"job", "manifest", *map(self.name, self.own())}
        for left in self.path.glob("*.tmp"):
            if left.name.removeprefix(_HIDDEN).split(".")[0] in own:
                self._remove(left)

    @staticmethod
    def _remove(path: Path) -> None:
        """Remove a file that no living process holds."""
        file = _held(path)
        if file is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            file.close()

    def own(self) -> range:
        """Return the shards of this part of the job."""
        number, parts = self.part
        return range(number - 1, self.shards, parts)

    def name(self, shard: int) -> str:
        """Return the name of a shard's files, without a suffix."""
        return f"part-{shard:05d}-of-{self.shards:05d}"

    def sidecar(self, shard: int) -> Path:
        """Return the sidecar of a shard."""
        return self.path / f"{_HIDDEN}{self.name(shard)}.json"

    def skipped(self, shard: int) -> str:
        """Return the name of the file with the rows of a shard that were skipped."""
        return f"{_HIDDEN}{self.name(shard)}.skipped.jsonl"

    def complete(self, shard: int) -> dict[str, Any] | None:
        """Return the sidecar of a shard if it is of this job and the files have the right sizes, else None."""
        sidecar = _read(self.sidecar(shard))
        if sidecar is None or sidecar.get("job") != self.job:
            return None
        for name, facts in sidecar["files"].items():
            path = self.path / name
            if not path.is_file() or path.stat().st_size != facts["bytes"]:
                return None
        return sidecar

    def add(self, shard: int, names: Iterable[str], facts: Mapping[str, Any]) -> None:
        """Write the sidecar of a shard whose files are whole."""
        files = {name: _facts(self.path / name) for name in names}
        with whole(self.sidecar(shard)) as file:
            file.write(_dump({"job": self.job, "shard": shard, **facts, "files": files}))

    def finish(self) -> dict[str, Any] | None:
        """Write the manifest if all shards are complete, and return it; else return None."""
        sidecars = [self.complete(shard) for shard in range(self.shards)]
        if None in sidecars:
            return None
        manifest = _manifest(self.job, sidecars)
        with whole(self.path / MANIFEST) as file:
            file.write(_dump(manifest))
        for left in self.path.glob(".part-*.lock"):  # not before: a part that starts now would find its lock held
            self._remove(left)
        return manifest


def _manifest(job: str, sidecars: Iterable[Any]) -> dict[str, Any]:
    shards = list(sidecars)
    totals = {name: sum(shard.get(name, 0) for shard in shards) for name in ("rows", "skipped", "truncated")}
    return {**_FORMAT, "job": job, **totals, "shards": shards}


def _read(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file as minibert writes it; None if there is none, or if a byte is different."""
    try:
        content = path.read_bytes()
        value = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _dump(value) == content else None


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def differences(expected: Any, found: Any, name: str = "") -> list[str]:
    """Return what differs between two plans, as texts for people."""
    if isinstance(expected, dict) and isinstance(found, dict):
        inner = [differences(expected.get(key), found.get(key), key) for key in {**expected, **found}]
        return [each for some in inner for each in some]
    if name == "files" and isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return [f"number of input files: expected {len(expected)}, found {len(found)}"]
        pairs = enumerate(zip(expected, found, strict=True), 1)
        return [
            f"input file {number}: expected {old['size']:,} bytes with SHA-256 {old['sha256'][:12]}, "
            f"found {new['size']:,} bytes with {new['sha256'][:12]}"
            for number, (old, new) in pairs
            if (old["size"], old["sha256"]) != (new["size"], new["sha256"])  # the rest follows from the options
        ]
    shown = [json.dumps(value, ensure_ascii=False) for value in (expected, found)]
    return [] if expected == found else [f"{name}: expected {shown[0]:.200}, found {shown[1]:.200}"]


def verify(path: PathLike) -> dict[str, Any]:
    """Compare every file of a complete job with its manifest, and return the manifest.

    Raises:
        JobError: The job is not complete, or a file differs; the message names each such file.
    """
    path = Path(path)
    folder = Folder(path)
    plan = folder.known()
    if not plan:
        raise JobError(f"{path} must be the folder of a job; it has no {JOB}.")
    folder.job, folder.shards = sha256_of(plan), plan["shards"]
    if not (path / MANIFEST).exists():
        done = sum(folder.complete(shard) is not None for shard in range(folder.shards))
        raise JobError(f"{path} is not complete: {done} of {folder.shards} shards are. Give the job's command again.")
    manifest = _read(path / MANIFEST)
    listed = (manifest or {}).get("shards", [])
    sidecars = [_read(folder.sidecar(shard)) for shard in range(folder.shards)]
    wrong = [] if manifest == _manifest(folder.job, listed) else [MANIFEST]
    for shard, sidecar in enumerate(sidecars):
        if sidecar is None or [sidecar] != listed[shard : shard + 1]:
            wrong.append(f"{folder.sidecar(shard).name}{f' or its entry in {MANIFEST}' if sidecar else ''}")
    known = {folder.sidecar(shard).name for shard in range(folder.shards)}
    for sidecar in filter(None, sidecars):
        for name, facts in sidecar.get("files", {}).items():
            known.add(name)
            if not (path / name).is_file() or _facts(path / name) != facts:
                wrong.append(name)
    wrong += sorted(
        f"{each.name}, which is not in the manifest"
        for each in path.glob("*part-*")
        if each.name not in known and each.name[0] != "."
    )
    if wrong:
        remedy = "Delete these files, and give the command of the job again."
        raise JobError(f"{path} differs from its manifest: {'; '.join(wrong)}. {remedy}")
    return manifest or {}
