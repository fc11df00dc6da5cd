"""Jobs over files: what they read and write, and what they refuse before anything is computed."""

import contextlib
import gzip
import json
import os
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from cli_support import listing, usage_error
from jobs_support import TEXTS, content, embed, write_records, write_texts
from support import needs

from minibert import SentenceEncoder, quantize_embeddings
from minibert.cli import main
from minibert.errors import JobError, TruncationWarning, VectorError
from minibert.jobs import Progress, embed_files, inputs, lines, run, tables


def vectors_of(folder):
    """Return the vectors of .npy shards, in order."""
    return np.concatenate([np.load(path) for path in sorted(folder.glob("part-*.npy"))])


def lines_of(folder, pattern="part-?????-of-?????.jsonl"):
    """Return the JSON lines of all shards, in order."""
    return [json.loads(line) for path in sorted(folder.glob(pattern)) for line in path.read_text("utf-8").splitlines()]


def table_of(folder):
    """Return the table of Parquet shards."""
    pa, pq = needs("pyarrow"), needs("pyarrow.parquet")
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))])


def array_of(column):
    """Return a column of vectors as an array, without a copy."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=True)
    return flat.reshape(len(column), -1)


# --- formats of the input --------------------------------------------------------------------------------------------


def csv_of(texts, delimiter=","):
    """Return the bytes of a CSV file."""
    return "".join(f'"{key}"{delimiter}"{text}"\r\n' for key, text in [("key", "text"), *enumerate(texts)]).encode()


CONTENTS = {
    "a.txt": "".join(f"{text}\n" for text in TEXTS).encode(),
    "crlf.txt": "\r\n".join(TEXTS).encode(),
    "bom.txt": b"\xef\xbb\xbf" + "\n".join(TEXTS).encode(),
    "a.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode(),
    "bom.ndjson": b"\xef\xbb\xbf" + "\n".join(json.dumps({"text": text}) for text in TEXTS).encode(),
    "a.csv": csv_of(TEXTS),
    "bom.csv": b"\xef\xbb\xbf" + csv_of(TEXTS),
    "blank lines.csv": csv_of(TEXTS).replace(b"\r\n", b"\r\n\r\n"),
    "a.tsv": csv_of(TEXTS, "\t"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", CONTENTS)
def test_lines(repo, here, encoder, name, packed):
    """Each format of lines, also compressed, gives the vectors of encode, row by row; no pyarrow is needed."""
    path = here / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(CONTENTS[name]) if packed else CONTENTS[name])

    assert embed(repo, path, format="npy") == 0
    np.testing.assert_array_equal(vectors_of(here / "out"), encoder.encode(TEXTS))
    assert lines_of(here / "out") == [{"id": i} for i in range(len(TEXTS))]


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather", "stream.arrow"])
@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_tables(repo, here, encoder, suffix, kind):
    """Each Arrow format, with any type of strings, gives the vectors of encode, and keeps the columns."""
    pa = needs("pyarrow")
    kinds = {"dictionary": pa.dictionary(pa.int8(), pa.string())}
    text = pa.array(TEXTS).cast(kinds.get(kind) or getattr(pa, kind, pa.string)())
    table = pa.table({"key": range(100, 125), "text": text, "when": pa.array(range(25), pa.timestamp("us", "UTC"))})
    path = here / f"a.{suffix}"
    if suffix == "parquet":
        needs("pyarrow.parquet").write_table(table, path, row_group_size=7)
    else:
        make = pa.ipc.new_stream if suffix.startswith("stream") else pa.ipc.new_file
        with make(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)

    assert embed(repo, path, id_column="key") == 0
    found = table_of(here / "out")
    assert found.column_names == ["id", "text", "when", "embedding"]
    assert found["embedding"].type == pa.list_(pa.field("element", pa.float32()), 16)
    np.testing.assert_array_equal(array_of(found["embedding"]), encoder.encode(TEXTS))
    assert found["id"].to_pylist() == list(range(100, 125))
    assert found["text"].to_pylist() == TEXTS
    assert found["when"].type == table["when"].type


def test_files_are_joined_in_order(repo, here, encoder):
    """A shard can have rows of several files; a folder and a pattern are sorted by name."""
    (here / "data").mkdir()
    for number, start in enumerate((0, 3, 3, 17)):
        write_texts(here / "data" / f"{number}.txt", TEXTS[start : (3, 3, 17, 25)[number]])
    (here / "data" / "_SUCCESS").touch()
    (here / "data" / ".hidden.txt").write_text("no")

    for number, source in enumerate((["data"], ["data/*.txt"], [f"data/{i}.txt" for i in range(4)])):
        assert embed(repo, *source, format="npy", output=f"out{number}") == 0
        np.testing.assert_array_equal(vectors_of(here / f"out{number}"), encoder.encode(TEXTS))


@pytest.mark.parametrize("texts", [[], ["a man"], ["", "a man", "", ""]], ids=["no row", "one row", "blank lines"])
@pytest.mark.parametrize("output", ["npy", "parquet"])
def test_few_rows(repo, here, encoder, texts, output):
    """No row gives one empty shard with the right columns; a blank line is an empty text."""
    if output == "parquet":
        needs("pyarrow")
    write_texts(here / "a.txt", texts)

    assert embed(repo, "a.txt", format=output, keep="all") == 0
    if output == "npy":
        found, kept = vectors_of(here / "out"), [line["text"] for line in lines_of(here / "out")]
    else:
        table = table_of(here / "out")
        found, kept = array_of(table["embedding"]) if texts else np.empty((0, 16)), table["text"].to_pylist()
    assert kept == texts
    np.testing.assert_array_equal(found, encoder.encode(texts))
    assert main(["embed", "--verify", "out"]) == 0


def test_columns_of_json_lines(repo, here):
    """One schema for all files: numbers stay numbers where all values fit, everything else becomes JSON text."""
    needs("pyarrow")
    mixed = [1, 2.5, 1, 2.5, 3]
    write_records(
        here / "a.jsonl",
        TEXTS[:5],
        n=int,
        x=mixed.__getitem__,
        b=bool,
        o=lambda i: {"ä": i},
        none=lambda _: None,
        big=lambda _: 2**60 + 1,
    )
    write_records(
        here / "b.jsonl", TEXTS[5:], n=lambda i: i * 2**40, x=int, o=str, late=lambda i: i * 2**63, big=lambda _: 0.5
    )

    assert embed(repo, "a.jsonl", "b.jsonl", id_column="key", shard_rows=4) == 0
    table = table_of(here / "out")
    assert {field.name: str(field.type) for field in table.schema if field.name != "embedding"} == {
        "id": "string",
        "text": "string",
        "n": "int64",
        "x": "double",
        "b": "bool",
        "o": "string",
        "none": "string",
        "big": "string",
        "late": "string",
    }
    assert table["n"].to_pylist() == [*range(5), *(i * 2**40 for i in range(20))]
    assert table["x"].to_pylist() == [*mixed, *range(20)]
    assert table["b"].to_pylist() == [False, True, True, True, True, *[None] * 20]
    assert table["o"].to_pylist()[4:6] == ['{"ä":4}', '"0"']
    assert table["big"].to_pylist()[4:6] == ["1152921504606846977", "0.5"]
    assert table["late"].to_pylist()[4:7] == [None, "0", "9223372036854775808"]


def test_floats_beside_npy(repo, here):
    """Columns of floats go beside .npy files, too. NaN and infinity become null: JSON does not have them."""
    write_records(here / "a.jsonl", TEXTS[:2], x=lambda i: i + 0.5)
    (here / "b.jsonl").write_text('{"text": "a", "x": 1e999}\n')
    assert embed(repo, "a.jsonl", "b.jsonl", format="npy", keep="x") == 0
    assert [line["x"] for line in lines_of(here / "out")] == [0.5, 1.5, None]

    pa = needs("pyarrow")
    table = pa.table({"text": TEXTS[:3], "x": pa.array([0.5, float("nan"), None], pa.float32())})
    needs("pyarrow.parquet").write_table(table, here / "a.parquet")
    assert embed(repo, "a.parquet", format="npy", keep="x", output="table") == 0
    assert [line["x"] for line in lines_of(here / "table")] == [0.5, None, None]


def test_a_table_is_read_once(repo, here, encoder, monkeypatch):
    """Shards that follow each other go on in the open file: a row group is not read again from its start."""
    pa, pq = needs("pyarrow"), needs("pyarrow.parquet")
    pq.write_table(pa.table({"text": [*TEXTS, *TEXTS], "n": range(50)}), here / "a.parquet")
    pq.write_table(pa.table({"text": TEXTS, "n": range(50, 75)}), here / "b.parquet", row_group_size=4)
    starts, batches = [], tables.batches

    def counted(path, kind, names, start, most):
        starts.append((path.name, start))
        return batches(path, kind, names, start, most)

    assert embed(repo, "a.parquet", "b.parquet", id_column="n", shard_rows=7) == 0
    monkeypatch.setattr(tables, "batches", counted)
    assert embed(repo, "a.parquet", "b.parquet", id_column="n", shard_rows=7, output="counted") == 0
    assert starts == [(f"{name}.parquet", 0) for name in "abab"]  # to check, and to read
    for shard in (1, 3, 4, 9):
        (here / "counted" / f"_part-{shard:05d}-of-00011.json").unlink()
    starts.clear()
    assert embed(repo, "a.parquet", "b.parquet", id_column="n", shard_rows=7, output="counted") == 0
    assert starts == [("a.parquet", 7), ("b.parquet", 13)]
    assert content(here / "counted") == content(here / "out")
    table = table_of(here / "out")
    np.testing.assert_array_equal(array_of(table["embedding"]), encoder.encode(TEXTS * 3))
    assert table["id"].to_pylist() == list(range(75))


def test_bytes_do_not_depend_on_row_groups_and_shards_before(repo, here):
    """A shard has the same bytes, whether the one before it was computed in the same run or not."""
    pa, pq = needs("pyarrow"), needs("pyarrow.parquet")
    numbers = range(700)
    table = pa.table({"text": [f"the man {i % 9}" for i in numbers], "long": [f"{i:05}" * 4000 for i in numbers]})
    table = table.append_column("list", pa.array([None if i % 50 == 7 else [i] * 300 for i in numbers]))
    results = []
    for name, size in (("a.parquet", 90), ("b.parquet", 1000), ("c.arrow", 90)):
        if name.endswith("parquet"):
            pq.write_table(table, here / name, row_group_size=size)
        else:
            with pa.ipc.new_file(here / name, table.schema) as writer:
                writer.write_table(table, max_chunksize=size)
        assert embed(repo, name, shard_rows=150, output=f"{name} out") == 0
        before = content(here / f"{name} out")
        for shard in (1, 3):
            (here / f"{name} out" / f"_part-{shard:05d}-of-00005.json").unlink()
        assert embed(repo, name, shard_rows=150, output=f"{name} out") == 0
        assert content(here / f"{name} out") == before
        for part in ("2/2", "1/2"):
            assert embed(repo, name, shard_rows=150, output=f"{name} parts", shards=part) == 0
        assert content(here / f"{name} parts") == before
        results.append({path: data for path, data in before.items() if path.endswith(".parquet")})
        assert table_of(here / f"{name} parts")["long"].equals(table["long"])
    assert results[0] == results[1]  # Arrow has other names inside of lists


# --- formats of the output -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", run.PRECISIONS)
@pytest.mark.parametrize("output", ["npy", "parquet"])
def test_precisions(repo, here, encoder, precision, output):
    """Each precision has its type: lists of floats, or bytes."""
    if output == "parquet":
        pa = needs("pyarrow")
    write_texts(here / "a.txt")
    vectors = encoder.encode(TEXTS, normalize_embeddings=True, truncate_dim=12)
    expected = (
        vectors.astype(np.float16)
        if precision == "float16"
        else quantize_embeddings(vectors, precision)
        if (precision != "float32")
        else vectors
    )

    assert embed(repo, "a.txt", "--normalize", truncate_dim=12, precision=precision, format=output) == 0
    if output == "npy":
        found = vectors_of(here / "out")
    elif "binary" in precision:
        column = table_of(here / "out")["embedding"]
        assert column.type == pa.binary(2)
        found = np.frombuffer(b"".join(column.to_pylist()), expected.dtype).reshape(-1, 2)
    else:
        found = array_of(table_of(here / "out")["embedding"])
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_zstd(repo, here, encoder):
    """Compressed vectors use BYTE_STREAM_SPLIT, and neither a dictionary nor statistics."""
    pq = needs("pyarrow.parquet")
    write_texts(here / "a.txt")

    assert embed(repo, "a.txt", compression="zstd") == 0
    np.testing.assert_array_equal(array_of(table_of(here / "out")["embedding"]), encoder.encode(TEXTS))
    column = pq.ParquetFile(here / "out" / "part-00000-of-00003.parquet").metadata.row_group(0).column(2)
    assert column.compression == "ZSTD"
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert not column.has_dictionary_page
    assert not column.is_stats_set


def test_the_folder_is_a_table(repo, here):
    """Readers that pass over names with an underscore, such as pyarrow and Spark, read the folder as a whole."""
    pq = needs("pyarrow.parquet")
    (here / "a.jsonl").write_text('{"text": "the cat"}\n{"text": null}\n{"text": "a man"}\n', "utf-8")

    assert embed(repo, "a.jsonl", "--on-error", "skip", shard_rows=1) == 0
    assert pq.read_table(here / "out")["id"].to_pylist() == [0, 2]
    assert [name for name in listing(here / "out") if not name.endswith(".parquet")] == [
        "_job.json",
        "_manifest.json",
        *(f"_part-0000{i}-of-00003.json" for i in (0, 1)),
        "_part-00001-of-00003.skipped.jsonl",
        "_part-00002-of-00003.json",
    ]


def test_keep(repo, here):
    """The chosen columns are kept in the given order; an old embedding is replaced."""
    write_records(here / "a.jsonl", n=int, m=str, embedding=lambda _: [1])

    assert embed(repo, "a.jsonl", format="npy", keep="m,n", id_column="key") == 0
    assert lines_of(here / "out")[3] == {"id": "k3", "m": "3", "n": 3}
    assert embed(repo, "a.jsonl", format="npy", keep="key,n,n", id_column="key", output="twice") == 0
    assert lines_of(here / "twice")[3] == {"id": "k3", "n": 3}
    assert embed(repo, "a.jsonl", format="npy", keep="all", output="all") == 0
    assert lines_of(here / "all")[3] == {"id": 3, "key": "k3", "text": TEXTS[3], "n": 3, "m": "3"}


@pytest.mark.parametrize(
    ("options", "arguments"),
    [({"prompt": "a man: "}, {"prompt": "a man: "}), ({"prompt_name": "p"}, {"prompt_name": "p"})],
)
def test_prompts(repo, here, options, arguments):
    """A prompt is put before each text, and the plan has it."""
    settings = repo / "config_sentence_transformers.json"
    settings.write_text(json.dumps({"prompts": {"p": "the hat: ", "query": "and: "}}))
    write_texts(here / "a.txt")
    encoder = SentenceEncoder(repo)

    assert embed(repo, "a.txt", format="npy", **options) == 0
    np.testing.assert_array_equal(vectors_of(here / "out"), encoder.encode(TEXTS, **arguments))
    assert embed(repo, "a.txt", "--query", format="npy", output="query") == 0
    np.testing.assert_array_equal(vectors_of(here / "query"), encoder.encode_query(TEXTS))
    assert json.loads((here / "query" / "_job.json").read_text())["plan"]["model"]["prompt"] == "and: "


def test_no_place_and_no_time(repo, here, tmp_path):
    """The same input in another folder gives the same bytes: no path and no time is in any file but _job.json."""
    results = []
    for name in ("one", "another folder"):
        (tmp_path / name).mkdir()
        write_records(tmp_path / name / f"{name}.jsonl", [*TEXTS, None])
        assert embed(repo, tmp_path / name, format="npy", on_error="skip", output=tmp_path / f"{name}.out") == 0
        results.append({each.name: each.read_bytes() for each in (tmp_path / f"{name}.out").iterdir()})
    for one in results:
        one.pop("_job.json")
    assert results[0] == results[1]
    assert not any(b"folder" in content for content in results[1].values())


# --- determinism and memory ------------------------------------------------------------------------------------------


def test_bytes_do_not_depend_on_batches_and_threads(repo, here):
    """The options that only affect speed are not in the plan: the job accepts them all, and the bytes are the same."""
    write_texts(here / "a.txt")
    results = []
    for number, options in enumerate(({}, {"batch_size": 1}, {"num_threads": 3}, {"on_truncate": "ignore"})):
        assert embed(repo, "a.txt", format="npy", output=f"out{number}", **options) == 0
        results.append({path.name: path.read_bytes() for path in (here / f"out{number}").iterdir()})
    assert results[0] == results[1] == results[2] == results[3]


def test_chunks_do_not_change_vectors(encoder, here, monkeypatch):
    """Rows are cut into chunks at 8,192 rows or many characters; shards of any size give the same vectors."""
    write_texts(here / "a.txt")
    found = []
    for number, (rows, characters, at_once, shard_rows) in enumerate(
        ((3, 1 << 24, 2, 10), (9, 100, 1024, 7), (8, 50, 3, 99))
    ):
        monkeypatch.setattr(inputs, "CHUNK_ROWS", rows)
        monkeypatch.setattr(inputs, "CHUNK_CHARACTERS", characters)
        monkeypatch.setattr(inputs, "_AT_ONCE", at_once)
        embed_files(encoder, "a.txt", f"out{number}", output_format="npy", shard_rows=shard_rows)
        found.append(vectors_of(here / f"out{number}"))
    for vectors in found:
        np.testing.assert_array_equal(vectors, encoder.encode(TEXTS))


def test_memory_does_not_grow(encoder, here, monkeypatch):
    """Ten times as many rows need no more memory, except for what is kept of each shard."""
    monkeypatch.setattr(inputs, "CHUNK_ROWS", 64)
    monkeypatch.setattr(inputs, "_AT_ONCE", 32)
    peaks = []
    for rows in (2000, 20000):
        write_texts(here / f"{rows}.txt", (f"the cat {i % 3}" + " " * 1000 for i in range(rows)))
        tracemalloc.start()
        embed_files(encoder, f"{rows}.txt", f"out{rows}", output_format="npy", shard_rows=rows, keep="none")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2_000_000  # all texts would be 20 MB


def test_memory_of_long_texts(encoder, here, monkeypatch):
    """Chunks with few long texts stay small: no fixed number of rows is read before their lengths count."""
    monkeypatch.setattr(inputs, "CHUNK_CHARACTERS", 1_000_000)
    write_texts(here / "a.txt", ("the cat" + " " * 40_000 for _ in range(1000)))
    tracemalloc.start()
    embed_files(encoder, "a.txt", "out", output_format="npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000  # all texts are 40 MB


def test_progress(encoder, here):
    """All rows and bytes are reported, also the skipped rows and those of complete shards."""
    write_records(here / "a.jsonl", [*TEXTS, None])
    counts, lock = {"checked": 0, "encoded": 0, "computed": 0}, threading.Lock()

    class Counting(Progress):
        def checking(self, size):
            counts["size"] = size

        def encoding(self, rows, done):
            counts["rows"], counts["done"] = rows, done

    def adding(name):
        def add(_self, number):
            with lock:
                counts[name] += number

        return add

    for name in ("checked", "encoded", "computed"):
        setattr(Counting, name, adding(name))
    embed_files(encoder, "a.jsonl", "out", output_format="npy", on_error="skip", shard_rows=10, progress=Counting())

    size = (here / "a.jsonl").stat().st_size
    tokens = sum(map(len, encoder.tokenizer.encode_batch(TEXTS)))
    assert counts == {"checked": 2 * size, "size": 2 * size, "rows": 26, "done": 0, "encoded": 26, "computed": tokens}
    (here / "out" / "_part-00001-of-00003.json").unlink()
    embed_files(encoder, "a.jsonl", "out", output_format="npy", on_error="skip", shard_rows=10, progress=Counting())
    assert (counts["done"], counts["encoded"]) == (16, 36)


# --- rows that cannot be encoded -------------------------------------------------------------------------------------

BAD = {
    "null": (b'{"text": null, "key": "k"}', "must be a string; it is null"),
    "a number": (b'{"text": 7, "key": "k"}', "must be a string; it is 7"),
    "no text": (b'{"key": "k"}', 'must have a field "text" (see --column); its fields are "key"'),
    "a lone surrogate": (b'{"text": "\\ud800", "key": "k"}', "has a lone surrogate"),
    "not UTF-8": (b'{"text": "\xff"}', "must be UTF-8; its byte 11, 0xff, is not"),
    "not JSON": (b'{"text": "a"', "not JSON"),
    "NaN": (b'{"text": "a", "n": NaN}', "NaN, which is not JSON"),
    "many digits": (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "it must be a JSON object; Exceeds the limit"),
    "blank": (b"", "it is blank"),
    "a list": (b'["text"]', 'it is ["text"]'),
    "nested": (b"[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("name", BAD)
def test_unusable_row(repo, here, encoder, capsys, monkeypatch, name):
    """Such a row is an error before the model is loaded, or it is skipped, counted and kept in a side file."""
    line, reason = BAD[name]
    good = [json.dumps({"text": text, "key": f"k{i}"}).encode() for i, text in enumerate(TEXTS)]
    (here / "a.jsonl").write_bytes(b"\n".join([*good[:12], line, *good[12:]]) + b"\n")

    with monkeypatch.context() as patch:
        patch.setattr(SentenceEncoder, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))
        assert embed(repo, "a.jsonl", format="npy", id_column="key") == 1
    message = capsys.readouterr().err
    assert message.startswith("minibert: error: a.jsonl: line 13 cannot be encoded: it")
    assert reason in message
    assert "--on-error skip" in message
    assert message.count("\n") == 1
    assert listing(here) == ["a.jsonl"]

    assert embed(repo, "a.jsonl", format="npy", id_column="key", on_error="skip") == 0
    assert "skipped rows: 1;" in capsys.readouterr().err
    np.testing.assert_array_equal(vectors_of(here / "out"), encoder.encode(TEXTS))
    (skipped,) = lines_of(here / "out", "*.skipped.jsonl")
    assert reason in skipped.pop("reason")
    assert skipped == {
        "row": 12,
        "file": 0,
        "row_in_file": 13,
        "id": "k" if b'"k"' in line and name != "a lone surrogate" else None,
    }
    assert [line["id"] for line in lines_of(here / "out")] == [f"k{i}" for i in range(25)]
    manifest = json.loads((here / "out" / "_manifest.json").read_text())
    assert [manifest[key] for key in ("rows", "skipped")] == [25, 1]
    assert main(["embed", "--verify", "out"]) == 0


def test_unusable_values_of_tables(repo, here, encoder, capsys):
    """The same holds for nulls and invalid UTF-8 in Parquet, and for a shard in which every row is skipped."""
    pa, pq = needs("pyarrow"), needs("pyarrow.parquet")
    blob = pa.array([*(text.encode() for text in TEXTS), b"\xff", *[None] * 20], pa.binary())
    text = pa.StringArray.from_buffers(len(blob), *blob.buffers()[1:], blob.buffers()[0], blob.null_count)
    pq.write_table(pa.table({"key": range(46), "text": text}), here / "a.parquet")

    assert embed(repo, "a.parquet", id_column="key") == 1
    assert "a.parquet: row 26 cannot be encoded: it must be UTF-8" in capsys.readouterr().err
    assert embed(repo, "a.parquet", id_column="key", on_error="skip") == 0
    table = table_of(here / "out")
    np.testing.assert_array_equal(array_of(table["embedding"]), encoder.encode(TEXTS))
    assert table["id"].to_pylist() == list(range(25))
    skipped = lines_of(here / "out", "*.skipped.jsonl")
    assert [(each["row"], each["id"]) for each in skipped] == [(i, i) for i in range(25, 46)]
    assert skipped[1]["reason"] == "it is null"


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_skipped_rows_of_views(repo, here, suffix):
    """Columns of any type are kept beside skipped rows, also types for which Arrow has no filter."""
    pa = needs("pyarrow")
    texts, views = pa.array([None, "a", "b", None], pa.string_view()), pa.list_(pa.string_view())
    table = pa.table({"text": texts, "b": pa.array([b"0", b"1", None, b"3"], pa.binary_view())})
    table = table.append_column("n", pa.array([["0"], ["1"], None, []], views))
    if suffix == "parquet":
        needs("pyarrow.parquet").write_table(table, here / "a.parquet")
    else:
        with pa.ipc.new_file(here / "a.arrow", table.schema) as writer:
            writer.write_table(table)

    assert embed(repo, f"a.{suffix}", on_error="skip") == 0
    found = table_of(here / "out").drop_columns("embedding").to_pydict()
    assert found == {"id": [1, 2], "text": ["a", "b"], "b": [b"1", None], "n": [["1"], None]}


def test_unusable_lines_of_csv(repo, here, encoder, capsys):
    """A row of CSV with another number of fields, or with invalid UTF-8, is skipped alone."""
    (here / "a.csv").write_bytes(b'key,text\n1,"the\ncat"\n2,a,b\n3,\xff\n4,a hat\n')

    assert embed(repo, "a.csv", format="npy") == 1
    assert "a.csv: row 2 cannot be encoded: it must have 2 fields" in capsys.readouterr().err
    assert embed(repo, "a.csv", format="npy", on_error="skip", shard_rows=1) == 0
    np.testing.assert_array_equal(vectors_of(here / "out"), encoder.encode(["the\ncat", "a hat"]))
    assert [each["row"] for each in lines_of(here / "out", "*.skipped.jsonl")] == [1, 2]


@pytest.mark.filterwarnings("default::minibert.errors.TruncationWarning")
def test_too_long_texts(repo, here, capsys):
    """A truncated text is counted; it is a warning once, or an error that names file and line."""
    write_texts(here / "a.txt", [*TEXTS, "the cat " * 300, "a", "the cat " * 400])

    write_texts(here / "b.txt", TEXTS[:3])
    for names in (["b.txt", "a.txt"], ["a.txt"]):
        assert embed(repo, *names, format="npy", on_truncate="error", output="".join(names)[0]) == 1
        assert "a.txt: line 26 has 602" in capsys.readouterr().err
    assert embed(repo, "a.txt", format="npy", output="a") == 0
    assert (
        capsys.readouterr().err.count("2 of 8 texts were cut to max_seq_length = 512 tokens; the longest has 802.") == 1
    )
    manifest = json.loads((here / "a" / "_manifest.json").read_text())
    assert [shard["truncated"] for shard in manifest["shards"]] == [0, 0, 2]
    assert manifest["truncated"] == 2


def test_warning_in_python(encoder, here):
    """In Python it is the warning of encode, and the encoder itself is unchanged."""
    write_texts(here / "a.txt", ["the cat " * 300])
    with pytest.warns(TruncationWarning, match="1 of 1 texts"):
        embed_files(encoder, "a.txt", "out", output_format="npy")
    assert encoder.on_truncate == "warn"


def test_number_too_large_for_float16(encoder, here, monkeypatch):
    """A vector that float16 cannot hold is an error with its place, not an infinity."""
    write_texts(here / "a.txt", TEXTS[:3])
    large = np.array([[1.0, 2.0], [3.0, 70000.0], [1.0, 1.0]], np.float32)
    monkeypatch.setattr(SentenceEncoder, "encode_stream", lambda *_, **__: iter([large]))
    with pytest.raises(ValueError, match=r"up to 65,504; one of a\.txt: line 2 does not"):
        embed_files(encoder, "a.txt", "out", output_format="npy", precision="float16")


# --- what is refused -------------------------------------------------------------------------------------------------

REFUSED = {
    "no file": (["missing.txt"], "missing.txt must be a file, a folder with files, or a pattern"),
    "an empty folder": (["empty"], "empty must be a file, a folder with files"),
    "an unknown suffix": (["a.doc"], "a.doc must end in .txt"),
    "several formats": (["a.txt", "a.jsonl"], "must have one format; a.jsonl is jsonl, a.txt is text"),
    "a mixed folder": (["mixed"], "must have one format"),
    "a column of a text file": (["a.txt", "--column", "body"], "a text file has only the column"),
    "ids of a text file": (["a.txt", "--id-column", "key"], "a text file has only the column"),
    "no such column": (["a.csv", "--column", "body"], "a.csv has no column 'body'; its columns are id, text, text2"),
    "no such column to keep": (["a.csv", "--keep", "n"], "a.csv has no column 'n'"),
    "no such field": (["a.jsonl", "--keep", "n"], "there is no column 'n'"),
    "no such id": (["a.jsonl", "--id-column", "n"], "there is no column 'n'"),
    "an id that is kept": (["a.csv", "--keep", "all"], "--id-column id to use it"),
    "an embedding that is kept": (["a.jsonl", "--keep", "text,embedding"], "no column 'embedding'"),
    "CSV with an open quotation mark": (["open.csv"], "open.csv must be CSV"),
    "CSV without a header": (["empty.csv"], "empty.csv must have a first line"),
    "damaged gzip": (["damaged.txt.gz"], "damaged.txt.gz must be a whole gzip file"),
    "a prompt that is not there": (["a.txt", "--prompt-name", "p"], "prompt_name must be one of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(repo, here, capsys, name):
    """Each has a message of one line, and leaves no folder."""
    arguments, message = REFUSED[name]
    write_texts(here / "a.txt")
    write_records(here / "a.jsonl")
    (here / "a.csv").write_text("id,text,text2\n1,a,b\n")
    (here / "open.csv").write_text('id,text\n1,"a\n2,b\n')
    (here / "empty.csv").touch()
    (here / "a.doc").touch()
    (here / "damaged.txt.gz").write_bytes(gzip.compress(b"the cat\n" * 100)[:-9])
    (here / "empty").mkdir()
    (here / "mixed").mkdir()
    write_texts(here / "mixed" / "a.txt")
    write_records(here / "mixed" / "a.jsonl")
    before = listing(here)

    assert embed(repo, *arguments, format="npy") == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert listing(here) == before


def test_refused_tables(repo, here, capsys):
    """A column of another type, a damaged file, other columns in a later file, a type that JSON does not have."""
    pa, pq = needs("pyarrow"), needs("pyarrow.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), here / "numbers.parquet")
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), here / "a.parquet")
    pq.write_table(pa.table({"text": ["a"], "n": ["1"]}), here / "b.parquet")
    pq.write_table(pa.table({"text": ["a"], "b": [b"1"]}), here / "c.parquet")
    (here / "damaged.parquet").write_bytes((here / "a.parquet").read_bytes()[:-5])
    (here / "damaged.arrow").write_bytes(b"ARROW1")
    pages = here / "pages.parquet"
    pq.write_table(pa.table({"text": ["some text"] * 1000}), pages, compression="snappy", use_dictionary=False)
    pages.write_bytes(pages.read_bytes()[:30] + bytes(30) + pages.read_bytes()[60:])
    interval = pa.table({"text": ["a"], "i": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pa.ipc.new_file(here / "interval.arrow", interval.schema) as writer:
        writer.write_table(interval)
    for arguments, message in (
        (["pages.parquet"], "pages.parquet must be a whole file in the format parquet"),
        (["pages.parquet", "--on-error", "skip"], "pages.parquet must be a whole file in the format parquet"),
        (["interval.arrow"], "columns must have types that Parquet has; Unhandled type"),
        (["numbers.parquet"], "numbers.parquet: the column 'text' must hold strings; it holds int64"),
        (["a.parquet", "b.parquet"], "b.parquet and a.parquet differ in n"),
        (["damaged.parquet"], "damaged.parquet must be a whole file in the format parquet"),
        (["damaged.arrow"], "damaged.arrow must be a whole file in the format arrow"),
        (["c.parquet", "--format", "npy", "--keep", "b"], "'b' is binary"),
    ):
        assert embed(repo, *arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (here / "out").exists()
    assert embed(repo, "a.parquet", "b.parquet", keep="none") == 0


def test_columns_that_cannot_be_read(repo, here, capsys):
    """The file is whole, so the message names another remedy, which works."""
    pa, pq = needs("pyarrow"), needs("pyarrow.parquet")
    lists = pa.array([[f"x{i}"] for i in range(9)]).cast(pa.list_(pa.dictionary(pa.int8(), pa.string())))
    pq.write_table(pa.table({"text": TEXTS[:9], "lists": lists}), here / "a.parquet", row_group_size=2)
    assert embed(repo, "a.parquet") == 1
    assert "a.parquet must have columns that pyarrow can read: Nested data conversions" in capsys.readouterr().err
    assert embed(repo, "a.parquet", keep="text", output="kept") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="a name that is not Unicode")
@pytest.mark.parametrize("suffix", ["txt", "parquet"])
def test_strange_names(repo, here, suffix):
    """A name can have bytes that are not UTF-8, and the characters of a pattern."""
    path = here / os.fsdecode(b"[a]*\xff." + suffix.encode())
    if suffix == "txt":
        write_texts(path)
    else:
        table = needs("pyarrow").table({"text": TEXTS})
        with path.open("wb") as file:
            needs("pyarrow.parquet").write_table(table, file)
    assert embed(repo, path, format="npy") == 0
    assert main(["embed", "--verify", "out"]) == 0


@pytest.mark.parametrize("arguments", [["a.parquet", "--format", "npy"], ["a.txt"]])
def test_without_pyarrow(repo, here, capsys, monkeypatch, arguments):
    """Parquet needs pyarrow; the message says how to install it."""
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    write_texts(here / "a.txt")
    (here / "a.parquet").touch()

    assert embed(repo, *arguments) == 1
    assert 'pip install "minibert[jobs]"' in capsys.readouterr().err


def test_output_with_input(repo, here, capsys):
    """The output holds no input file, and no files of others."""
    (here / "out").mkdir()
    write_texts(here / "out" / "a.txt")
    assert embed(repo, "out/a.txt", format="npy") == 1
    assert "--output must not hold an input file; out/a.txt is in it" in capsys.readouterr().err
    (here / "link").symlink_to("out")
    assert embed(repo, "link/a.txt", format="npy") == 1
    assert "--output must not hold an input file; link/a.txt is in it" in capsys.readouterr().err
    write_texts(here / "a.txt")
    assert embed(repo, "a.txt", format="npy") == 1
    assert "--output must be empty or a job; out has 'a.txt' and no _job.json" in capsys.readouterr().err
    assert embed(repo, "a.txt", output="a.txt", format="npy") == 1
    assert "--output must be a folder; a.txt is not" in capsys.readouterr().err
    assert embed(repo, "a.txt", output="no/folder", format="npy") == 1
    assert "there is no folder no" in capsys.readouterr().err


def test_a_pipe_is_no_input(repo, here, capsys):
    """The input is read twice."""
    os.mkfifo(here / "a.txt")
    assert embed(repo, "a.txt", format="npy") == 1
    assert "a.txt must be a regular file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.txt"],
        ["--output", "out"],
        ["a.txt", "--verify", "out"],
        ["--output", "out", "--verify", "out"],
        ["a.txt", "--output", "out", "--precision", "int8"],
        ["a.txt", "--output", "out", "--shards", "0/2"],
        ["a.txt", "--output", "out", "--shards", "3/2"],
        ["a.txt", "--output", "out", "--shards", "1"],
        ["a.txt", "--output", "out", "--shard-rows", "0"],
        ["a.txt", "--output", "out", "--format", "npy", "--compression", "zstd"],
        ["a.txt", "--output", "out", "--revision", "main"],
        ["a.txt", "--output", "out", "--prompt", "a", "--query"],
    ],
)
def test_usage(arguments):
    """Contradictions are wrong usage."""
    usage_error("embed", *arguments)


def test_wrong_arguments_in_python(encoder, here):
    """The function checks what the command line checks."""
    write_texts(here / "a.txt")
    for options in (
        {"output_format": "csv"},
        {"compression": "gzip"},
        {"output_format": "npy", "compression": "zstd"},
        {"on_error": "ignore"},
        {"precision": "int4"},
        {"precision": "int8"},
        {"precision": "uint8"},
        {"part": (2, 1)},
        {"shard_rows": 0},
    ):
        with pytest.raises(ValueError, match=r"must be|is for Parquet|takes its ranges from all vectors"):
            embed_files(encoder, "a.txt", "out", **{"output_format": "npy", **options})
    with pytest.raises(JobError, match="must be a file"):
        embed_files(encoder, "b.txt", "out", output_format="npy")
    assert listing(here) == ["a.txt"]


@pytest.mark.parametrize("line", [' {"text": "a"}', '{"text": "a"} \t', '\t{"text": "a"}\r'])
def test_spaces_around_json(line):
    """A line may have spaces before and after its object."""
    assert lines._record(line) == {"text": "a"}


@pytest.mark.parametrize("line", ['{"text": "a"} x', '{"text": "a"}{"text": "b"}', " ", "", "x"])
def test_a_line_is_one_object(line):
    """A line with more than an object, or with less, is not JSON."""
    with pytest.raises(ValueError, match=r"it must be a JSON object; it is (not JSON|blank)"):
        lines._record(line)


@pytest.mark.parametrize("fails", ["computation", "end"])
def test_the_writer_is_waited_for(encoder, here, monkeypatch, fails):
    """Files are closed only after the last rows are written. An error at the end of the last shard is raised."""
    order = []

    @contextlib.contextmanager
    def writing(*_):
        def write(*_):
            time.sleep(0.2)
            order.append("written")

        try:
            yield write
        finally:
            order.append("closed")
        raise OSError(28, "No space left on device")

    computed = run._vectors

    def vectors(work, chunk, reader):
        if order or chunk.rows[0]:
            raise VectorError("the second chunk")
        return computed(work, chunk, reader)

    write_texts(here / "a.txt")
    monkeypatch.setattr(run, "writing", writing)
    if fails == "computation":
        monkeypatch.setattr(inputs, "CHUNK_ROWS", 5)
        monkeypatch.setattr(run, "_vectors", vectors)
    with pytest.raises((VectorError, OSError), match="second chunk" if fails == "computation" else "No space left"):
        embed_files(encoder, "a.txt", "out", output_format="npy")
    assert order == ["written", "closed"]
