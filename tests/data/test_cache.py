"""What is remembered of a data set, and when it is computed again."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from repmlp.data.cache import get_or_compute


def counting():
    calls = []

    def compute(key):
        calls.append(key)
        return [key, len(calls)]

    return calls, compute


def test_only_what_changed_is_computed_again(tmp_path):
    calls, compute = counting()
    file = tmp_path / "cache.json"
    assert get_or_compute(file, {"a": 1, "b": [2, "x"]}, compute) == {"a": ["a", 1], "b": ["b", 2]}
    assert get_or_compute(file, {"a": 1, "b": [2, "y"]}, compute) == {"a": ["a", 1], "b": ["b", 3]}
    assert calls == ["a", "b", "b"]


def test_other_entries_stay(tmp_path):
    calls, compute = counting()
    file = tmp_path / "cache.json"
    get_or_compute(file, {"a": 1}, compute)
    get_or_compute(file, {"b": 1}, compute)
    assert get_or_compute(file, {"a": 1}, compute) == {"a": ["a", 1]}
    assert calls == ["a", "b"]


def test_without_a_file_nothing_is_get_or_compute():
    _, compute = counting()
    assert get_or_compute(None, {"a": 1}, compute) == {"a": ["a", 1]}
    assert get_or_compute(None, {"a": 1}, compute) == {"a": ["a", 2]}


def test_entries_of_another_shape_count_as_none(tmp_path):
    _, compute = counting()
    file = tmp_path / "cache.json"
    file.write_text('{"format": 1, "entries": {"a": 7, "b": {"content": 1}}}')
    assert get_or_compute(file, {"a": 1, "b": 1}, compute) == {"a": ["a", 1], "b": ["b", 2]}


def test_a_file_of_another_format_is_computed_again(tmp_path):
    _, compute = counting()
    file = tmp_path / "cache.json"
    file.write_text('{"format": 0, "entries": {"a": {"content": 1, "value": "old"}}}')
    assert get_or_compute(file, {"a": 1}, compute) == {"a": ["a", 1]}


def test_a_disk_that_fills_up_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    _, compute = counting()
    file = tmp_path / "cache.json"
    get_or_compute(file, {"a": 1}, compute)
    before, write = file.read_text(), Path.write_text

    def half(path, text, **kwargs):
        write(path, text[: len(text) // 2], **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    assert get_or_compute(file, {"a": 2}, compute) == {"a": ["a", 2]}
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]


def test_processes_that_write_at_once_leave_a_whole_file(tmp_path):
    file = tmp_path / "cache.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: get_or_compute(file, {"a": i}, lambda key: "x" * 10000), range(40)))
    entry = json.loads(file.read_text())["entries"]["a"]
    assert entry["content"] in range(40)
    assert entry["value"] == "x" * 10000
    assert list(tmp_path.iterdir()) == [file]
