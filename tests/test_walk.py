"""The pages of docs/walk give the shown output, have exercises with answers, and take numbers from the records."""

import doctest
import json
import re
import sys
import tempfile

import pytest
from support import ROOT

WALK = ROOT / "docs" / "walk"
PAGES = sorted(WALK.glob("[1-9]*.md"))
#: The example that needs the executor of CUDA kernels.
EXECUTOR = re.compile(r"<!-- executor -->\n```python\n.*?```\n", re.DOTALL)
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def said(page):
    """Return a page's text, with its lines joined."""
    return " ".join((WALK / page).read_text("utf-8").split())


@pytest.fixture(scope="module")
def records():
    """Return the records of tools/findings.py, of the built-in model and of all-MiniLM-L6-v2."""
    names = ("findings-builtin.json", "findings-minilm.json")
    return [json.loads((ROOT / "tools" / "results" / name).read_text("utf-8")) for name in names]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Return a function that runs a page's examples in the folder of the checkout, and returns the numbers of them."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run(page, text):
        test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
        return doctest.DocTestRunner().run(test)

    return run


@EACH_PAGE
def test_examples(page, run):
    """Each example prints what the page says. The executor's is for the next test."""
    text = page.read_text("utf-8")
    result = run(page, EXECUTOR.sub("", text))

    assert result.attempted >= 10
    assert result.failed == 0
    assert "doctest:" not in text


def test_executor_example(run):
    """The kernel runs on the executor of CUDA kernels, as page 8 says."""
    from executor_device import require_compiler

    require_compiler()
    text = PAGES[-1].read_text("utf-8")

    assert len(EXECUTOR.findall(text)) == 1
    assert run(PAGES[-1], text).failed == 0


@EACH_PAGE
def test_every_block_is_an_example(page):
    """No Python block has code that the doctests do not see."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)

    assert blocks
    for language, code in blocks:
        assert language == "python"
        assert code.startswith(">>> ")
        assert code.endswith("\n\n"), "a block must end with an empty line, or the fence is part of the expected output"


@EACH_PAGE
def test_exercises(page):
    """Each page ends with one to three exercises, and their answers run."""
    _, exercises = page.read_text("utf-8").split("\n## Try it\n")
    questions, answers = exercises.split("<details><summary>Answers</summary>\n")

    assert 1 <= len(re.findall(r"^\d\. ", questions, re.MULTILINE)) <= 3
    assert "\n```python\n>>> " in answers
    assert answers.endswith("\n</details>\n")


def test_pages_are_in_order():
    """The index lists all pages, and each page links to the next one."""
    index = (WALK / "README.md").read_text("utf-8")
    following = [re.search(r"^\*\*Next:\*\* \[.+\]\((\S+)\)$", page.read_text("utf-8"), re.MULTILINE) for page in PAGES]

    assert re.findall(r"^(\d)\. \[.+?\]\((\S+)\)", index, re.MULTILINE) == [(page.name[0], page.name) for page in PAGES]
    assert [link[1] for link in following[:-1] if link] == [page.name for page in PAGES[1:]]
    assert following[-1] is None


@pytest.mark.skipif(not (ROOT / "minibert").is_dir(), reason="the files of a checkout are not there")
@EACH_PAGE
def test_links_to_code(page):
    """A link to a line of code leads to the definition of what the link is called."""
    links = re.findall(r"\[`(\w+)`\]\((\S+)#L(\d+)\)", page.read_text("utf-8"))

    assert links
    for name, path, line in links:
        definition = re.compile(rf"^(?:def|class) {name}\b|^(?:DEVICE .* )?{name}\(|^DEVICE \w+ {name}\(")
        lines = (page.parent / path).read_text("utf-8").splitlines()
        found = [number for number, text in enumerate(lines, 1) if definition.match(text)]
        assert found == [int(line)], f"{page.name}: {name} is defined in {path} at {found}; write #L{found[0]}"


def test_findings_about_positions(records):
    """Page 2 says what the records say."""
    text = said("2-embeddings.md")
    for name, record in zip(("built-in model", "all-MiniLM-L6-v2"), records, strict=True):
        order = record["word_order"]
        row = order["spearman"], order["without_positions"], order["shuffled_mean"]
        assert f"| {name} | {' | '.join(f'{each:.3f}' for each in row)} |" in text


def test_findings_about_heads(records):
    """Page 3 says what the record says."""
    heads, text = records[1]["heads"], said("3-one-head.md")

    assert f"by layer | {', '.join(f'{each:.2f}' for each in heads['cls'])} |" in text
    assert f"by layer | {', '.join(f'{each:.2f}' for each in heads['cls_norm'])} |" in text
    assert f"about an equal part, which is {heads['equal']:.2f}." in text
    for place, (layer, head) in {"layer 0, head 2: mean weight": (0, 2), "layer 2, head 11: the same": (2, 11)}.items():
        weight, masked = heads["previous"][layer][head], heads["previous_masked"][layer][head]
        assert re.search(rf"{place}[^|]*\| {weight:.2f}; if each word is replaced by `\[MASK\]`, {masked:.2f} \|", text)


def test_findings_about_pooling(records):
    """Page 5 says what the records say."""
    builtin, minilm = records
    text = said("5-pooling.md")
    stop_words, layers, dead = builtin["stop_words"], minilm["layers"], minilm["dead_dimensions"]
    share = stop_words["share"]

    assert list(stop_words["drain"]) == ["107", "108"]
    assert f"the 50 most frequent tokens have {100 * stop_words['in_drain']['frequent']:.0f} % of their" in text
    assert (
        f'*the* counts {100 * share["the"]:.1f} % of an equal part, "." {100 * share["."]:.1f} %, and a token that '
        f"occurs once {100 * share['rare']:.0f} %" in text
    )
    assert f"| mean pooling | {' | '.join(f'{each:.3f}' for each in layers['mean'])} |" in text
    assert f"| max pooling | {' | '.join(f'{each:.3f}' for each in layers['max'])} |" in text
    assert (
        f"| cosine of two sentences | {' | '.join(f'{each:.2f}' for each in layers['cosine_of_two_texts'])} |" in text
    )
    assert "dimensions, {}, {} and {}, are always 0".format(*dead["dimensions"]) in text
    in_drain = minilm["stop_words"]["in_drain"]
    assert [int(number) for number in minilm["stop_words"]["drain"]] == dead["dimensions"]
    assert f"they have {100 * in_drain['frequent']:.0f} % of the squared length of the 50 most frequent" in text
    assert f"and {100 * in_drain['rare']:.0f} % of that of tokens that occur once" in text
    assert f"(at most {dead['largest']:.0e})".replace("e-0", "e-") in text
    assert f"at most {dead['scale']:.1e} there".replace("e-0", "e-") in text
    assert f"at least {dead['smallest_other_scale']} elsewhere" in text


def test_findings_about_explanations(records):
    """Page 6 says what the records say."""
    text = said("6-similarity.md")
    found = [record["explanations"] for record in records]
    ratios = [ratio for each in found for ratio in each["ratio"]["words"]]
    names = "words", "vectors", "without_token", "random"

    for name, each in zip(("built-in model", "all-MiniLM-L6-v2"), found, strict=True):
        falls = " | ".join(", ".join(f"{fall:.2f}" for fall in each["fall"][kind]) for kind in names)
        assert f"| {name} | {each['pairs']} | {falls} |" in text
    assert f"matter {min(ratios):.1f} to {max(ratios):.1f} times as much as random ones" in text
    same = [[f"{100 * each['same_word'][kind]:.0f} %" for each in found] for kind in ("words", "vectors")]
    assert f"is the same token in {same[0][0]} (built-in model) and {same[0][1]} (all-MiniLM-L6-v2) of cases." in text
    assert f"For `vectors`, these are {same[1][0]} and {same[1][1]}." in text
    for kind in ("error", "rest"):
        assert f"`{kind}` was {found[0][kind]['largest']} and {found[1][kind]['largest']}" in text
