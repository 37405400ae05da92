"""The report of a run: its figures are those of the other commands, and what is missing is named."""

import copy
import csv
import io
import json
import re
from dataclasses import asdict

import pytest
import timm
import torch
import yaml
from PIL import Image

import repmlp
from pages import Page
from pictures import picture
from repmlp.report import write_run_report
from repmlp.report.predictions import Predictions
from repmlp.report.run import both_forms, confusion_section, forms_section, mistakes_section, proof_section, thumbnail
from repmlp.training import Epoch, Evaluation
from repmlp_cli import main
from repmlp_settings import Train
from tiny import TINY
from weights import randomize

FORMS, CONFUSION = "The same weights, before and after the merge", "Number of test images: a row per true class"


def plant(folder, data="digits", names=tuple("0123456789"), channels=1, finished=True):
    """A run folder as `repmlp train` leaves it, with weights that nobody trained."""
    folder.mkdir(parents=True)
    settings = asdict(Train(output=str(folder), data=data, **TINY))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    torch.manual_seed(0)
    model = timm.create_model(
        "repmlp_cifar", num_classes=len(names), in_chans=channels, img_size=8, **TINY["model_args"]
    )
    repmlp.save_model(randomize(model), folder / "model", names, {"input_size": (channels, 8, 8)})
    rows = [Epoch(i, 0.1, 2.0 / i, 0.2 * i, 2.1 / i, 0.2 * i, 30.0) for i in (1, 2, 3)]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, asdict(rows[0]))
        writer.writeheader()
        writer.writerows(map(asdict, rows))
    if finished:
        (folder / "test.json").write_text(json.dumps({"epoch": 2, "correct": 40, "images": 360}))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("runs") / "planted")


@pytest.fixture(scope="module")
def page(run):
    return Page(write_run_report(run))


@pytest.fixture
def blank(monkeypatch):
    """Plots are a blank picture, which takes less time."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    monkeypatch.setattr("repmlp.report.document.draw", lambda plot: file.getvalue())


def table(page, caption):
    (rows,) = [rows for name, rows in page.tables.items() if name.startswith(caption)]
    return {cells[0]: cells[1:] for cells in rows}


def test_it_has_every_section_and_loads_nothing(page, run):
    assert page.headings == [
        "Both forms",
        "Training",
        "Are both forms equal?",
        "FC3, before and after the merge",
        "Confusion matrix",
        "Worst mistakes",
        "Settings",
        "Machine and versions",
    ]
    links = [address for address in page.addresses if address.startswith("#")]
    assert {link[1:] for link in links} <= page.ids
    assert len(links) == len(page.headings)
    assert all(a.startswith("data:image/png;base64,iVBOR") for a in page.addresses if a not in links)
    assert all(image["alt"] for image in page.images)
    assert not page.tags & {"script", "link", "iframe", "base"}
    text = (run / "report.html").read_text()
    assert """content="default-src 'none'; img-src data:; style-src 'unsafe-inline'\"""" in text
    assert "url(" not in text.partition("</style>")[0]


def test_the_lead_says_what_was_trained_and_reached(page):
    assert "3 of 3 epochs of training, 1.5 minutes." in page.text
    assert "epoch 2, the best one, classified 40 of 360 test images correctly" in page.text


def test_the_figures_of_both_forms_are_those_of_eval_and_info(page, run, tmp_path, capsys):
    forms = table(page, FORMS)
    model = repmlp.load_model(run)
    deploy = repmlp.reparameterize(model)
    repmlp.save_model(deploy, tmp_path / "deploy")
    for place, (folder, form) in enumerate(((run, model), (tmp_path / "deploy", deploy))):
        assert main(["eval", str(folder), "digits"]) == 0
        correct, accuracy, loss = re.search(
            r"(\d+) of 360 correct, ([\d.]+%) top-1 \(loss ([\d.]+)\)", capsys.readouterr().out
        ).groups()
        assert forms["correct images"][place] == f"{correct} of 360"
        assert forms["test accuracy"][place] == accuracy
        assert forms["loss"][place] == loss
        count = repmlp.complexity(form)
        assert forms["parameters"][place] == f"{count.params:,}"
        assert forms["multiply-adds per image"][place] == f"{count.macs:,}"
    assert forms["parameters"][0] != forms["parameters"][1]
    assert "same class for 360 of 360 test images" in page.text


def test_the_confusion_matrix_adds_up(page):
    rows = table(page, CONFUSION)
    assert rows.pop("true \\ predicted") == list(rows)
    counts = [[int(cell) for cell in row] for row in rows.values()]
    assert sum(map(sum, counts)) == 360
    (correct, _, _), *_ = [cells[0].split() for name, cells in table(page, FORMS).items() if name == "correct images"]
    assert sum(counts[i][i] for i in range(10)) == int(correct)


def test_the_worst_mistakes_are_mistakes_with_falling_losses(page):
    shown = [re.match(r"(\d), taken for (\d)\n\d+% sure, loss ([\d.]+)$", text) for text in page.captions[2:]]
    assert len(shown) == 24
    assert all(match and match[1] != match[2] for match in shown)
    losses = [float(match[3]) for match in shown]
    assert losses == sorted(losses, reverse=True)


def test_the_proof_has_every_block_and_says_so_if_the_forms_differ(page, run):
    rows = table(page, "Deviations in float32")
    assert {"stages.0.2", "whole network"} <= set(rows)
    assert "Yes: equal within 16 times" in page.text
    model = repmlp.load_model(run)
    wrong = copy.deepcopy(repmlp.reparameterize(model))
    with torch.no_grad():
        wrong.stages[0][2].partition_perceptron.fc3.bias += 0.1
    text = proof_section(repmlp.verify(model, wrong)).blocks[0]
    assert text.startswith("No: NOT EQUAL")
    assert "stages.0.2" in text


def test_a_proof_that_is_given_is_shown_and_one_that_is_left_out_is_named(run, tmp_path, blank):
    model = repmlp.load_model(run)
    proof = repmlp.verify(model, repmlp.reparameterize(model), tolerance=0.25)
    page = Page(write_run_report(run, tmp_path / "given.html", proof=proof, mistakes=0))
    assert "within a relative deviation of 2e-01" in page.text
    assert "0 of " in page.text
    page = Page(write_run_report(run, tmp_path / "none.html", proof=False, mistakes=1))
    assert "Are both forms equal?" not in page.headings
    assert f"repmlp report {run} adds it" in page.text


def test_names_of_classes_and_files_are_text(tmp_path, blank):
    evil = ("<script>alert(1)", "'><img src=x onerror=alert(1)>")
    for name in evil:
        for part in ("train", "val"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            picture().save(tmp_path / "data" / part / name / '"><b onload=x>.png')
    names = sorted(evil)
    run = plant(tmp_path / "<i>run", f"folder:{tmp_path / 'data'}", names, channels=3)
    page = Page(write_run_report(run, proof=False))
    assert not page.tags & {"script", "b", "i"}
    assert {image["src"][:5] for image in page.images} == {"data:"}
    assert set(names) <= set(table(page, CONFUSION))
    (mistake,) = page.captions[2:]  # both images are the same, so one of the two is wrong
    assert mistake.splitlines()[0] in (f"{names[0]}, taken for {names[1]}", f"{names[1]}, taken for {names[0]}")
    assert mistake.splitlines()[2].endswith('/"><b onload=x>.png')
    assert str(run) in page.text


def test_without_its_data_it_says_what_is_missing_and_where_the_data_moved_it_is_complete(tmp_path, blank):
    for part in ("train", "val"):
        for i, name in enumerate(("cat", "dog")):
            (tmp_path / "there" / part / name).mkdir(parents=True)
            picture(i).save(tmp_path / "there" / part / name / "0.png")
    run = plant(tmp_path / "run", f"folder:{tmp_path / 'gone'}", ("cat", "dog"), channels=3)
    page = Page(write_run_report(run, proof=False))
    assert page.headings[-1] == "Not in this report"
    assert "Confusion matrix" not in page.headings
    assert "gone" in page.text.partition("Test images:")[2]
    assert set(table(page, FORMS)) == {"", "parameters", "multiply-adds per image"}
    page = Page(write_run_report(run, data=f"folder:{tmp_path / 'there'}", proof=False))  # replaces its own
    assert "Confusion matrix" in page.headings
    assert "Test images:" not in page.text


def test_a_run_that_is_not_finished_has_no_test_images(tmp_path, blank):
    page = Page(write_run_report(plant(tmp_path / "run", finished=False), proof=False))
    assert "Test images: the run is not finished." in page.text
    assert "Training" in page.headings
    assert "Confusion matrix" not in page.headings


def predictions(labels, predicted):
    labels, predicted = torch.tensor(labels), torch.tensor(predicted)
    score = Evaluation(int((labels == predicted).sum()), len(labels), 1.0)
    ones = torch.ones(len(labels))
    return Predictions([score], len(labels), labels, predicted, ones, ones, ones)


def test_of_many_classes_the_most_frequent_confusions_are_listed():
    names = [f"class {i}" for i in range(26)]
    (section,) = confusion_section(predictions([3, 3, 3, 7, 7, 1], [4, 4, 3, 8, 7, 1]), names).blocks
    assert section.rows == [["class 3", "class 4", "2"], ["class 7", "class 8", "1"]]
    assert len(confusion_section(predictions([3], [4]), names[:25]).blocks[0].rows) == 25  # still a matrix


def test_a_network_without_a_mistake_and_one_without_a_deploy_form():
    (text,) = mistakes_section(predictions([1, 0], [1, 0]), [], ["a", "b"], 5).blocks
    assert text == "No test image is classified wrongly."
    forms, missing = both_forms(timm.create_model("test_resnet"))
    assert (list(forms), missing) == (["as trained"], [])
    assert forms_section(forms, None).title == "Network"


def test_refusals(run, tmp_path, blank):
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml in .*model: name a run folder"):
        write_run_report(run / "model")
    with pytest.raises(ValueError, match="mistakes=-1 is not a number of images"):
        write_run_report(run, mistakes=-1)
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_run_report(run, mine)
    assert mine.read_text() == "mine"
    for other in (run / "config.yaml", run / "model" / "config.json"):
        before = other.read_bytes()
        with pytest.raises(ValueError, match=r"end its name in \.html"):
            write_run_report(run, other, overwrite=True)
        assert other.read_bytes() == before
    write_run_report(run, mine, proof=False, mistakes=0, overwrite=True)
    assert "repmlp_cifar on digits" in Page(mine).text


def test_a_picture_of_any_mode_becomes_a_small_png(tmp_path):
    for mode, size in (("L", (8, 8)), ("RGB", (500, 300)), ("RGBA", (9, 9)), ("P", (9, 9))):
        (tmp_path / "a.png").write_bytes(thumbnail(Image.new(mode, size)))
        with Image.open(tmp_path / "a.png") as small:
            assert max(small.size) == min(max(size), 160)
            assert small.mode == ("L" if mode == "L" else "RGB")
