"""README's examples give the shown output, links in the repository are valid, and numbers come from records."""

import doctest
import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from bench_tables import seconds
from support import ROOT

from minibert import BUILTIN_MODEL, model

#: The rows of the model card's scores.
NAMES = ("this model", "all-MiniLM-L6-v2")


def test_examples():
    """Each Python example runs, and prints what README says."""
    failed, attempted = doctest.testfile(str(ROOT / "README.md"), module_relative=False)

    assert attempted > 8
    assert failed == 0


def test_search_example():
    """The search prints what README shows, and says on standard error which model it used."""
    console = (
        (ROOT / "README.md").read_text("utf-8").split("<!-- search example -->\n```console\n$ ")[1].split("```")[0]
    )
    command, texts_and_output = console.split(" <<END\n")
    texts, output = texts_and_output.split("END\n")
    script, *arguments = shlex.split(command)
    run = subprocess.run(
        [sys.executable, "-m", script, *arguments], input=texts, capture_output=True, text=True, check=True
    )

    assert run.stdout == output
    assert "built-in model" in run.stderr


RESULTS = ROOT / "tools" / "results"


def test_numbers_of_the_built_in_model():
    """Its speed in docs/ agrees with the records, and its quality with the model card."""
    record, cold = (json.loads((RESULTS / name).read_text("utf-8")) for name in ("cpu-avx512.json", "cold-avx512.json"))
    pages = [(ROOT / "docs" / page).read_text("utf-8") for page in ("performance.md", "models.md")]
    said = " ".join(" ".join(pages).split())
    texts_a_second = {
        (model, kind): workload["texts"] / median(record, "throughput", model, kind)
        for model, facts in record["models"].items()
        for kind, workload in facts["workloads"].items()
    }
    ratio = {
        kind: texts_a_second["builtin", kind] / texts_a_second["minilm", kind] for kind in ("short", "mixed", "long")
    }
    card = (BUILTIN_MODEL / "README.md").read_text("utf-8")
    student, teacher = (re.search(rf"^\| {name} \| (\S+) \| (\S+) \|$", card, re.MULTILINE) for name in NAMES)

    assert f"{ratio['short']:.0f} times as many short texts" in said
    assert f"{ratio['mixed']:.0f} times as many mixed texts" in said
    assert f"{ratio['long']:.0f} times as many long texts, although it reads twice as many tokens of each." in said
    assert f"Its first vector is ready {median(cold, 'cold', 'builtin', ''):.2f} s after" in said
    (english, german), (english_teacher, german_teacher) = (map(float, row.groups()) for row in (student, teacher))
    assert f"{english:.3f} (its teacher: {english_teacher:.3f}; German: {german:.3f} and {german_teacher:.3f})" in said


def test_speed_in_readme():
    """README says in how many cells minibert is ahead of all other engines, and by how much."""
    record = json.loads((RESULTS / "cpu-avx512.json").read_text("utf-8"))
    others = [name for name in record["peers"] if not name.startswith("minibert")]
    ahead = [
        min(median(record, "throughput", model, kind, peer) for peer in others)
        / median(record, "throughput", model, kind)
        for model, facts in record["models"].items()
        for kind in facts["workloads"]
    ]
    said = " ".join((ROOT / "README.md").read_text("utf-8").split())

    assert len(ahead) == 12
    assert f"{min(ahead):.2f} to {max(ahead):.2f} times as fast as the fastest of the other five engines" in said


def median(record, measure, model, workload, peer="minibert"):
    """Return the median of the seconds that an encoder took."""
    cell = (measure, model, workload, peer)
    rows = [row for row in record["rows"] if (row["measure"], row["model"], row["workload"], row["peer"]) == cell]
    return statistics.median(map(seconds, rows))


def test_length_of_the_reference():
    """README states how many lines the forward pass has."""
    lines = len(Path(model.__file__).read_text("utf-8").splitlines())

    assert f"{lines} lines of numpy" in (ROOT / "README.md").read_text("utf-8")


def test_readme_is_short():
    """README is one page; everything else is in docs/."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 160


PAGES = [ROOT / "README.md", ROOT / "kernels" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: The repository's address on the web. README's links must also work on a package index.
ON_THE_WEB = re.compile(
    r"https://(?:github\.com|raw\.githubusercontent\.com)/minibert/minibert/(?:(?:blob|tree)/)?main/"
)


def anchors(page):
    """Return the anchors of a page's headings, or of the lines of another file, as GitHub makes them."""
    if page.suffix != ".md":
        return {f"L{number}" for number, _ in enumerate(page.read_text("utf-8").splitlines(), 1)}
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.skipif(not (ROOT / "minibert").is_dir(), reason="the files of a checkout are not there")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Each link to a file of the repository has an existing file and heading; README's links are absolute."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    assert targets or page.name == "command-line.md"
    for target in targets:
        path, _, anchor = target.partition("#")
        if ON_THE_WEB.match(path):
            file = ROOT / ON_THE_WEB.sub("", path)
        else:
            assert page != ROOT / "README.md" or path.startswith("https:"), target
            if path.startswith("https:"):
                continue
            file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target
