"""Write the pages of the site that are made from the code: commands, recipe keys and public names."""

import importlib
import inspect
import re
import runpy
import textwrap
import typing
from pathlib import Path
from typing import Any

import yaml

from repmlp_cli import build_parser
from repmlp_settings import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGES = runpy.run_path(str(ROOT / "docs" / "make_api.py"))["PACKAGES"]


def heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def escape(text: str) -> str:
    """Plain text of a help string as reStructuredText; what is in backticks is code."""
    parts = re.split(r"`([^`]+)`", text)
    return "".join(f"``{part}``" if i % 2 else re.sub(r"([*_|\\])", r"\\\1", part) for i, part in enumerate(parts))


def kind(hint: Any) -> str:
    """A type as a user writes its values: ``no|bf16|fp16``, ``int``, ``[int,...]``."""
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is list:
        return f"{kind(typing.get_args(hint)[0])},..."
    if typing.get_origin(hint) is dict:
        return "key=value"
    alternatives = [kind(part) for part in typing.get_args(hint) if part is not type(None)]
    return "|".join(alternatives) or getattr(hint, "__name__", str(hint))


def help_of(action: Any) -> str:
    return " ".join((action.help or "").split())


def arguments(command: str) -> list[Any]:
    """The actions of a command's parser, positional ones first, without --help and the like."""
    (commands,) = (action for action in build_parser(command)._actions if action.dest == "command")
    actions = [action for action in commands.choices[command]._actions if hasattr(action, "_typehint")]
    return sorted(actions, key=lambda action: bool(action.option_strings))


def commands_page() -> str:
    """Every command with every argument, from the parsers themselves."""
    text = heading("Commands", "=")
    text += (
        "\nEach command takes ``--config FILE``, a YAML file of its settings; flags override it. "
        "``--data-root`` and ``--data_root`` are the same flag, and a flag without a value is on: ``--overwrite``. "
        "``repmlp --debug COMMAND ...`` shows the traceback of every error.\n"
    )
    for command, settings in COMMANDS.items():
        about = inspect.cleandoc(settings.__doc__ or "").partition("\nArgs:")[0]
        text += f"\n{heading(f'repmlp {command}', '-')}\n.. program:: repmlp {command}\n\n{escape(about)}\n"
        for action in arguments(command):
            flag = (action.option_strings or [""])[0].replace("_", "-")
            value = "" if action._typehint is bool else f" <{kind(action._typehint)}>"
            name = f"{flag}{value}" if flag else action.dest
            shown = action.default not in (None, [], {}) and action.default is not False
            default = f" Default: ``{action.default}``." if shown else ""
            text += f"\n.. option:: {name}\n\n   {escape(help_of(action))}{default}\n"
    return text


def recipes_page() -> str:
    """Every key of a recipe, as a YAML file of the defaults, and the recipes of this repository."""
    text = heading("Recipes", "=")
    text += (
        "\nA recipe is a YAML file for ``repmlp train --config FILE``. Its keys are the flags of "
        "`repmlp train <commands.html#repmlp-train>`_; a key that is left out has the default below. "
        "A run folder has all of them in ``config.yaml``.\n"
    )
    text += f"\n{heading('All keys', '-')}\n.. code-block:: yaml\n\n"
    for action in arguments("train"):
        if action.option_strings:
            value = yaml.safe_dump(action.default, default_flow_style=True).splitlines()[0]
            comment = textwrap.fill(help_of(action), 76, initial_indent="# ", subsequent_indent="# ")
            text += textwrap.indent(f"{comment}\n{action.dest}: {value}\n", "   ") + "\n"
    for file in sorted((ROOT / "recipes").glob("*.yaml")):
        text += f"\n{heading(f'recipes/{file.name}', '-')}\n.. literalinclude:: ../../recipes/{file.name}\n"
    return text


def api_pages() -> dict[str, str]:
    """A page for each package. A name of several packages is described in the first, and linked from the others."""
    pages, described = {}, {}
    for package in (*PACKAGES, "repmlp_settings"):
        module = importlib.import_module(package)
        names = module.__all__ if package in PACKAGES else [settings.__name__ for settings in COMMANDS.values()]
        text = f"{heading(package, '=')}\n.. automodule:: {package}\n"
        for name in sorted(names):
            value, full = getattr(module, name), f"{package}.{name}"
            if inspect.ismodule(value):
                continue  # has its own page
            if not callable(value):
                text += f"\n.. py:data:: {full}\n   :value: {value!r}\n"
                continue
            kind = "class" if inspect.isclass(value) else "function"
            first = described.setdefault(id(value), full)
            if first != full:
                text += f"\n.. py:{kind}:: {full}\n   :no-index:\n\n   See :py:obj:`{first}`.\n"
                continue
            if package not in PACKAGES:  # too many arguments for a signature; the docstring lists them
                text += f"\n.. autoclass:: {full}(...)\n"
                continue
            text += f"\n.. auto{kind}:: {full}\n"
            if kind == "class":
                text += "   :members:\n   :inherited-members: Module, BaseException\n"
        pages[package] = text
    index = f"{heading('Python API', '=')}\n.. toctree::\n\n" + "".join(f"   {package}\n" for package in pages)
    return {"api": index, **pages}


def write(folder: Path) -> None:
    """Write all pages; a page that has not changed keeps its time, so that it is not built again."""
    folder.mkdir(exist_ok=True)
    for name, text in {"commands": commands_page(), "recipes": recipes_page(), **api_pages()}.items():
        file = folder / f"{name}.rst"
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
