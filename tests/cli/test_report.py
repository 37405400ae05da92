"""`repmlp report`, and the report that `repmlp train` writes at its end."""

import json

import pytest
import torch

import repmlp
from pages import Page
from repmlp.report.document import is_report
from repmlp_cli import main
from repmlp_cli.report import report_after_training

TINY = ["--img-size=8", "--model_args.channels=[4]", "--model_args.partition_size=4", "--model_args.kernel_sizes=[1,3]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(folder), "--epochs=1", "--hflip=0", *TINY]) == 0
    return folder


def test_train_writes_it_and_report_with_other_options(run, tmp_path, capsys):
    page = Page(run / "report.html")
    assert "Yes: equal within" in page.text
    assert "8 of 8 top-1 predictions agree" in page.text  # the card's, on random images
    correct = json.loads((run / "test.json").read_text())["correct"]
    assert f"{correct} of 360" in page.text
    assert main(["report", str(run), str(tmp_path / "a.html"), "--mistakes", "3"]) == 0
    assert f"wrote {tmp_path / 'a.html'}" in capsys.readouterr().out
    page = Page(tmp_path / "a.html")
    assert "72 of 72 top-1 predictions agree" in page.text
    assert len([text for text in page.captions if "taken for" in text]) == 3
    assert main(["report", str(run), str(tmp_path / "a.html")]) == 2
    assert "pass --overwrite to replace it" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_one_line_and_the_run_is_kept(run, capsys, monkeypatch):
    (run / "report.html").write_text("mine")
    report_after_training(run)
    shown = capsys.readouterr().out
    assert shown.startswith("no report, since a file of that name is not a report")
    assert shown.strip().endswith(f"repmlp report {run}")
    assert shown.count("\n") == 1
    assert (run / "report.html").read_text() == "mine"
    (run / "report.html").unlink()
    (run / "config.yaml").rename(run / "config")
    report_after_training(run)
    assert "no report (there is no config.yaml in" in capsys.readouterr().out
    (run / "config").rename(run / "config.yaml")
    report_after_training(run)
    assert capsys.readouterr().out == f"wrote {run / 'report.html'}\n"
    assert is_report(run / "report.html")


def test_a_proof_that_failed_is_shown(run, capsys):
    model = repmlp.load_model(run)
    wrong = repmlp.reparameterize(model)
    with torch.no_grad():
        wrong.stages[0][2].partition_perceptron.fc3.bias += 0.1
    report_after_training(run, repmlp.verify(model, wrong))
    assert "No: NOT EQUAL" in Page(run / "report.html").text


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "there is no config.yaml in" in capsys.readouterr().err
