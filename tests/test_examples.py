"""Each script in examples/ runs as it is, in a process of its own, and prints what it promises."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from support import ROOT, needs

from minibert import SentenceEncoder

EXAMPLES = ROOT / "examples"
#: As much of langchain-core as the example uses, with LangChain's own names and calls.
STAND_IN = {
    "__init__.py": "",
    "documents.py": """
class Document:
    def __init__(self, page_content, metadata):
        self.page_content, self.metadata = page_content, metadata
""",
    "vectorstores.py": """
class InMemoryVectorStore:
    def __init__(self, embedding):
        self.embedding, self.documents, self.vectors = embedding, [], []

    def add_documents(self, documents):
        self.documents += documents
        self.vectors += self.embedding.embed_documents([each.page_content for each in documents])

    def as_retriever(self, search_kwargs):
        self.k = search_kwargs["k"]
        return self

    def invoke(self, question):
        query = self.embedding.embed_query(question)
        scores = [sum(a * b for a, b in zip(query, vector, strict=True)) for vector in self.vectors]
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[: self.k]
        return [self.documents[i] for i in best]
""",
}


def run(name, *arguments, path="", quiet=True):
    """Return the lines that an example prints; it must print nothing on standard error, unless it is not ``quiet``."""
    folders = os.pathsep.join(filter(None, (str(path), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": folders, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stderr if quiet or done.returncode else "") == (0, "")
    return done.stdout.splitlines()


def load(name):
    """Return an example as a module; it does not run."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here():
    """No script is without a test, and each says at its top how it is run."""
    source = (ROOT / "tests" / "test_examples.py").read_text("utf-8")
    names = {path.name for path in EXAMPLES.glob("*.py")}

    assert len(names) == 6
    assert names == set(re.findall(r'run\(\s*"(\w+\.py)"', source))
    for name in names:
        assert f"    python examples/{name}\n" in (EXAMPLES / name).read_text("utf-8").split('"""')[1]


def test_semantic_search():
    """The best line for a question shares no word with it; the line numbers are the file's."""
    pages = (EXAMPLES / "help_pages.txt").read_text("utf-8").splitlines()
    size, *hits = run("semantic_search.py")
    found = [re.fullmatch(r"(0\.\d{3})  line (\d+): (.+)", hit).groups() for hit in hits]

    assert size == f"{len([line for line in pages if line])} lines, 128 numbers for each"
    assert [pages[int(number) - 1] for _, number, _ in found] == [text for *_, text in found]
    assert sorted(found, reverse=True) == found
    assert len(found) == 3
    assert found[0][2] == "Refunds are paid to your card within ten days."


def test_semantic_search_of_another_file(tmp_path):
    """A question, a file and a number of lines can be given."""
    (tmp_path / "notes.txt").write_text("The key is under the mat.\n\nBuy milk and eggs.\n", "utf-8")
    _, *hits = run("semantic_search.py", "groceries", "--file", tmp_path / "notes.txt", "--top-k", "1")

    assert [hit.split("  ", 1)[1] for hit in hits] == ["line 3: Buy milk and eggs."]


def test_clustering():
    """The four subjects become four groups of three, and a new sentence joins its own."""
    needs("sklearn")
    *lines, new = run("clustering.py")
    groups, name = {}, ""
    for line in lines:
        if line.startswith("  "):
            groups[name].append(line.strip())
        else:
            name = line
            groups[name] = []
    words = [("symphony", "violin", "jazz"), ("onions", "bread", "soup"), ("striker", "penalty", "match")]
    words.append(("Snow", "winds", "sunny"))

    assert len(groups) == 4
    for expected, sentences in zip(words, groups.values(), strict=True):
        assert len(sentences) == 3
        assert all(word in sentence for word, sentence in zip(expected, sentences, strict=True))
    assert new.startswith(f"new sentence: {list(groups)[2]}: The midfielder")


@pytest.mark.parametrize("library", ["stand-in", pytest.param("langchain-core", marks=pytest.mark.integrations)])
def test_langchain_retriever(tmp_path, library):
    """Each question finds the document that answers it: by LangChain where it is installed, and by a stand-in."""
    if library == "langchain-core":
        needs("langchain_core")
    else:
        (tmp_path / "langchain_core").mkdir()
        for name, text in STAND_IN.items():
            (tmp_path / "langchain_core" / name).write_text(text, "utf-8")
    lines = run("langchain_retriever.py", path=tmp_path)

    assert [re.search(r"-> (\w+): ", line).group(1) for line in lines] == ["returns", "delivery", "account"]


def test_deduplication():
    """What was said before is dropped, in other words too; what is new stays, in order."""
    assert run("deduplication.py") == [
        "The train to Vienna leaves at half past eight.",
        "A man is playing a guitar on the stage.",
        "Please close the window, it is cold in here.",
        "The museum is free on the first Sunday of the month.",
    ]


def test_deduplication_of_a_file(tmp_path):
    """Above every cosine but that of equal texts, only equal lines are dropped."""
    (tmp_path / "lines.txt").write_text("A man plays.\nA man is playing.\nA man plays.\n", "utf-8")

    assert run("deduplication.py", tmp_path / "lines.txt", "--threshold", "0.9999") == [
        "A man plays.",
        "A man is playing.",
    ]


def test_deduplication_reads_one_chunk_ahead():
    """An endless stream gives its first lines: no more than a chunk is read before."""
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield f"{read} and {read * read}"

    lines = load("deduplication").unique(endless(), SentenceEncoder(), 2.0, chunk_size=8)

    assert [next(lines) for _ in range(9)][-1] == "9 and 81"
    assert read == 16


def test_deduplication_remembers_a_window():
    """A line is compared with the last lines that were kept, not with those before: memory has a bound."""
    lines = ["The cat is asleep.", "It rains in Rome.", "Buy milk and eggs.", "The cat is asleep."]

    def kept(window):
        return list(load("deduplication").unique(lines, SentenceEncoder(), 0.9, window, chunk_size=3))

    assert kept(3) == lines[:3]
    assert kept(2) == lines


@pytest.mark.integrations
def test_ray_embed(tmp_path):
    """Ray writes a vector for each line that is not blank, in a plain column. It logs on standard error."""
    if importlib.util.find_spec("ray") is None:
        needs("ray")
    lines = [line for line in (EXAMPLES / "help_pages.txt").read_text("utf-8").splitlines() if line]

    assert run("ray_embed.py", "--output", tmp_path / "vectors", quiet=False) == [
        f"{len(lines)} lines",
        "embedding: fixed_size_list<element: float>[128]",
    ]


#: What the example prints of the lines that are the same in both.
SAME = 5


def test_moving_from_sentence_transformers():
    """The lines of the one give the other's results; what differs is said."""
    lines = run("from_sentence_transformers.py")

    assert lines[0] == "shape: (3, 128) float32"
    assert lines[2] == "similarity: 0.519 -0.006"
    assert lines[SAME:] == [
        "similarity returns: ndarray",
        "convert_to_tensor: encode(convert_to_tensor=True) needs PyTorch: use torch.from_numpy(encoder.encode(...)).",
        "a long text: 1 of 2 texts were cut to max_seq_length = 512 tokens; the longest has 602.",
    ]


@pytest.mark.reference
def test_sentence_transformers_prints_the_same(tmp_path):
    """With the import that the example says it had, sentence-transformers prints the same numbers."""
    source = (EXAMPLES / "from_sentence_transformers.py").read_text("utf-8")
    old = re.search(r"^The import was: (.+)$", source, re.MULTILINE).group(1)
    new = "from minibert import SentenceEncoder as SentenceTransformer"
    assert new in source
    (tmp_path / "before.py").write_text(source.replace(new, old), "utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(tmp_path / "before.py")]
    before = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    assert before[:SAME] == run("from_sentence_transformers.py")[:SAME]
    assert before[SAME] == "similarity returns: Tensor"
