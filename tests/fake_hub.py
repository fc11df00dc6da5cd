"""A hub on the loopback interface: the few endpoints of the Hugging Face hub that downloading a model takes.

Errors are told as the hub tells them: by a status and an ``X-Error-Code`` header. The endpoint
``/broken/503`` answers everything with an HTML page of that status.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]

# How a repo may refuse its files: status, error code, message.
GATED = (401, "GatedRepo", "Access to this model is restricted.")
DISABLED = (403, "", "Access to this resource is disabled.")


class Request(NamedTuple):
    """A request that the hub received."""

    method: str
    path: str
    authorization: str | None


@dataclass
class Repo:
    """A model repo: its commits' files by commit, its branches and tags, and who may read it.

    With a ``refusal``, it shows its listing to all and refuses its files with this status, error code and
    message. With a ``token``, it is private: it hides from requests that do not carry it.
    """

    commits: dict[str, Files]
    refs: dict[str, str]
    refusal: tuple[int, str, str] | None = None
    token: str | None = None


@dataclass
class FakeHub:
    """The repos that a running hub serves, where it is, and what it was asked."""

    url: str
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def add(self, name: str, refs: Mapping[str, Files], **access: object) -> None:
        """Add a repo whose branches and tags hold these files; ``access`` is as in :class:`Repo`."""
        heads = {ref: hashlib.sha1(f"{name}@{ref}".encode(), usedforsecurity=False).hexdigest() for ref in refs}
        self.repos[name] = Repo({heads[ref]: files for ref, files in refs.items()}, heads, **access)


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Serve an empty hub on a free port until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _RefusedError(Exception):
    """A request is refused, for its status, error code and message."""


class _Handler(BaseHTTPRequestHandler):
    API = re.compile(r"/api/models/(?P<repo>[^/]+(/[^/]+)?)(/(?P<kind>revision|tree)/(?P<ref>[^/]+))?")
    FILE = re.compile(r"/(?P<repo>[^/]+(/[^/]+)?)/(?P<kind>resolve|cdn)/(?P<ref>[^/]+)/(?P<file>.+)")

    def do_GET(self):
        path = urlsplit(self.path).path
        self.server.hub.requests.append(Request(self.command, unquote(path), self.headers["Authorization"]))
        try:
            if broken := re.match(r"/broken/(\d+)/", path):
                self._send(int(broken[1]), b"<html>Please log in</html>", {"Content-Type": "text/html"})
            elif asked := self.API.fullmatch(path):
                self._list(asked, *self._commit(asked))
            elif asked := self.FILE.fullmatch(path):
                self._serve(asked, *self._commit(asked))
        except _RefusedError as refused:
            status, code, message = refused.args
            body = json.dumps({"error": message}).encode()
            self._send(status, body, {"X-Error-Code": code, "X-Error-Message": message})

    do_HEAD = do_GET  # noqa: N815

    def _commit(self, asked):
        repo = self.server.hub.repos.get(asked["repo"])
        if repo is None or (repo.token and self.headers["Authorization"] != f"Bearer {repo.token}"):
            raise _RefusedError(401, "RepoNotFound", "Repository not found")
        if repo.refusal and asked.re is self.FILE:
            raise _RefusedError(*repo.refusal)
        ref = unquote(asked["ref"] or "main")
        commit = repo.refs.get(ref, ref)
        if commit not in repo.commits:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {ref}")
        return commit, repo.commits[commit]

    def _list(self, asked, commit, files):
        if asked["kind"] == "tree":
            answer = [
                {"type": "file", "path": path, "size": len(content), "oid": _git_blob(content)}
                for path, content in files.items()
            ]
        else:
            siblings = [{"rfilename": path} for path in files]
            answer = {"id": asked["repo"], "modelId": asked["repo"], "sha": commit, "siblings": siblings}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _serve(self, asked, commit, files):
        file = unquote(asked["file"])
        if file not in files:
            raise _RefusedError(404, "EntryNotFound", "Entry not found")
        etag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
        headers = {"X-Repo-Commit": commit, "ETag": etag}
        if asked["kind"] == "resolve" and file.endswith((".safetensors", ".bin")):
            # Large files lie elsewhere, and their ETag and size are told before the redirect.
            headers["Location"] = f"{self.server.hub.url}/{asked['repo']}/cdn/{commit}/{file}"
            headers["X-Linked-ETag"] = etag
            headers["X-Linked-Size"] = str(len(files[file]))
            self._send(302, b"", headers)
        else:
            self._send(200, files[file], headers)

    def _send(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing: requests are kept in the hub's ``requests``."""


def _git_blob(content):
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()
