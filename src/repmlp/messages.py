"""Parts of error messages."""

from collections.abc import Sequence
from typing import Any


def shorten(names: Sequence[Any]) -> str:
    """The first five names of a list, and how many more there are."""
    return ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def shown(value: object) -> str:
    """A value's ``repr``, cut off after 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
