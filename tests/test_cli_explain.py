"""``minibert explain``: maps on the terminal, with colours and without; and a page."""

import re

import numpy as np
import pytest
from cli_support import ST, add_dense, usage_error
from support import edit_json

from minibert import SentenceEncoder
from minibert.cli import explain, heat_map, main
from minibert.study import similar

A, B = "A man is eating food.", "Someone is having a meal."


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    """The terminal has 100 columns, and no variable forbids colours."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def explained(capsys, *argv):
    """Return the lines that the command prints."""
    assert main(["explain", *map(str, argv)]) == 0
    return capsys.readouterr().out.splitlines()


def numbers(line):
    """Return the numbers of a line of a map."""
    return [float(number) for number in re.findall(r"-?\d+\.\d", line)]


@pytest.fixture(scope="module")
def similarity():
    """Return the explanation of the two texts."""
    return SentenceEncoder().explain(A, B)


def test_two_texts(capsys, similarity):
    """The map has the shares of the words in hundredths. The parts that are printed sum to the score."""
    lines = explained(capsys, A, B)
    score, words, rest, error = (float(line.split()[0]) for line in lines[:4])
    rows = {line.split()[0]: numbers(line) for line in lines if re.match(r" *\S+( +-?\d+\.\d){6}$", line)}

    assert score == pytest.approx(similarity.score, abs=6e-5)
    assert score == pytest.approx(words + rest + error, abs=2e-4)
    assert list(rows) == ["a", "man", "is", "eating", "food", "."]
    np.testing.assert_allclose(list(rows.values()), 100 * similarity.words[1:-1, 1:-1], atol=0.051)
    assert lines[-1].startswith("by layer: 0.757 0.737 0.670")


def test_one_text(capsys):
    """The shares of all parts sum to 100 percent."""
    lines = explained(capsys, A)
    rows = [numbers(line) for line in lines if re.match(r" *[a-z][a-z0-9 -]+( +-?\d+\.\d){8}$", line)]

    assert len(rows) == 8
    assert np.sum(rows) == pytest.approx(100, abs=64 * 0.05)
    assert lines[0].startswith("128 dimensions, length 1.000, from 8 tokens")


def test_widths(capsys, monkeypatch):
    """A map that is wider than the terminal becomes a list of the largest numbers. Nothing is wider than 80 columns."""
    wide = explained(capsys, A, B)
    monkeypatch.setenv("COLUMNS", "40")
    narrow = explained(capsys, A, B)

    assert max(map(len, wide)) <= 80
    assert any(line.startswith("the 12 largest of 36 numbers") for line in narrow)
    assert "   11.7  food · meal" in narrow


def test_colours(capsys, monkeypatch):
    """There are colours on a terminal only, and not if NO_COLOR is set. They change no other character."""
    plain = explained(capsys, A, B)
    monkeypatch.setattr(explain.sys.stdout, "isatty", lambda: True)
    coloured = explained(capsys, A, B)
    monkeypatch.setenv("NO_COLOR", "1")
    forbidden = explained(capsys, A, B)

    assert "\x1b" not in "".join(plain)
    assert any("\x1b[38;5;16;48;5;202m  11.7\x1b[0m" in line for line in coloured)
    assert any("\x1b[38;5;16;48;5;195m  -1.3\x1b[0m" in line for line in coloured)
    assert [re.sub("\x1b[^m]*m", "", line) for line in coloured] == plain == forbidden


def test_wide_characters():
    """A character that takes two columns takes two columns of the map."""
    lines = heat_map.heat_map(["漢", "ab"], ["x", "字"], np.array([[1.0, -2.0], [0.0, 0.04]]), colours=False)

    assert lines == [
        "       x",
        "       │     字".replace("       │", "       │", 1),
        "漢   1.0  -2.0",
        "ab   0.0   0.0",
    ]
    assert heat_map.width_of(lines) == 15


def test_hostile_texts(capsys):
    """Control characters of a text do not reach the terminal."""
    lines = explained(capsys, "red \x1b[31m \u202e", "a\x9bb")

    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e]", "".join(lines))


@pytest.mark.parametrize("text", ["", "   ", "\u200b"])
def test_text_without_words(capsys, text):
    """A text without words has no pairs; the command says so."""
    assert "A text without words has nothing to explain." in explained(capsys, text, "a")


def test_long_texts(capsys):
    """For long texts, there are pairs of token vectors, and the command says why."""
    lines = explained(capsys, "one " * 400, "one")

    assert lines[1] == "Pairs of words of 402 and 3 tokens would take long with this model. These are"
    assert any(line.startswith("the 12 largest of 1206 numbers") for line in lines)
    assert any(re.search(r"one \(\d+\) · one", line) for line in lines)


def test_large_models_with_dense(repo, capsys, monkeypatch):
    """If there are no shares of token vectors either, the command says why."""
    monkeypatch.setattr(similar, "_QUICK", 1e3)
    add_dense(repo)
    lines = explained(capsys, "the", "the", "--model", repo)

    assert lines[1:3] == [
        "Pairs of words of 3 and 3 tokens would take long with this model. There are no",
        "shares of token vectors, because a Dense module comes after the pooling.",
    ]


def test_prompt(repo, capsys):
    """The prompt of the model or of the command line is part of the texts, but has no row."""
    edit_json(repo / ST, prompts={"query": "the "}, default_prompt_name="query")
    with_prompt = explained(capsys, "man", "man", "--model", repo)
    without = explained(capsys, "man", "man", "--model", repo, "--prompt", "")

    assert with_prompt[3:] != without[3:]
    assert with_prompt[4:8] == [*without[4:6], *with_prompt[6:8]]  # the same stairs: "man" is the only column
    assert sum("the" in line.split() for line in with_prompt[4:-3]) == 0


def test_other_similarity(repo, capsys):
    """A distance cannot be divided into shares. The message says what can."""
    edit_json(repo / ST, similarity_fn_name="euclidean")

    assert main(["explain", "a", "b", "--model", str(repo)]) == 1
    assert 'must be "cosine" or "dot"; it is \'euclidean\'' in capsys.readouterr().err


def test_page(tmp_path, capsys):
    """The page is one file. Its name may not exist, unless --overwrite is given."""
    target = tmp_path / "page.html"

    assert main(["explain", A, B, "--html", str(target)]) == 0
    assert capsys.readouterr().err.endswith(f"minibert: wrote {target}\n")
    first = target.read_text("utf-8")
    assert first.startswith("<!doctype html>")
    assert main(["explain", A, "--html", str(target)]) == 1
    assert "Give another --html, or --overwrite to replace it." in capsys.readouterr().err
    assert target.read_text("utf-8") == first
    assert main(["explain", A, "--html", str(target), "--overwrite"]) == 0
    assert target.read_text("utf-8") != first


def test_page_names_no_folder(repo, tmp_path):
    """The page has the name of the model's folder, and no other folder of the machine."""
    target = tmp_path / "page.html"

    assert main(["explain", "a", "--model", str(repo), "--html", str(target)]) == 0
    assert str(repo.parent) not in target.read_text("utf-8")


def test_folder_is_missing(tmp_path, capsys):
    """A page that cannot be written is an error that names the option."""
    assert main(["explain", A, "--html", str(tmp_path / "none" / "page.html")]) == 1
    assert "--html must lie in a folder" in capsys.readouterr().err


def test_usage(capsys):
    """Wrong usage says what is wrong."""
    for name in ("-", ""):
        usage_error("explain", "a", "--html", name)
        assert "give --html a file" in capsys.readouterr().err
    usage_error("explain", "a", "--overwrite")
    assert "--overwrite is for --html" in capsys.readouterr().err
    usage_error("explain", "a", "b", "c")
    usage_error("explain")
