"""Packages that only some features need. They are extras of this package (pyproject.toml), imported when first used."""

import importlib
from typing import Any


def import_optional(module: str, extra: str) -> Any:
    """Import a module of a package that an extra installs.

    Args:
        module: dotted name.
        extra: the extra of this package that installs it.

    Raises:
        ImportError: if it cannot be imported; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this needs {module}, which cannot be imported ({error}): install the extra {extra!r}, in a clone of this "
            f"repository with `pip install '.[{extra}]'`"
        ) from error
