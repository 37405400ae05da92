"""A package that is not installed is an ImportError that names the extra; every extra named exists."""

import ast
import re
import sys
from pathlib import Path

import pytest

from repmlp.extras import import_optional

ROOT = Path(__file__).parents[1]


def test_an_installed_module_is_returned():
    assert import_optional("json.decoder", "demo") is sys.modules["json.decoder"]


@pytest.mark.parametrize("module", ["no_such_package", "json.no_such_module"])
def test_a_missing_module_names_module_reason_and_extra(module):
    with pytest.raises(ImportError, match=rf"needs {module}, .*No module named .*pip install '\.\[demo\]'"):
        import_optional(module, "demo")


def test_a_package_that_fails_to_import_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("raise ImportError('libfoo.so is too old')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"cannot be imported \(libfoo\.so is too old\)"):
        import_optional("broken_package", "demo")


def extras_named(source: str) -> set[str]:
    """The extras that a source file passes to import_optional as literals."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [c.args[1] for c in calls if isinstance(c.func, ast.Name) and c.func.id == "import_optional"]
    return {argument.value for argument in named if isinstance(argument, ast.Constant)}


def test_every_extra_that_the_package_names_exists():
    declared = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", declared, re.MULTILINE))
    named = set().union(*(extras_named(file.read_text()) for file in (ROOT / "src").rglob("*.py")))
    assert {"demo", "hub"} <= named <= extras
    assert extras_named("import_optional('x', 'nonsense')") == {"nonsense"}
