"""Parts of error messages."""

from collections.abc import Sequence
from typing import Any


def shorten(names: Sequence[Any], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def shown(value: object, most: int = 60) -> str:
    """The beginning of a value's ``repr``."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
