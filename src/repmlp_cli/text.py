"""Text for a terminal; imports neither PyTorch nor rich."""

import re
from dataclasses import fields

#: Control characters (including terminal escapes), line separators, changes of text direction, and surrogates, which
#: stand for the bytes of a file name that are not UTF-8.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """Escape the characters of untrusted text (labels, file names) that a terminal would act on, as in ``\\x1b``."""
    return UNPRINTABLE.sub(lambda c: c[0] if c[0] in keep else c[0].encode("unicode_escape").decode(), text)


def with_flags(message: str, settings: type) -> str:
    """Replace arguments in a message of the library by a command's flags: ``overwrite=True`` by --overwrite."""
    for field in fields(settings):
        flag = f"--{field.name.replace('_', '-')}"
        message = re.sub(rf"\b{field.name}=True\b", flag, message)
        message = re.sub(rf"\b{field.name}=(?=\S)", f"{flag}=", message)
    return message
