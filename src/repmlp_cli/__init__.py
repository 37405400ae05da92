"""The command `repmlp`: turns flags and YAML files into settings, and calls the library with them.

A separate package, because importing `repmlp` imports PyTorch, which takes seconds: here PyTorch is imported only after
the arguments have been checked.
"""

import importlib
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from itertools import zip_longest
from keyword import iskeyword
from typing import Any, NoReturn, get_args, get_origin

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from repmlp_settings import COMMANDS, check_numbers

from .text import printable, with_flags

#: How PyTorch says that a tensor does not fit.
OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory|[Ss]torage size calculation overflowed")


class Parser(ArgumentParser):
    """A parser that reports a wrong setting in one line, as all other errors are."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        prog = re.sub(r" \[.*?\]", "", self.prog)  # "repmlp [options] train"
        print(f"error: {printable(plainly(message))} (see {prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def plainly(message: str) -> str:
    """What jsonargparse says about a setting, in one line, with the flag's name and without Python's types."""
    text = " ".join(message.split())
    text = re.sub(r"Does not validate .*?Subtypes: \[(.*)\] Errors: .*Given value: ", r"Expected \1. Got value: ", text)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    text = re.sub(r"<class '(\w+)'>", lambda kind: {"NoneType": "null"}.get(kind[1], kind[1]), text)
    text = re.sub(rf'(Parser key "|--|required: )({"|".join(COMMANDS)})\.', r"\1", text)  # export.model
    text = re.sub(r'^Parser key "(.*?)": Expected (a )?', r"--\1: expected ", text)
    text = re.sub(r'^Parser key "(.*?)": ', r"--\1: ", text)
    text = re.sub(r"\bfloat, null\b", "a number, or null", text)
    text = text.replace(". Got value:", ", got").replace("got None", "got null")
    return re.sub(r"--\w+", lambda flag: flag[0].replace("_", "-"), text)


def build_parser(only: str | None = None) -> ArgumentParser:
    """The parser of all commands; with ``only``, adds the flags of that command alone, to save time."""
    parser = Parser(
        prog="repmlp",
        version=f"repmlp {version('repmlp')}",
        description="Train vision networks that run convolutions in parallel with FC layers; deploy them without.",
    )
    parser.add_argument("--debug", action="store_true", help="Show the traceback of every error.")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, settings in COMMANDS.items():
        summary = (settings.__doc__ or "").partition("\n")[0]
        command = Parser()
        if only in (None, name):
            command.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; flags override it.")
            special = {field.name: field.metadata for field in fields(settings) if field.metadata}
            command.add_class_arguments(settings, as_positional=True, skip=set(special))
            for argument, how in special.items():
                text = re.search(rf"^ +{argument}: (.*)$", settings.__doc__ or "", re.MULTILINE)
                flag = f"--{argument}" if "required" in how else argument
                command.add_argument(flag, type=str, help=text and text[1], **how)
        commands.add_subcommand(name, command, help=summary)
    return parser


def parse(argv: Sequence[str]) -> tuple[str, Any]:
    """Parse a command line into the command's name and its settings; exits with a usage message if it is invalid."""
    only = next((word for word in argv if word in COMMANDS), "")
    args = build_parser(only).parse_args(_spell(argv, only))
    values = args[args.command]
    values.pop("config", None)
    return args.command, COMMANDS[args.command](**{key: _plain(value) for key, value in vars(values).items()})


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Errors that a user can fix (wrong settings, missing files or packages, a loss that is not finite) are shown in one
    line; all others, or with --debug every error, with their traceback.

    Returns:
        Exit status: 0 for success, 1 if a check fails, 2 after an error, 130 if interrupted.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        with _sigterm_as_ctrl_c(), _printable_warnings():
            return _run(words)
    except KeyboardInterrupt as stop:
        if os.environ.get("RANK", "0") == "0":  # under torchrun, only rank 0 prints
            print("\n" + printable(str(stop) or "stopped", keep="\n"), file=sys.stderr)
        return 130


def _run(words: Sequence[str]) -> int:
    name, settings = parse([word for word in words if word != "--debug"])
    try:
        check_numbers(settings)
        command = importlib.import_module(f"repmlp_cli.{name}{'_' if iskeyword(name) else ''}")
        if name == "train":  # to resume with --epochs 100 is not the same as without it, also if 100 is the default
            return command.run(settings, _flags(words))
        return command.run(settings)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if "--debug" in words:
            raise
        message = with_flags(str(error), COMMANDS[name])
    except (RuntimeError, MemoryError) as error:
        if "--debug" in words or not (isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error))):
            raise
        reason = next(iter(str(error).splitlines()), "")
        message = f"there is not enough memory: use fewer images, a smaller batch or a smaller network ({reason})"
    print("error:", printable(message, keep="\n"), file=sys.stderr)
    return 2


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so that a command cleans up before it ends."""
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def _printable_warnings() -> Iterator[None]:
    """Show warnings in one line, with what a terminal would act on escaped: they name files and classes."""
    before = warnings.formatwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **how: Any) -> str:
        text = f"warning: {message}\n" if category is UserWarning else before(message, category, *where, **how)
        return printable(text, keep="\n")

    warnings.formatwarning = show
    try:
        yield
    finally:
        warnings.formatwarning = before


def _flags(words: Sequence[str]) -> set[str]:
    """The names of the settings that a command line gives."""
    return {re.split(r"[=.]", word[2:], maxsplit=1)[0].replace("-", "_") for word in words if word.startswith("--")}


def _spell(argv: Sequence[str], command: str) -> list[str]:
    """Accept --data-root for --data_root, --overwrite for --overwrite=true, and lists without brackets."""
    kinds = {field.name: field.type for field in fields(COMMANDS[command])} if command else {}
    words: list[str] = []
    before = ""  # the flag that still needs its value
    for i, (word, following) in enumerate(zip_longest(argv, argv[1:], fillvalue="")):
        if word == "--":  # what follows are names of files, whatever they look like
            return [*words, *argv[i:]]
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            before = name[2:].replace("-", "_")
            name = f"--{before}"
            if kinds.get(before) is bool and not equals and following not in ("true", "false"):
                equals, value = "=", "true"
        else:
            name, equals, value = "", "", word
        lists = [kind for kind in (kinds.get(before), *get_args(kinds.get(before))) if get_origin(kind) is list]
        if lists and (kinds[before] in lists or "," in value) and value and not value.startswith("["):
            value = f"[{value}]"
        if value:
            before = ""
        words.append(f"{name}{equals}{value}")
    return words


def _plain(value):
    """Nested settings as a dict."""
    return value.as_dict() if isinstance(value, Namespace) else value
