"""``minibert serve`` as a process: its messages, its signals, its keys, and what it writes to its log."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli_support import COMMAND, program, usage_error
from serving_support import Process, as_float32
from support import ROOT, needs

from minibert import SentenceEncoder

needs("uvicorn")

WINDOWS = pytest.mark.skipif(sys.platform == "win32", reason="it has no such signals")
LINUX = pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc")
#: A request that takes about a second.
SLOW = {"inputs": [f"{number} {'music ' * 400}" for number in range(200)], "dimensions": 1}
SECRET = "zebra quokka"  # noqa: S105


def answer_of(own):
    """Return the status and the body of the answer on a socket."""
    with own:
        content = b""
        while part := own.recv(65_536):
            content += part
    head, _, body = content.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def wait_for_queue(server):
    """Wait until a request is in the queue."""
    end = time.monotonic() + 20
    while b"\nte_queue_size 0\n" in server.get("/metrics").content:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server():
    """Return a server that no test stops."""
    with Process("--num-threads", "2", "--max-body-bytes", "20000") as server:
        yield server


def test_it_says_where_it_listens(server):
    """In the style of the other commands."""
    assert server.head.decode() == (
        "minibert: using the built-in model (English, 128 dimensions); --model names another\n"
        f"minibert: serving built-in (128 dimensions) on {server.url}\n"
    )
    assert server.url.startswith("http://127.0.0.1:")


def test_bits_over_http(server):
    """The vectors are those of encode."""
    reply = server.post("/embed", {"inputs": ["the cat", "music"]})

    expected = SentenceEncoder().encode(["the cat", "music"], normalize_embeddings=True)
    np.testing.assert_array_equal(as_float32(reply.json), expected)
    assert "server" not in reply.headers


def test_the_limit_of_a_body(server):
    """A client that still sends gets the error, and the next one its vectors."""
    reply = server.post("/v1/embeddings", {"input": "x" * 30_000})

    assert (reply.status, list(reply.json)) == (413, ["error"])
    assert server.post("/embed", {"inputs": "a"}).status == 200


def test_a_chunked_body(server):
    """A body without a length is read, and has the same limit."""
    for size, status in ((100, 200), (30_000, 413)):
        body = json.dumps({"inputs": "x" * size}).encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as own:
            own.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
            own.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
            assert answer_of(own)[0] == status


@WINDOWS
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_drains(name):
    """The request in flight is answered, and the exit status is 0. Nothing is written."""
    with Process("--num-threads", "1") as server:
        own = server.send("/embed", SLOW)
        wait_for_queue(server)
        status, log = server.stop(getattr(signal, name))
        assert answer_of(own)[0] == 200

    assert (status, log) == (0, server.head.decode())


@WINDOWS
def test_health_fails_before_the_end():
    """During the delay, the load balancer still reaches the server, and learns that it stops."""
    with Process("--shutdown-delay", "2.5") as server:
        server.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 1.4
        while server.get("/health").status == 200:
            assert time.monotonic() < end
        time.sleep(0.5)
        assert server.post("/embed", {"inputs": "a"}).status == 503
        assert server.process.wait(20) == 0


@WINDOWS
def test_a_second_interrupt_does_not_wait():
    """Neither does the end of the time for requests in flight."""
    slow = {"inputs": SLOW["inputs"] * 8, "dimensions": 1}
    for options, signals in ((["--shutdown-timeout", "300"], 2), (["--shutdown-timeout", "0.1"], 1)):
        with Process("--num-threads", "1", *options) as server, server.send("/embed", slow) as own:
            wait_for_queue(server)
            for _ in range(signals):
                server.process.send_signal(signal.SIGINT)
                time.sleep(0.3)
            assert server.process.wait(20) == 0
            _, log = server.stop()
            if signals == 1:
                assert answer_of(own)[0] == 503
            else:
                assert log == server.head.decode()


def test_a_port_in_use():
    """One line, before the model is read."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = program("serve", "--port", str(port))

    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"minibert: error: the address 127.0.0.1, port {port} cannot be used: {os.strerror(errno.EADDRINUSE)}. "
        "Give another --port or --host.\n"
    )


def test_answers_are_sent_at_once():
    """The socket names its protocol: without it, asyncio does not switch TCP_NODELAY on."""
    from minibert.serving.process import bound

    with bound("127.0.0.1", 0) as own:
        assert own.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b"])
def test_an_unknown_host(host):
    """One line."""
    done = program("serve", "--host", host)

    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"minibert: error: the address {host} cannot be used: ")
    assert done.stderr.endswith(b". Give another --host.\n")
    assert done.stderr.count(b"\n") == 1


def test_a_client_that_leaves():
    """Its place in the queue is free again."""
    with Process("--num-threads", "1") as server:
        server.send("/embed", SLOW).close()
        end = time.monotonic() + 20
        while b'te_request_failure{err="dropped"} 1\n' not in server.get("/metrics").content:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert b"\nte_queue_size 0\n" in server.get("/metrics").content


@LINUX
def test_keys_are_in_no_list_of_processes(tmp_path):
    """They come from a file and from the environment. There is no argument for a key."""
    file = tmp_path / "keys.txt"
    file.write_text("first-key\n\n  second-key  \r\n", "utf-8-sig")
    with Process("--api-key-file", str(file), environment={"MINIBERT_API_KEY": "third-key"}) as server:
        command = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
        for key, status in (("first-key", 200), ("second-key", 200), ("third-key", 200), ("fourth-key", 401)):
            assert server.post("/embed", {"inputs": "a"}, authorization=f"Bearer {key}").status == status
        assert server.post("/embed", {"inputs": "a"}).status == 401
        _, log = server.stop()

    assert b"-key" not in command.replace(b"--api-key-file", b"")
    assert "-key" not in log


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_a_source_without_keys_is_an_error(tmp_path, content):
    """Otherwise, an empty variable would open the server to everybody."""
    file = tmp_path / "keys.txt"
    file.write_text(content)
    for options, variable, name in ((["--api-key-file", file], {}, file), ([], {"MINIBERT_API_KEY": content}, None)):
        done = program("serve", "--port", "0", *options, env={**os.environ, **variable})
        where = name or "the variable MINIBERT_API_KEY"
        assert done.returncode == 1
        assert done.stderr.decode() == (
            f"minibert: error: {where} must have a key on each line; it has none. Without keys, leave it out.\n"
        )


def test_a_public_address_without_a_key():
    """It is allowed, with a warning."""
    with Process("--host", "0.0.0.0") as server:  # noqa: S104
        assert server.head.decode().startswith(
            "minibert: warning: other machines can reach 0.0.0.0, and no key is required: give --api-key-file, or "
            "listen on 127.0.0.1\n"
        )


def test_logs_have_no_text():
    """Whatever is sent, the log says nothing of it."""
    with Process() as server:
        server.post("/embed", {"inputs": SECRET})
        server.post(f"/embed?inputs={SECRET.replace(' ', '+')}", {"inputs": [SECRET, 5]})
        server.post(f"/{SECRET.split(maxsplit=1)[0]}", {})
        server.post("/embed", f'{{"inputs": "{SECRET}'.encode())
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as own:
            own.sendall(f"{SECRET}\r\n\r\n".encode())
            assert answer_of(own)[0] == 400
        _, log = server.stop()

    assert "zebra" not in log
    assert "quokka" not in log


def test_names_of_models(tmp_path, repo):
    """A folder's path is not told to clients."""
    with Process("--model", str(repo)) as server:
        (model,) = server.get("/v1/models").json["data"]
        assert model["id"] == repo.name
        assert str(tmp_path) not in server.get("/info").content.decode()
    with Process("--served-model-name", os.fsdecode(b"caf\xe9")) as server:
        assert server.get("/v1/models").json["data"][0]["id"] == "caf?"
        assert b'model="caf?"' in server.get("/metrics").content
    with Process("--served-model-name", "text-embedding-3-small", "--strict-model") as server:
        assert server.post("/v1/embeddings", {"input": "a", "model": "text-embedding-3-small"}).status == 200
        assert server.post("/v1/embeddings", {"input": "a", "model": "built-in"}).status == 404


def test_the_missing_extra():
    """One line says what to install."""
    code = "import sys; sys.modules['uvicorn'] = None; from minibert.cli import main; sys.exit(main(['serve']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)

    assert done.returncode == 1
    assert (
        done.stderr == b'minibert: error: minibert serve needs starlette and uvicorn: pip install "minibert[serve]"\n'
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "65536"],
        ["--port", "-1"],
        ["--max-wait-ms", "-1"],
        ["--max-wait-ms", "nan"],
        ["--shutdown-timeout", "inf"],
        ["--max-body-bytes", "0"],
        ["--api-key", "secret"],
        ["--served-model-name", " "],
        ["--revision", "main"],
        ["--on-truncate", "warn"],
    ],
)
def test_wrong_usage(arguments):
    """It is found before anything is imported. There is no ``--api-key``."""
    usage_error("serve", *arguments)


def test_standard_output_is_not_needed():
    """The server writes nothing to it, so it may be closed."""
    code = (
        f"import os, sys; os.close(1); os.execv(sys.executable, {[*COMMAND, 'serve', '--port', '0', '--model', 'no']})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, cwd=ROOT)

    assert b"standard output is closed" not in done.stderr
    assert done.stderr.startswith(b"minibert: error: ")
