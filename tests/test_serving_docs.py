"""docs/serve.md is true: its routes, its options, its limits, and its first command."""

import json
import re
import shlex

import pytest
from serving_support import Served
from support import ROOT

from minibert import SentenceEncoder
from minibert.cli import help_texts
from minibert.cli.arguments import parse
from minibert.serving.app import ROUTES
from minibert.serving.metrics import METRICS

PAGE = (ROOT / "docs" / "serve.md").read_text("utf-8")


def test_routes():
    """The table has every route, with its method and protocol. So has the help text, without other spellings."""
    names = {"OpenAI": "openai", "TEI": "tei", "Ollama": "ollama", "Cohere": "cohere"}
    listed = {
        (method, names.get(protocol.strip()), path)
        for first, protocol in re.findall(r"^\| (`(?:GET|POST) .+?) \|(.*?)\|", PAGE, re.MULTILINE)
        for method in [re.search(r"GET|POST", first)[0]]
        for path in re.findall(r"`(?:GET |POST )?(/.*?)`", first)
    }
    there = {
        (method, protocol.__name__.rsplit(".", 1)[1], path.replace(":path", ""))
        for method, protocol, _, paths in ROUTES
        for path in paths
    }

    assert listed == there | {("GET", None, path) for path in ("/health", "/ping", "/", "/metrics")}
    spelled = set(re.findall(r"/[\w/]*", help_texts.SERVE_EPILOG.split("keys:")[0]))
    assert {path.replace("{id}", "ID") for *_, path in listed} - spelled == {"/embeddings", "/models", "/models/ID"}


def test_options(capsys):
    """Each option on the page exists, and each default is the one of the program."""
    with pytest.raises(SystemExit):
        parse(["serve", "--help"])
    page = capsys.readouterr().out
    defaults = parse(["serve"])

    found = set(re.findall(r"--[a-z][a-z-]+", PAGE))
    assert len(found) > 10
    assert found <= set(re.findall(r"--[a-z-]+", page))
    for number, option in re.findall(r"\| ([\d,]+) \| `--(.+?)` \|", PAGE):
        assert getattr(defaults, option.replace("-", "_")) == int(number.replace(",", ""))
    assert "after 75 seconds (`--timeout-keep-alive`)" in PAGE
    assert (defaults.timeout_keep_alive, defaults.shutdown_timeout) == (75, 30)
    assert "have 30 seconds\n(`--shutdown-timeout`)" in PAGE


def test_metrics():
    """Each metric on the page exists."""
    found = set(re.findall(r"`((?:te|minibert)_\w+)`", PAGE))

    assert len(found) > 5
    assert found <= METRICS.keys()


def test_the_first_command():
    """The call with curl gives a vector."""
    (line,) = re.findall(r"^curl (.+)$", PAGE, re.MULTILINE)
    url, *_, body = shlex.split(line)
    with Served(SentenceEncoder(num_threads=1)) as served:
        reply = served.post(url.removeprefix("http://127.0.0.1:8080"), json.loads(body))

    assert len(reply.json["data"][0]["embedding"]) == 128


def test_python_is_valid():
    """Each example compiles. tests/test_serving_clients.py tries the clients."""
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

    assert len(examples) == 7
    for example in examples:
        compile(example, "serve.md", "exec")
