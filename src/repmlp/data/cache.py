"""What was computed from a data set, kept in a file next to it."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files import atomic_write, ensure_regular

#: Goes up when an entry comes to mean something else, so that files of older versions are computed again.
FORMAT = 1


def get_or_compute(file: Path | None, contents: dict[str, Any], compute: Callable[[str], object]) -> dict[str, Any]:
    """``compute(key)`` for each key, or its result from an earlier call in which the key had the same content.

    A file that is missing, cannot be read or holds something else counts as empty. If it cannot be written
    (a read-only folder, a full disk), it stays as it is, and the next call computes everything again. It is
    written as a whole or not at all, so several processes may call this at once.

    Args:
        file: JSON; None to keep nothing.
        contents: by key, what the value depends on, as plain JSON values.
        compute: returns a plain JSON value.
    """
    entries = _read(file) if file else {}
    stale = [key for key, content in contents.items() if not _is_current(entries.get(key), content)]
    for key in stale:
        entries[key] = {"content": contents[key], "value": compute(key)}
    if file and stale:
        with suppress(OSError):
            atomic_write(file, json.dumps({"format": FORMAT, "entries": entries}))
    return {key: entries[key]["value"] for key in contents}


def _is_current(entry: object, content: object) -> bool:
    return isinstance(entry, dict) and "value" in entry and entry.get("content") == content


def _read(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        ensure_regular(file)
        stored = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(stored, dict) and stored.get("format") == FORMAT and isinstance(stored.get("entries"), dict):
            return stored["entries"]
    return {}
