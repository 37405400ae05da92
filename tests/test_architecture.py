"""Which way the rooms of the package look: each imports only from those before it. And a few rules for all files."""

import ast
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
ROOMS = (
    "extras",
    "files",
    "messages",
    "functional",
    "layers",
    "locality",
    "conversion",
    "counting",
    "models",
    "resizing",
    "model_config",
    "checkpoint",
    "official",
    "data",
    "training",
    "deploy",
    "ablation",
    "cards",
    "plot",
    "report",
    "__init__",
)
#: What may be imported from outside, where that is limited. The settings are read before PyTorch is imported.
OUTSIDE = {"functional": {"torch"}, "repmlp_settings": set()}
#: Packages beside repmlp: which of them a package may import.
BESIDE = {
    "repmlp": {"repmlp_settings"},
    "repmlp_settings": set(),
    "repmlp_app": {"repmlp"},
    "repmlp_cli": {"repmlp", "repmlp_settings", "repmlp_app"},
}


def files(src: Path) -> list[Path]:
    return sorted(src.rglob("*.py"))


def imports(path: Path, src: Path) -> Iterator[str]:
    """Absolute dotted names of all that a file imports, wherever in the file."""
    package = path.relative_to(src).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a dotted name in repmlp; the package's own names live in its ``__init__``."""
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "__init__"


def violations(src: Path = SRC) -> list[str]:
    found = []
    for path in files(src):
        where = path.relative_to(src)
        package, room = where.parts[0], where.parts[1].removesuffix(".py")
        if package == "repmlp" and room not in ROOMS:
            found.append(f"{where} is a room that the order does not name")
            continue
        for name in imports(path, src):
            parts = tuple(name.split("."))
            if parts[0] == package:
                if package == "repmlp" and ROOMS.index(room_of(parts)) > ROOMS.index(room):
                    found.append(f"{where} looks upwards: it imports {name}")
            elif parts[0] in BESIDE:
                if parts[0] not in BESIDE[package]:
                    found.append(f"{where} looks into another package: it imports {name}")
            else:
                allowed = OUTSIDE.get(room if package == "repmlp" else package)
                if allowed is not None and parts[0] not in allowed | sys.stdlib_module_names:
                    found.append(f"{where} imports {name} from outside")
    return found


def prints(src: Path = SRC) -> list[str]:
    return [
        f"{path.relative_to(src)}:{node.lineno}"
        for path in files(src / "repmlp")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def long_files(src: Path = SRC, most: int = 400) -> list[str]:
    return [str(path.relative_to(src)) for path in files(src) if len(path.read_text().splitlines()) >= most]


def test_no_room_looks_upwards():
    assert violations() == []


def test_the_library_prints_nothing():
    assert prints() == []


def test_files_are_short():
    assert long_files() == []


def test_there_is_something_to_walk():
    assert {path.relative_to(SRC).parts[0] for path in files(SRC)} == set(BESIDE)
    rooms = {path.relative_to(SRC).parts[1].removesuffix(".py") for path in files(SRC / "repmlp")}
    assert rooms == set(ROOMS)
    assert {"repmlp.functional.partition_map", "torch", "repmlp.layers.perceptrons.LocalPerceptron"} <= set(
        imports(SRC / "repmlp" / "layers" / "partitioned.py", SRC)
    )


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("repmlp/layers/repmlp.py", "from ..models import CifarNet", "looks upwards"),
        ("repmlp/layers/repmlp.py", "from ..models.cifar import CifarNet", "looks upwards"),
        ("repmlp/layers/repmlp.py", "from .. import models", "looks upwards"),
        ("repmlp/layers/repmlp.py", "import repmlp.models.cifar", "looks upwards"),
        ("repmlp/locality.py", "def late():\n    from .conversion import verify", "looks upwards"),
        ("repmlp/locality.py", "from . import conversion", "looks upwards"),
        ("repmlp/models/cifar.py", "from repmlp import verify", "looks upwards"),
        ("repmlp/models/cifar.py", "import repmlp", "looks upwards"),
        ("repmlp/functional/folding.py", "from timm.layers import to_2tuple", "from outside"),
        ("repmlp/functional/folding.py", "import numpy as np", "from outside"),
        ("repmlp/data.py", "import repmlp_cli", "looks into another package"),
        ("repmlp_app/views.py", "from repmlp_cli.info import open_model", "looks into another package"),
        ("repmlp_settings/__init__.py", "import torch", "from outside"),
        ("repmlp_settings/__init__.py", "from repmlp import RepMLP", "looks into another package"),
        ("repmlp/gadgets.py", "", "a room that the order does not name"),
    ],
)
def test_a_planted_import_is_caught(tmp_path, file, line, message):
    src = shutil.copytree(SRC, tmp_path / "src")
    planted = src / file
    planted.write_text(f"{planted.read_text() if planted.exists() else ''}\n{line}\n")
    found = violations(src)
    assert len(found) == 1
    assert found[0].startswith(file)
    assert message in found[0]


def test_a_planted_print_and_a_planted_long_file_are_caught(tmp_path):
    src = shutil.copytree(SRC, tmp_path / "src")
    (src / "repmlp" / "counting.py").write_text("# print('no')\ndef f():\n    print('yes')\n" + "\n" * 400)
    assert prints(src) == ["repmlp/counting.py:3"]
    assert long_files(src) == ["repmlp/counting.py"]
