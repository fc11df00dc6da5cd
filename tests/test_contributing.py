"""CONTRIBUTING.md names what there is: files, names in them, options and extras."""

import re
import tomllib

import pytest
from support import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
LINK = re.compile(r"\[([^]]+)\]\(([^)]+)\)")
#: Each step, rule or paragraph.
ITEMS = re.split(r"\n\n|\n(?=\d+\. |- |\| )", PAGE)


CHECKOUT = pytest.mark.skipif(not (ROOT / "kernels").is_dir(), reason="the files of a checkout are not there")


@CHECKOUT
def test_links_lead_to_files():
    """Each link is to a file, and is called by its path."""
    links = LINK.findall(PAGE)

    assert len(links) > 20
    for text, target in links:
        assert text == target
        assert (ROOT / target).is_file(), target


@CHECKOUT
def test_names_are_in_the_linked_files():
    """In a step with links, each name in code is one that a linked file has."""
    found = 0
    for item in ITEMS:
        texts = [(ROOT / target).read_text("utf-8") for _, target in LINK.findall(item)]
        for name in re.findall(r"`@?([A-Za-z_]\w*)(?:\(.*?\))?`(?! extra)|`Pooling\.(\w+)`", item) if texts else ():
            word = rf"\b{name[0] or name[1]}\b"
            assert any(re.search(word, text) for text in texts), (name, item)
            found += 1

    assert found > 20


def test_commands():
    """The options of tools/check, the extras and the switch of the record are those that there are."""
    check = (ROOT / "tools" / "check").read_text("utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    record = (ROOT / "tests" / "test_kernel_compile.py").read_text("utf-8")

    assert set(re.findall(r"tools/check (--\w+)", PAGE)) == {"--fast", "--reference"}
    assert all(f"tools/check {option} " in check for option in ("--fast", "--reference"))
    assert set(re.findall(r"`(\w+)` extra", PAGE)) <= extras.keys()
    assert re.findall(r"^ +(MINIBERT_\w+)=1 ", PAGE, re.MULTILINE) == [
        "MINIBERT_RECORD_KERNELS",
        "MINIBERT_RECORD_HASHES",
    ]
    assert "MINIBERT_RECORD_KERNELS" in record
