"""Text for a terminal; imports neither PyTorch nor rich."""

import re
from dataclasses import fields

#: Control characters (terminal escapes among them), line separators, changes of direction, and half characters, which
#: stand for bytes of a file name that are not UTF-8.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """Text from outside (labels, names of files) with characters that a terminal would act on written as ``\\x1b``."""
    return UNPRINTABLE.sub(lambda c: c[0] if c[0] in keep else c[0].encode("unicode_escape").decode(), text)


def with_flags(message: str, settings: type) -> str:
    """A message of the library with a command's flags for arguments: --overwrite for ``overwrite=True``."""
    for field in fields(settings):
        flag = f"--{field.name.replace('_', '-')}"
        message = re.sub(rf"\b{field.name}=True\b", flag, message)
        message = re.sub(rf"\b{field.name}=(?=\S)", f"{flag}=", message)
    return message
