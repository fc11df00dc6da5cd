"""Every recipe of docs/integrations.md gives what it says, with the real package; and what the adapters promise beyond.

Each block of the page is a program: it runs in a process of its own.
"""

import ast
import asyncio
import importlib
import importlib.util
import os
import pickle
import re
import subprocess
import sys
import tomllib
import types

import numpy as np
import pytest
from support import ROOT, copy_twin, edit_json, edit_weights, needs

from minibert import SentenceEncoder
from minibert.pipeline import Pipeline

PAGE = (ROOT / "docs" / "integrations.md").read_text("utf-8")
FIRST_LINES, *SECTIONS = PAGE.split("\n## ")
#: The module of each section's package.
MODULES = {
    "LangChain": "langchain_core",
    "LlamaIndex": "llama_index.core",
    "Haystack": "haystack",
    "Chroma": "chromadb",
    "LanceDB": "lancedb",
    "Qdrant": "qdrant_client",
    "txtai": "txtai",
    "DSPy": "dspy",
    "BERTopic": "bertopic",
    "KeyBERT": "keybert",
    "MTEB": "mteb",
    "scikit-learn": "sklearn",
    "pandas": "pandas",
    "polars": "polars",
    "DuckDB": "duckdb",
}
#: The packages that need PyTorch.
WITH_TORCH = ("txtai", "MTEB")
#: Nothing is downloaded or reported.
QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
#: MTEB's tasks are data sets on the hub. This one has four pairs of texts of its own.
TASK = """
import datasets
import mteb
from mteb.abstasks.sts import AbsTaskSTS

class Pairs(AbsTaskSTS):
    metadata = mteb.TaskMetadata(
        name="Pairs", description="Four pairs", dataset={"path": "pairs", "revision": "1"}, type="STS", category="t2t",
        modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"], main_score="cosine_spearman",
        reference=None, date=None, domains=None, task_subtypes=None, license=None, annotations_creators=None,
        dialect=None, sample_creation=None, bibtex_citation="",
    )

    def load_data(self, *_, **__):
        pairs = [
            ("A man is eating.", "A man eats food.", 5.0),
            ("A man is eating.", "A woman is eating.", 3.0),
            ("A man is eating.", "Someone cooks.", 2.0),
            ("A man is eating.", "The sky is blue.", 0.0),
        ]
        columns = dict(zip(("sentence1", "sentence2", "score"), map(list, zip(*pairs)), strict=True))
        self.dataset, self.data_loaded = {"test": datasets.Dataset.from_dict(columns)}, True
"""

#: What runs before the programs of a section. DuckDB prints a progress bar if a query takes two seconds.
BEFORE = {
    "MTEB": f"{TASK}\nmteb.get_tasks = lambda tasks: [Pairs()]\n",
    "DuckDB": """
import duckdb

connect = duckdb.connect

def quietly():
    base = connect()
    base.execute("SET enable_progress_bar = false")
    return base

duckdb.connect = quietly
""",
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Let the frameworks neither download nor report, in this process and in others."""
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)


def blocks(text):
    """Return the Python programs of a part of the page."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(program, folder):
    """Return the lines that a program prints in a process of its own."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path, "MTEB_CACHE": str(folder / "mteb")},
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def section(name):
    """Return the text of a section."""
    return next(text for text in SECTIONS if text.partition("\n")[0] == name)


def param(name):
    """Return the parameter for a section, with the marks of its package."""
    return pytest.param(name, marks=[pytest.mark.reference] * (name in WITH_TORCH))


@pytest.mark.integrations
@pytest.mark.parametrize("name", [param(name) for name in MODULES])
def test_recipe(name, tmp_path):
    """Each program of a section prints what the comments say. A later program reads what an earlier one saved."""
    if importlib.util.find_spec(MODULES[name].partition(".")[0]) is None:
        needs(MODULES[name])
    (first,) = blocks(FIRST_LINES)
    for program in blocks(section(name)):
        expected = re.findall(r"^print\(.+\)  # (.+)$", program, re.MULTILINE)
        assert expected

        assert run(BEFORE.get(name, "") + first + program, tmp_path) == expected


# ---------------------------------------------------------------- the page, without a framework


def test_every_section_is_run():
    """Each section has programs, each row of the table has a section, and each program prints something."""
    rows = re.findall(r"^\| \[(.+?)\]\(#(.+?)\) \|", FIRST_LINES, re.MULTILINE)

    assert [text.partition("\n")[0] for text in SECTIONS] == list(MODULES) == [name for name, _ in rows]
    assert all(anchor == name.lower() for name, anchor in rows)
    assert all("  # " in program for name in MODULES for program in blocks(section(name)))


def test_versions_of_the_page():
    """The versions that the page names are those that CI installs."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    pinned = dict(line.split("==") for line in (*extras["integrations"], *extras["reference"]) if "==" in line)
    rows = dict(re.findall(r"^\| \[.+?\]\(.+?\) \| (\S+) (\S+) \|", FIRST_LINES, re.MULTILINE))

    assert len(rows) == len(MODULES)
    for package, version in rows.items():
        assert pinned.get(package, version) == version
    assert rows.keys() - pinned.keys() == {"bertopic", "keybert"}  # .ci/run installs them without PyTorch
    ci = (ROOT / ".ci" / "run").read_text("utf-8") if (ROOT / ".ci").is_dir() else None
    assert ci is None or all(f"{name}=={rows[name]}" in ci for name in ("bertopic", "keybert"))


# ---------------------------------------------------------------- the adapters, without a framework

FOLDER = ROOT / "minibert" / "integrations"
#: What pip installs for each adapter.
PACKAGES = {
    "bertopic": "bertopic",
    "chroma": "chromadb",
    "haystack": "haystack-ai",
    "keybert": "keybert",
    "lancedb": "lancedb",
    "langchain": "langchain-core",
    "llama_index": "llama-index-core",
    "mteb": "mteb",
}


@pytest.mark.parametrize("name", PACKAGES)
def test_missing_framework_is_an_error(name, monkeypatch):
    """Without its framework, an adapter says what to install."""
    top = {"chroma": "chromadb", "langchain": "langchain_core"}.get(name, name)
    for module in (top, *(module for module in sys.modules if module.startswith(f"{top}."))):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"minibert.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"this adapter needs {PACKAGES[name]}, .*: pip install {PACKAGES[name]}$"):
        importlib.import_module(f"minibert.integrations.{name}")


def test_adapters_are_listed():
    """The package's docstring has a row for each adapter, and the page names each adapter."""
    from minibert import integrations

    names = re.findall(r"^\| ``(\w+)`` \|", integrations.__doc__, re.MULTILINE)

    assert names == list(PACKAGES)
    assert set(re.findall(r"minibert\.integrations\.(\w+)", PAGE)) == set(PACKAGES)


def test_nothing_imports_the_adapters():
    """Only the adapters import ``minibert.integrations``: no framework is imported for those who do not use it."""
    folder = ROOT / "minibert"
    if not folder.is_dir():
        pytest.skip("the files of a checkout are not there")
    others = [path for path in folder.rglob("*.py") if "integrations" not in path.parts]

    assert len(others) > 80
    importing = re.compile(r"^\s*(from|import) minibert(\.integrations| import .*\bintegrations)", re.MULTILINE)
    assert not [path for path in others if importing.search(path.read_text("utf-8"))]
    assert importing.search("import sys\n    from minibert.integrations import chroma")


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the files of a checkout are not there")
@pytest.mark.parametrize("name", PACKAGES)
def test_an_adapter_is_short(name):
    """Each class of an adapter has fewer than 30 lines of code, without docstrings."""
    for node in ast.parse((FOLDER / f"{name}.py").read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for each in ast.walk(node):
                if isinstance(each, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(each):
                    each.body[0] = ast.Pass()
            code = [line for line in ast.unparse(node).splitlines() if line.strip() not in ("", "pass")]
            assert len(code) < 30, node.name


@pytest.mark.parametrize(("required", "outcome"), [("1", pytest.fail.Exception), ("0", pytest.skip.Exception)])
def test_missing_package_skips_or_fails(monkeypatch, required, outcome):
    """A test skips without its package, and fails in CI."""
    monkeypatch.setenv("MINIBERT_REQUIRE_EXTRAS", required)
    with pytest.raises(outcome, match="absent_package"):
        needs("absent_package.part")


# ---------------------------------------------------------------- prompts, settings and fingerprints

PROMPTS = {"query": "find: ", "document": "text: "}
TEXTS = ["the cat", "play happy man", "no"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the name of a model whose prompts differ."""
    folder = copy_twin(tmp_path_factory.mktemp("model"))
    edit_json(folder / "config_sentence_transformers.json", prompts=PROMPTS)
    return str(folder)


@pytest.fixture
def encoder(folder):
    """Return its encoder."""
    return SentenceEncoder(folder)


@pytest.fixture
def documents(encoder):
    """Return the vectors that a store must get."""
    return encoder.encode_document(TEXTS, normalize_embeddings=True)


@pytest.fixture
def queries(encoder):
    """Return the vectors of the same texts as queries."""
    return encoder.encode_query(TEXTS, normalize_embeddings=True)


def adapter(name):
    """Return the module of an adapter, or skip where its framework is not installed."""
    needs({"chroma": "chromadb", "langchain": "langchain_core", "llama_index": "llama_index.core"}.get(name, name))
    return needs(f"minibert.integrations.{name}")


@pytest.fixture
def new_process(monkeypatch):
    """Return a function after which stores load their models again, as in a new process."""
    return lambda: monkeypatch.setattr("minibert.integrations.common._OPENED", {})


def double_weights(model):
    """Change the weights of a model in its folder."""
    edit_weights(model / "model.safetensors", lambda arrays: {name: array * 2 for name, array in arrays.items()})


def test_prompts_make_other_vectors(encoder, documents, queries):
    """The tests of this part can fail: documents, queries and plain texts have different vectors."""
    plain = encoder.encode(TEXTS, normalize_embeddings=True)

    assert not np.allclose(documents, queries)
    assert not np.allclose(documents, plain)
    assert not np.allclose(queries, plain)


@pytest.mark.parametrize(("similarity", "lengths_are_one"), [("cosine", True), ("dot", False), ("euclidean", False)])
def test_vectors_have_length_one_for_the_cosine_only(encoder, similarity, lengths_are_one):
    """For another similarity, the lengths of vectors count, and stay."""
    from minibert.integrations.common import vectors

    encoder.similarity_fn_name = similarity
    lengths = np.linalg.norm(vectors(encoder, TEXTS, "query"), axis=1)

    assert np.allclose(lengths, 1, atol=1e-6) == lengths_are_one


def test_another_fingerprint_is_refused(folder):
    """A configuration opens only the model that made its vectors."""
    from minibert.integrations.common import opened

    own = SentenceEncoder(folder).fingerprint

    assert opened(folder, None, 3, own).truncate_dim == 3
    with pytest.raises(ValueError, match=r"with fingerprint 000000000000; the built-in model has \w{12}\. Load"):
        opened(None, None, None, "0" * 64)


def test_a_store_loads_its_model_once(folder, monkeypatch):
    """A configuration gives the encoder that is there. Another width is another encoder."""
    from minibert.integrations.common import opened

    first = opened(folder, None, 3, None)
    other = opened(folder, None, 4, None)
    monkeypatch.setattr(Pipeline, "load", lambda *_: pytest.fail("the model was loaded again"))

    assert opened(folder, None, 3, first.fingerprint) is first
    assert opened(folder, None, 4, first.fingerprint) is other


@pytest.mark.integrations
def test_llama_index_prompts(folder, documents, queries):
    """LlamaIndex gets document vectors for texts and query vectors for questions, also asynchronously."""
    embedding = adapter("llama_index").MinibertEmbedding(folder)

    assert embedding.get_text_embedding_batch(TEXTS) == documents.tolist()
    assert embedding.get_text_embedding(TEXTS[0]) == documents[0].tolist()
    assert embedding.get_query_embedding(TEXTS[0]) == queries[0].tolist()
    assert asyncio.run(embedding.aget_text_embedding_batch(TEXTS)) == documents.tolist()
    assert asyncio.run(embedding.aget_text_embedding(TEXTS[0])) == documents[0].tolist()
    assert asyncio.run(embedding.aget_query_embedding(TEXTS[0])) == queries[0].tolist()


@pytest.mark.integrations
def test_llama_index_configuration(folder):
    """A saved configuration has the name and no weights; it makes an equal model. The encoder gets many texts."""
    cls = adapter("llama_index").MinibertEmbedding
    embedding = cls(folder, truncate_dim=3)
    saved = embedding.to_dict()

    assert saved["model_name"] == folder
    assert len(embedding.to_json()) < 1000
    assert cls.from_dict(saved).get_query_embedding("no") == embedding.get_query_embedding("no")
    assert len(embedding.get_query_embedding("no")) == 3
    assert embedding.embed_batch_size == 1024


@pytest.mark.integrations
def test_haystack_prompts(folder, documents, queries):
    """Haystack gets document vectors in copies of the documents, and query vectors."""
    haystack, module = needs("haystack"), adapter("haystack")
    given = [haystack.Document(content=text, meta={"page": 1}) for text in TEXTS]
    made = module.MinibertDocumentEmbedder(folder).run(given)["documents"]
    embedder = module.MinibertTextEmbedder(folder)
    embedder.warm_up()

    assert [document.embedding for document in made] == documents.tolist()
    assert [document.embedding for document in given] == [None] * 3
    assert [(document.content, document.meta) for document in made] == [(text, {"page": 1}) for text in TEXTS]
    assert embedder.run(TEXTS[0])["embedding"] == queries[0].tolist()


@pytest.mark.integrations
def test_haystack_configuration(folder):
    """A saved pipeline has the arguments and no weights. It is refused unless the module is allowed."""
    haystack, module = needs("haystack"), adapter("haystack")
    pipeline = haystack.Pipeline()
    pipeline.add_component("embedder", module.MinibertTextEmbedder(folder, truncate_dim=3))
    saved = pipeline.dumps()
    again = haystack.Pipeline.loads(saved, allowed_modules=["minibert.integrations.haystack"])

    assert len(saved) < 1000
    assert len(again.run({"embedder": {"text": "no"}})["embedder"]["embedding"]) == 3
    with pytest.raises(needs("haystack.core.errors").DeserializationError, match="allowlist"):
        haystack.Pipeline.loads(saved)


@pytest.mark.integrations
def test_chroma_prompts(folder, documents, queries):
    """Chroma gets document vectors for texts and query vectors for questions."""
    function = adapter("chroma").MinibertEmbeddingFunction(folder)

    np.testing.assert_array_equal(function(TEXTS), documents)
    np.testing.assert_array_equal(function.embed_query(TEXTS), queries)


@pytest.mark.integrations
@pytest.mark.parametrize(("similarity", "space"), [("cosine", "cosine"), ("dot", "ip"), ("manhattan", "l2")])
def test_chroma_space(tmp_path, similarity, space):
    """The default space of a collection is the model's own similarity, where Chroma has it."""
    edit_json(copy_twin(tmp_path) / "config_sentence_transformers.json", similarity_fn_name=similarity)
    function = adapter("chroma").MinibertEmbeddingFunction(str(tmp_path))
    collection = needs("chromadb").EphemeralClient().create_collection(f"in-{space}", embedding_function=function)

    assert function.default_space() == space
    assert collection.configuration["hnsw"]["space"] == space


@pytest.mark.integrations
def test_chroma_refuses_another_model(tmp_path, new_process):
    """If the model's files have changed since, a new process cannot search the collection by text."""
    chromadb, module = needs("chromadb"), adapter("chroma")
    model = copy_twin(tmp_path / "model")
    client = chromadb.PersistentClient(tmp_path / "chroma")
    pages = client.create_collection("pages", embedding_function=module.MinibertEmbeddingFunction(str(model)))
    pages.add(ids=["1"], documents=["the cat"])
    assert client.get_collection("pages").query(query_texts=["no"])["documents"] == [["the cat"]]
    double_weights(model)
    new_process()

    with pytest.raises(ValueError, match="must be searched with the model that made them"):
        client.get_collection("pages").query(query_texts=["no"])


@pytest.mark.integrations
def test_chroma_refuses_another_function(tmp_path):
    """Another model for a collection is an error. Chroma stores it all the same, as the page says."""
    chromadb, module = needs("chromadb"), adapter("chroma")
    client = chromadb.PersistentClient(tmp_path)
    function, other = module.MinibertEmbeddingFunction(), module.MinibertEmbeddingFunction(truncate_dim=3)
    pages = client.create_collection("pages", embedding_function=function)
    with pytest.raises(ValueError, match=r"truncate_dim must be that of the stored vectors, None; .* has 3"):
        pages.modify(configuration={"embedding_function": other})
    with pytest.raises(ValueError, match=r"fingerprint must be that of the stored vectors"):
        function.validate_config_update(function.get_config(), {**function.get_config(), "fingerprint": "0" * 64})

    stored = client.get_collection("pages").configuration["embedding_function"]
    assert stored.get_config()["truncate_dim"] == 3  # if Chroma refuses it some day, change the page


@pytest.mark.integrations
def test_lancedb_prompts(folder, documents, queries):
    """LanceDB gets document vectors for texts and query vectors for questions."""
    function = adapter("lancedb").MinibertEmbeddings.create(name=folder)

    np.testing.assert_array_equal(function.compute_source_embeddings(TEXTS), documents)
    np.testing.assert_array_equal(function.compute_query_embeddings(TEXTS[0]), queries[:1])


@pytest.mark.integrations
def test_lancedb_refuses_another_model(tmp_path, new_process):
    """If the model's files have changed since, a new process cannot search the table by text."""
    lancedb, module = needs("lancedb"), adapter("lancedb")
    model = copy_twin(tmp_path / "model")
    function = module.MinibertEmbeddings.create(name=str(model), truncate_dim=3)
    config = needs("lancedb.embeddings").EmbeddingFunctionConfig(
        source_column="text", vector_column="vector", function=function
    )
    base = lancedb.connect(tmp_path / "lance")
    base.create_table("pages", [{"text": "the cat"}], embedding_functions=[config])
    assert len(base.open_table("pages").search("no").to_list()[0]["vector"]) == 3
    double_weights(model)
    new_process()

    with pytest.raises(ValueError, match="must be searched with the model that made them"):
        base.open_table("pages").search("no").to_list()


@pytest.mark.integrations
@pytest.mark.parametrize("name", ["bertopic", "keybert"])
def test_backends(name, encoder, monkeypatch):
    """A backend gives the vectors of ``encode``, and an encoder alone is still replaced by PyTorch's model.

    If the second fails, change the page. It is one test because the import of BERTopic takes seconds.
    """
    backend = adapter(name).MinibertBackend(encoder)
    loaded = types.ModuleType(f"{name}.backend._sentencetransformers")
    loaded.SentenceTransformerBackend = lambda model: f"PyTorch's {model}"
    monkeypatch.setitem(sys.modules, loaded.__name__, loaded)
    select = importlib.import_module(f"{name}.backend._utils").select_backend

    np.testing.assert_array_equal(backend.embed(TEXTS), encoder.encode(TEXTS))
    np.testing.assert_array_equal(backend.embed(np.array(TEXTS)), encoder.encode(TEXTS))
    assert select(backend) is backend
    assert re.fullmatch("PyTorch's .*MiniLM.*", select(encoder))
    if name == "bertopic":  # it takes a pipeline of scikit-learn, too
        pipeline = needs("sklearn.pipeline").make_pipeline(encoder)
        np.testing.assert_array_equal(select(pipeline).embed(TEXTS), encoder.encode(TEXTS))


@pytest.mark.integrations
@pytest.mark.reference
def test_mteb_prompts(encoder):
    """MTEB gets query or document vectors as a task asks for them, and plain vectors where it asks for neither."""
    prompt_type = needs("mteb.types").PromptType
    model = adapter("mteb").MinibertModel(encoder)
    batches = [{"text": TEXTS[:2]}, {"text": TEXTS[2:]}]
    expected = {
        prompt_type.query: encoder.encode_query(TEXTS),
        prompt_type.document: encoder.encode_document(TEXTS),
        None: encoder.encode(TEXTS),
    }

    for kind, vectors in expected.items():
        np.testing.assert_array_equal(model.encode(batches, prompt_type=kind), vectors)


@pytest.mark.integrations
@pytest.mark.reference
def test_mteb_score_and_facts(encoder, tmp_path):
    """MTEB computes its score with the model's own similarity; the facts name the model exactly."""
    mteb, module = needs("mteb"), adapter("mteb")
    names = {}
    exec(TASK, names)  # noqa: S102
    encoder.similarity_fn_name = "dot"
    model = module.MinibertModel(encoder, "organization/model")
    facts = model.mteb_model_meta
    scores = mteb.evaluate(model, names["Pairs"](), cache=None, show_progress_bar=False).task_results[0].scores

    assert isinstance(model, mteb.EncoderProtocol)
    assert (facts.name, facts.revision) == ("organization/model", encoder.fingerprint)
    assert facts.similarity_fn_name.value == "dot"
    assert -1 <= scores["test"][0]["spearman"] <= 1


@pytest.mark.integrations
def test_langchain_stores_that_ask_isinstance():
    """FAISS of LangChain asks ``isinstance``, and takes anything else for a function. It finds each text by itself."""
    needs("faiss")
    needs("langchain_core.embeddings")
    store = needs("langchain_community.vectorstores.faiss").FAISS.from_texts(TEXTS, SentenceEncoder())

    assert [store.similarity_search(text, k=1)[0].page_content for text in TEXTS] == TEXTS


@pytest.mark.integrations
@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_set_output_of_a_pipeline(encoder, container):
    """``set_output`` of a pipeline reaches the encoder; a clone, a pickle and a configuration give the same frame."""
    sklearn, library = needs("sklearn"), needs(container)
    base, steps = needs("sklearn.base"), needs("sklearn.pipeline")
    column = library.Series(TEXTS)
    pipeline = steps.make_pipeline(encoder).set_output(transform=container)
    frame = pipeline.fit_transform(column)

    assert isinstance(frame, library.DataFrame)
    assert list(frame.columns) == list(pipeline.get_feature_names_out())
    np.testing.assert_array_equal(frame.to_numpy(), encoder.encode(TEXTS))
    for same in (base.clone(pipeline), pickle.loads(pickle.dumps(pipeline))):  # noqa: S301
        assert same.transform(column).equals(frame)
    with sklearn.config_context(transform_output=container):
        assert SentenceEncoder(encoder.get_params()["model_name_or_path"]).transform(column).equals(frame)


@pytest.mark.integrations
def test_set_output_keeps_the_index_in_a_union(encoder):
    """In a union of two encoders, the data frame has the index of the input, and a name for each column."""
    pandas, steps = needs("pandas"), needs("sklearn.pipeline")
    union = steps.FeatureUnion([("a", encoder), ("b", needs("sklearn.base").clone(encoder))])
    frame = union.set_output(transform="pandas").fit_transform(pandas.Series(TEXTS, index=[7, 5, 3]))

    assert list(frame.index) == [7, 5, 3]
    assert frame.shape == (3, 32)
    assert (frame.columns[0], frame.columns[-1]) == ("a__sentenceencoder0", "b__sentenceencoder15")
