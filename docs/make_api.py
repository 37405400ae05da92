"""Write docs/api.txt, the public surface: `python docs/make_api.py`. A test fails while the file is out of date.

Public are the names in ``__all__`` of the packages, and the fields of the settings: they are the flags of the commands
and the keys of config.yaml.
"""

import importlib
import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from repmlp_settings import COMMANDS

FILE = Path(__file__).with_name("api.txt")
PACKAGES = (
    "repmlp",
    "repmlp.functional",
    "repmlp.layers",
    "repmlp.conversion",
    "repmlp.models",
    "repmlp.official",
    "repmlp.data",
    "repmlp.training",
    "repmlp.deploy",
    "repmlp.ablation",
    "repmlp.plot",
    "repmlp.report",
)


def signature(value: Any) -> str:
    """The arguments of a function or class, without types; "" for anything else."""
    if not callable(value):
        return ""
    try:
        arguments = inspect.signature(value)
    except ValueError:  # a class that inherits a constructor written in C
        return "(...)"
    parameters = [p.replace(annotation=p.empty) for p in arguments.parameters.values()]
    text = str(arguments.replace(parameters=parameters, return_annotation=arguments.empty))
    return re.sub(r"<function .*? at 0x\w+>", "...", text)  # a default that is a function shows where it lies in memory


def api() -> str:
    """The text of the file."""
    lines = ["# Written by docs/make_api.py. A change here changes what users may rely on."]
    for name in PACKAGES:
        package = importlib.import_module(name)
        lines += ["", f"# {name}"]
        lines += [f"{name}.{public}{signature(getattr(package, public))}" for public in sorted(package.__all__)]
    for command, settings in COMMANDS.items():
        lines += ["", f"# repmlp {command}"]
        for field in fields(settings):
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            lines.append(f"{command} {field.name}" + ("" if default is MISSING else f" = {default!r}"))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(api())
