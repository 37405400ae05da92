"""The report of an ablation shows its table, every run and the pictures that are there."""

import io
from dataclasses import replace

import pytest
from PIL import Image

from pages import Page
from planted import RECIPE, plant
from repmlp.ablation import choose_rows, plan_jobs, summarize
from repmlp.report import write_ablation_report


@pytest.fixture
def summary(tmp_path):
    recipe = replace(RECIPE, data="folder:<b>")
    jobs = plan_jobs(recipe, tmp_path, choose_rows(["no-local"]), [0, 7])
    for job, correct in zip(jobs, (150, 162), strict=True):
        plant(job, correct, [1.0, 0.5], [2.0, 3.0])
    return summarize(jobs, recipe, tmp_path, rounds=1, warmup=0)


def test_it_shows_the_table_every_run_and_the_pictures_that_are_there(summary, tmp_path):
    picture = io.BytesIO()
    Image.new("L", (150, 90)).save(picture, "PNG")
    (tmp_path / "ablation.png").write_bytes(picture.getvalue())
    file = write_ablation_report(summary, tmp_path)
    assert file == tmp_path / "report.html"
    page = Page(file)
    assert page.headings == ["Results", "Pictures", "Every run", "Settings", "Machine and versions"]
    assert page.tables[summary.caption] == [summary.header, *summary.rows()]
    assert page.tables["Test accuracy, %"] == [["", "seed 0", "seed 7"], [summary.lines[0].title, "75.00", "81.00"]]
    assert all(remark in page.text for remark in summary.remarks())
    (image,) = page.images
    assert image["width"] == "96"  # 150 pixels at 150 per inch
    assert "b" not in page.tags
    assert "folder:<b>" in page.text
    write_ablation_report(summary, tmp_path)  # replaces its own


def test_a_file_of_somebody_else_is_kept(summary, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_ablation_report(summary, tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"
    write_ablation_report(summary, tmp_path, overwrite=True)
    assert "Pictures" not in Page(tmp_path / "report.html").headings
