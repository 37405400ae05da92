"""The page of a report: text stays text, files are replaced only if they are ours, nothing is loaded."""

import os

import pytest

from pages import Page
from repmlp.files import atomic_write
from repmlp.report.document import (
    Gallery,
    Picture,
    Section,
    Table,
    ensure_can_write_report,
    is_report,
    render,
    settings_section,
    write_page,
)
from repmlp_settings import Train

HOSTILE = """<script>alert(1)</script>"'><img src=http://evil.example onerror=alert(1)>&amp;"""


def test_hostile_text_is_shown_as_text_wherever_it_stands(tmp_path):
    table = Table(HOSTILE, ["", HOSTILE], [[HOSTILE, HOSTILE]], shades=[[0.5]])
    folded = Table(f"folded {HOSTILE}", ["", HOSTILE], [[HOSTILE, HOSTILE]], folded=True)
    picture = Picture(b"png", HOSTILE, HOSTILE)
    section = Section(HOSTILE, [HOSTILE, table, folded, picture, Gallery([picture])])
    write_page(tmp_path / "a.html", render(HOSTILE, HOSTILE, [section]))
    page = Page(tmp_path / "a.html")
    assert "script" not in page.tags
    assert page.addresses == ["#s1", *["data:image/png;base64,cG5n"] * 2]
    assert [image["alt"] for image in page.images] == [HOSTILE] * 2
    assert page.headings == [HOSTILE]
    assert page.tables[HOSTILE] == [["", HOSTILE], [HOSTILE, HOSTILE]]
    assert page.captions == [HOSTILE] * 2
    assert not [name for image in page.images for name in image if name.startswith("on")]


def test_a_file_name_that_is_not_utf8_is_written_as_an_escape(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xc3\xa9.png")
    write_page(tmp_path / "a.html", render(name, "", []))
    assert "caf\\udce9 é.png" in Page(tmp_path / "a.html").text


def test_only_the_report_of_its_own_folder_is_replaced(tmp_path):
    own, other = tmp_path / "report.html", tmp_path / "elsewhere" / "report.html"
    for file in (own, other):
        ensure_can_write_report(file, tmp_path, overwrite=False)
        file.parent.mkdir(exist_ok=True)
        write_page(file, render("t", "", []))
        assert is_report(file)
    ensure_can_write_report(own, tmp_path, overwrite=False)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        ensure_can_write_report(other, tmp_path, overwrite=False)
    ensure_can_write_report(other, tmp_path, overwrite=True)
    atomic_write(own, "<html>mine</html>")
    assert not is_report(own)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        ensure_can_write_report(own, tmp_path, overwrite=False)


def test_settings_that_were_chosen_are_shown_and_the_others_folded():
    settings = Train(output="x", epochs=7, hflip=0.5)  # hflip is at its default
    chosen, usual = settings_section(settings, ["seed"]).blocks
    assert chosen.rows == [("output", "x"), ("epochs", "7")]
    assert not chosen.folded
    assert usual.folded
    assert ("hflip", "0.5") in usual.rows
    names = {name for name, _ in (*chosen.rows, *usual.rows)}
    assert names == set(Train.__dataclass_fields__) - {"seed"}
