"""JSON files of a repo: what is read, and that everything else is refused by the name of the file."""

import os

import pytest

from minibert.errors import ConfigError
from minibert.safe.jsonfile import MAX_BYTES, read_array, read_object, read_optional

#: What is in the file, and a part of what is said of it; the rest of the message names the file.
LIES = {
    "empty": (b"", "not usable JSON"),
    "web page": (b"<!DOCTYPE html><html></html>", "not usable JSON"),
    "cut short": (b'{"hidden_size": 16', "not usable JSON"),
    "garbage behind": (b'{"hidden_size": 16} x', "not usable JSON"),
    "single quotes": (b"{'hidden_size': 16}", "not usable JSON"),
    "not UTF-8": (b'{"name": "\xff"}', "not usable JSON"),
    "UTF-16": ('{"name": 1}'.encode("utf-16"), "not usable JSON"),
    "byte order mark": (b'\xef\xbb\xbf{"name": 1}', "not usable JSON"),
    "NaN": (b'{"layer_norm_eps": NaN}', "NaN is not JSON"),
    "Infinity": (b'{"layer_norm_eps": Infinity}', "Infinity is not JSON"),
    "-Infinity": (b'{"layer_norm_eps": -Infinity}', "-Infinity is not JSON"),
    "100,000 brackets": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not usable JSON"),
    "5,000 digits": (b'{"a": ' + b"9" * 5_000 + b"}", "not usable JSON"),
    "repeated key": (b'{"b": 1, "a": 1, "b": 1, "c": 1, "a": 2}', r"repeated keys \['a', 'b'\]"),
    "repeated key inside": (b'{"a": [{"b": 1, "b": 2}]}', r"repeated keys \['b'\]"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
    "array": (b"[{}]", "must hold a JSON object; it holds an array"),
    "string": (b'"{}"', "must hold a JSON object; it holds a string"),
    "number": (b"1.5", "must hold a JSON object; it holds a number"),
    "boolean": (b"true", "must hold a JSON object; it holds a boolean"),
    "null": (b"null", "must hold a JSON object; it holds null"),
}


@pytest.fixture
def path(tmp_path):
    """Return the path of a file that does not exist yet."""
    return tmp_path / "config.json"


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("read", [read_object, read_optional])
def test_lie_is_refused(path, read, lie):
    """Whatever is no JSON object, or could be read in two ways, is a ConfigError that names the file."""
    content, reason = LIES[lie]
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=rf"config\.json.*{reason}"):
        read(path)


def test_object(path):
    """An object is returned as a dict, with every kind of value, in UTF-8."""
    path.write_text('{"a": [1, 2.5, true, null, "ü"], "b": {"a": -0.0}}', "utf-8")

    assert read_object(path) == {"a": [1, 2.5, True, None, "ü"], "b": {"a": 0.0}}


def test_array(path):
    """An array is returned as a list."""
    path.write_text('[{"idx": 0}, 1]', "utf-8")

    assert read_array(path) == [{"idx": 0}, 1]


def test_array_is_not_an_object(path):
    """Where an array is due, an object is refused."""
    path.write_text("{}", "utf-8")

    with pytest.raises(ConfigError, match=r"config\.json must hold a JSON array; it holds an object"):
        read_array(path)


@pytest.mark.parametrize("read", [read_object, read_array])
def test_missing_file(path, read):
    """A file that is not there is an error that names it and its folder."""
    with pytest.raises(ConfigError, match=r"config\.json does not exist\. Is .* a complete model folder"):
        read(path)


def test_missing_optional_file(path):
    """An optional file that is not there is an empty object."""
    assert read_optional(path) == {}


def test_folder_in_place_of_a_file(path):
    """A folder of the file's name is refused, as a ConfigError."""
    path.mkdir()

    with pytest.raises(ConfigError, match=r"config\.json must be a regular file; it is a folder"):
        read_object(path)


def test_size_limit(path):
    """A file of exactly the limit is read, and one byte more is refused."""
    path.write_text('{"a": 1}', "utf-8")

    assert read_object(path, max_bytes=8) == {"a": 1}
    with pytest.raises(ConfigError, match=r"config\.json has 8 bytes; at most 7 are read"):
        read_object(path, max_bytes=7)


@pytest.mark.parametrize("read", [read_object, read_array, read_optional])
def test_large_file_is_refused_unread(path, read, monkeypatch):
    """A file of 100 MB is refused by its size, before any of it is read."""
    with path.open("wb") as file:
        file.truncate(100_000_000)
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("the file was read"))

    with pytest.raises(ConfigError, match=rf"100,000,000 bytes; at most {MAX_BYTES:,} are read"):
        read(path)
