"""What the tests of jobs share: small inputs, the command, and the content of a folder."""

import json

from minibert.cli import main
from minibert.jobs import folder

TEXTS = [f"the man number {i} and a hat" + " and a cat" * (i % 7) for i in range(25)]


def write_texts(path, texts=TEXTS):
    """Write a text file."""
    path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return path


def write_records(path, texts=TEXTS, **fields):
    """Write JSON lines with a text, a key, and fields that are functions of the row's number."""
    rows = [
        {"key": f"k{i}", "text": text} | {name: field(i) for name, field in fields.items()}
        for i, text in enumerate(texts)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return path


def command(repo, *argv, shard_rows=10, output="out", **options):
    """Return the arguments of a job with small shards."""
    named = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    arguments = ["embed", *map(str, argv), "--model", str(repo), "--output", str(output)]
    return [*arguments, "--shard-rows", str(shard_rows), *named]


def embed(repo, *argv, **options):
    """Run a job and return its exit status."""
    return main(command(repo, *argv, **options))


def content(path):
    """Return the bytes of each file of a job's result. _job.json has paths: of it, only the plan counts."""
    found = {each.name: each.read_bytes() for each in path.iterdir()}
    if folder.JOB in found:
        found[folder.JOB] = json.loads(found[folder.JOB])["plan"]
    return found
