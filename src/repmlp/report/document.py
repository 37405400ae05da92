"""A report as sections of text, tables and pictures, and its page: one HTML file that loads nothing."""

import os
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from repmlp_settings import Train

from ..files import atomic_file, ensure_can_write
from ..training.config import changed_settings

NAME = "report.html"
#: In the head of every report, and of no other file.
MARK = b'<meta name="generator" content="repmlp report">'


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its heading.

    Attributes:
        numbers: align the cells after the first to the right.
        folded: show only the caption until the reader opens it.
        shades: strength of each cell's background in [0, 1], without the first column.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True
    folded: bool = False
    shades: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG, with the text for a reader who does not see it."""

    png: bytes
    alt: str
    caption: str = ""

    @property
    def url(self) -> str:
        return f"data:image/png;base64,{b64encode(self.png).decode()}"

    @property
    def width(self) -> int:
        """In CSS pixels, 96 per inch, of a plot that was saved with 150 dots per inch."""
        return int.from_bytes(self.png[16:20], "big") * 96 // 150


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side."""

    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Section:
    """A heading and what is below it; text is a paragraph."""

    title: str
    blocks: Sequence[str | Table | Picture | Gallery]


def render(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page. All text is escaped: a class named ``<script>`` is shown as that."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(title=title, lead=lead, sections=sections)


def is_report(file: Path) -> bool:
    """Whether this package wrote the file, as a report."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return MARK in opened.read(1000)


def ensure_can_write_report(file: Path, folder: Path, overwrite: bool) -> None:
    """Raise FileExistsError if ``file`` exists, unless it may be overwritten or is the report of its own folder.

    Whatever a report overwrites ends in .html; for another name raise ValueError.
    """
    own = os.path.realpath(file) == os.path.realpath(folder / NAME) and is_report(file)
    ensure_can_write(file, overwrite=overwrite or own)
    if file.suffix != ".html":
        raise ValueError(f"a report is an HTML file, and {file} is not named as one: end its name in .html")


def write_page(file: Path, page: str) -> None:
    """Write a page, whole or not at all; bytes of a file name that are not UTF-8 are written as escapes."""
    with atomic_file(file) as new:
        new.write_bytes(page.encode("utf-8", "backslashreplace"))


def draw(plot: Callable[[Path], object]) -> bytes:
    """The PNG that a function of :mod:`repmlp.plot` writes to a path; empty if it draws nothing."""
    with TemporaryDirectory() as folder:
        image = Path(folder) / "picture.png"
        plot(image)
        return image.read_bytes() if image.exists() else b""


def settings_section(settings: Train, without: Sequence[str] = ()) -> Section:
    """All settings of a run; those that have their default are folded."""
    changed = changed_settings(settings)
    rows = [(name, str(value)) for name, value in asdict(settings).items() if name not in without]
    chosen = [row for row in rows if row[0] in changed]
    usual = [row for row in rows if row not in chosen]
    header = ("setting", "value")
    return Section(
        "Settings",
        [
            Table("Chosen for this run", header, chosen, numbers=False),
            Table(f"Left at their defaults ({len(usual)})", header, usual, numbers=False, folded=True),
        ],
    )


def machine_section(about: dict[str, Any], caption: str) -> Section:
    """The machine and its versions."""
    rows = [(name, str(value)) for name, value in about.items()]
    return Section("Machine and versions", [Table(caption, ("", ""), rows, numbers=False)])
