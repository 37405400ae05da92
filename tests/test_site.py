"""The documentation site builds without a warning, its links lead somewhere, and it describes everything public."""

import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from repmlp_settings import COMMANDS

ROOT = Path(__file__).parents[1]
REFERENCE = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))


def build(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Build the site in ``folder``/site from a copy of the repository's documents, which tests may change."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", *options, folder / "docs", folder / "site"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def documents(tmp_path):
    """A copy of what the site is built from."""
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package)
    made = shutil.ignore_patterns("reference", "__pycache__")
    for name in ("docs", "benchmarks", "recipes", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=made)
    for name in ("README.md", "CONTRIBUTING.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


class Page(HTMLParser):
    """The links of a page, and the places that links can lead to."""

    def __init__(self, file: Path):
        super().__init__()
        self.links, self.places = set(), {""}
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.places.add(found.get("id"))
        self.links |= {found[key] for key in ("href", "src") if found.get(key)}


def broken_links(site: Path) -> set[tuple[str, str]]:
    pages = {file.resolve(): Page(file) for file in site.rglob("*.html")}
    broken = set()
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            places = pages[target].places if target in pages else {parts.fragment}
            if not target.exists() or unquote(parts.fragment) not in places:
                broken.add((file.name, link))
    return broken


@pytest.mark.slow
def test_the_site_has_no_warning_no_broken_link_and_everything_public(documents):
    run = build(documents)
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    site = documents / "site"
    assert broken_links(site) == set()
    names = [line for line in (ROOT / "docs" / "api.txt").read_text().splitlines() if line.startswith("repmlp.")]
    assert len(names) > 100
    for line in names:
        full = line.partition("(")[0]
        package, _, name = full.rpartition(".")
        if full not in REFERENCE["PACKAGES"]:
            assert name in (site / "reference" / f"{package}.html").read_text(), full
    (site / "models.html").write_text('<a href="files.html#nowhere"></a><a href="gone.html"></a>')
    assert {("models.html", "files.html#nowhere"), ("models.html", "gone.html")} <= broken_links(site)


@pytest.mark.slow
def test_a_broken_link_an_unknown_place_and_a_page_left_out_stop_the_build(documents):
    docs = documents / "docs"
    (docs / "start.md").write_text("# Start\n\n[a](nowhere.md) [b](files.md#nowhere) [c](files.md#model-folders)\n")
    (docs / "forgotten.md").write_text("# Forgotten\n")
    without_api = "exclude_patterns=README.md,reference/repmlp*"  # these pages take longest
    run = build(documents, "-b", "dummy", "-D", without_api)
    assert run.returncode != 0
    assert "nowhere.md" in run.stderr
    assert "'nowhere'" in run.stderr
    assert "forgotten.md: WARNING: document isn't included in any toctree" in run.stderr
    assert "model-folders" not in run.stderr


def test_the_page_of_commands_has_every_argument_and_its_default():
    text = REFERENCE["commands_page"]()
    for command, settings in COMMANDS.items():
        section = text.partition(f"\n.. program:: repmlp {command}\n")[2].partition("\n.. program::")[0]
        for name in settings.__dataclass_fields__:
            shown = (f".. option:: {name}\n", f".. option:: --{name.replace('_', '-')}")
            assert any(option in section for option in shown), f"{command} {name}"
    assert ".. option:: --batch-size <int>\n\n   Images per optimizer step" in text
    assert "over all processes. Default: ``128``.\n" in text
    assert ".. option:: --precision <no|bf16|fp16>" in text
    assert ".. option:: --crop-padding <int>\n" in text
    assert "Alpha of mixup; 0 disables. Default: ``0.0``." in text


def test_the_page_of_recipes_has_every_key_and_every_recipe():
    text = REFERENCE["recipes_page"]()
    for name in COMMANDS["train"].__dataclass_fields__:
        assert f"   {name}: " in text or name == "output"
    for file in (ROOT / "recipes").glob("*.yaml"):
        assert f"literalinclude:: ../../recipes/{file.name}" in text


def test_text_of_a_docstring_that_looks_like_markup_stays_text():
    assert REFERENCE["escape"]("a*b c_ |d| `repmlp x --y_z`") == "a\\*b c\\_ \\|d\\| ``repmlp x --y_z``"
