"""Parts of messages: lists, values, suggestions, tables."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


def shorten(names: Sequence[Any]) -> str:
    """The first five names of a list, and how many more there are."""
    return ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def count(number: int, singular: str, plural: str = "") -> str:
    """A number and a noun: ``1 epoch``, ``2 epochs``."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def shown(value: object) -> str:
    """A value's ``repr``, cut off after 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question that follows an unknown name; empty if no known one is like it."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f", did you mean {' or '.join(near)}?" if near else ""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; all but the first column are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
