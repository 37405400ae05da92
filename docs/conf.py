"""Settings of the documentation site, which `make docs` builds into build/docs.

Its pages are docs/*.md, copies of README.md, CONTRIBUTING.md and the benchmarks' results, and what make_reference.py
writes from the code. The copies and the written pages are not in the repository.
"""

import re
import runpy
import shutil
from importlib.metadata import version as version_of
from pathlib import Path

DOCS, ROOT = Path(__file__).parent, Path(__file__).parents[1]
runpy.run_path(str(DOCS / "make_reference.py"))["write"](DOCS / "reference")
shutil.copy2(ROOT / "CONTRIBUTING.md", DOCS / "reference")
no_code = shutil.ignore_patterns("*.py", "__pycache__")
shutil.copytree(ROOT / "benchmarks", DOCS / "benchmarks", ignore=no_code, dirs_exist_ok=True)

project = "repmlp"
author = "The repmlp maintainers"
version = release = version_of("repmlp")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["README.md"]  # the index on GitHub; the sidebar is that of the site
default_role = "code"  # one backtick in a docstring
highlight_language = "text"
smartquotes = False  # "--flag" stays as it is
html_theme = "furo"
html_title = "repmlp"
html_show_copyright = html_show_sourcelink = False

nitpicky = True  # every reference in a docstring leads somewhere, except to other packages and to these internal types
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|PIL|timm|accelerate|collections|contextlib|pathlib|types|fnmatch)\..*"),
    ("py:class", r"repmlp\.(data\.images\.LabeledImages|deploy\.engines\.engine\.Engine|official\.naming\.Entry)"),
]
myst_heading_anchors = 3
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_attr_annotations = False
napoleon_numpy_docstring = False


def read_page(app, name, source):
    """Put README.md on the start page, title the benchmarks' tables, and let links lead to the pages of the site."""
    text = source[0]
    if name == "index":
        text = (ROOT / "README.md").read_text() + text
    if name.startswith("benchmarks/results/"):
        text = f"---\norphan: true\n---\n\n# {Path(name).name}\n\n{text}"
    text = re.sub(r"\]\((\.\./)?docs/", "](/", text)
    text = text.replace("](../benchmarks/", "](/benchmarks/").replace("](CITATION.cff", "](../CITATION.cff")
    source[0] = text.replace("](CONTRIBUTING.md", "](/reference/CONTRIBUTING.md")


def drop_back_links(app, pagename, templatename, context, doctree):
    """Without viewcode's links from source to documentation: wrong where two packages share the names of one file."""
    if pagename.startswith("_modules/"):
        context["body"] = re.sub(r'<a class="viewcode-back".*?</a>', "", context["body"])


def setup(app):
    app.connect("source-read", read_page)
    app.connect("html-page-context", drop_back_links)
