"""The wheel and the sdist hold what a user needs, and the command runs from the wheel."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("hatchling")
pytestmark = pytest.mark.slow


def build(target: str, folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder], cwd=ROOT, check=True)
    (file,) = folder.iterdir()
    return file


def test_the_wheel_holds_all_packages_and_runs(tmp_path):
    wheel = build("wheel", tmp_path / "dist")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert sources <= set(names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "import repmlp_cli, sys; print(repmlp_cli.__file__); sys.exit(repmlp_cli.main(['info', 'repmlp_cifar']))"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert str(tmp_path / "site") in run.stdout  # not the checkout
    assert "deploy form" in run.stdout


def test_the_sdist_builds_and_holds_tests_and_docs(tmp_path):
    with tarfile.open(build("sdist", tmp_path / "dist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/repmlp/__init__.py", "docs/start.md"} <= names


def test_the_demo_without_its_extra_says_what_to_install(tmp_path):
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").write_text("raise ImportError('planted')\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    code = "import sys, repmlp_cli; sys.exit(repmlp_cli.main(['demo', '--output', 'x']))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "demo" in run.stderr
    assert "Traceback" not in run.stderr
