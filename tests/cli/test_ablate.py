"""`repmlp ablate`, as a user types it."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import yaml

from planted import RECIPE
from repmlp.ablation import ROWS, Job, choose_rows, plan_jobs
from repmlp.training.records import Epoch, append_row
from repmlp_cli import main
from repmlp_cli.ablate import duration, read_recipe, states
from repmlp_settings import Ablate


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    values = {name: value for name, value in asdict(RECIPE).items() if name not in ("output", "seed")}
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "ablation"
    assert main(["ablate", recipe, str(output), "--seeds", "0,1"]) == 0
    return output


def times(folder: Path, pattern: str = "*/seed-*/*"):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.glob(pattern)}


def test_the_whole_ablation(folder):
    told = json.loads((folder / "ablation.json").read_text())
    titles = [line["title"] for line in told["lines"]]
    assert titles == ["Pure MLP", "A: not converted", *(row.title for row in ROWS[1:])]
    for line in told["lines"]:
        assert line["accuracy"]["n"] == 2
        for seed in ("0", "1"):
            test = json.loads((folder / line["name"] / f"seed-{seed}" / "test.json").read_text())
            assert line["accuracies"][seed] == 100 * test["correct"] / test["images"]  # the forms agree on every image
    assert told["missing"] == []
    for image in ("ablation.png", "energy.png", "conv9/seed-1/curves.png"):
        assert len(np.unique(matplotlib.image.imread(folder / image).reshape(-1, 4), axis=0)) > 10  # it is not blank
    assert "| Wide ConvNet |" in (folder / "ablation.md").read_text()


def test_called_again_it_trains_what_is_missing_and_touches_no_finished_run(folder, recipe, capsys):
    before, again = times(folder), folder / "no-global" / "seed-1"
    losses = (again / "metrics.csv").read_text().splitlines()[1].split(",")[2]
    for path in sorted(again.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    again.rmdir()
    assert main(["ablate", recipe, str(folder), "--seeds", "0,1"]) == 0
    shown = capsys.readouterr().out
    assert "run 1 of 1: C: no Global Perceptron, seed 1, new" in shown
    after = times(folder)
    assert set(after) == set(before)
    assert {path.parent for path in after if after[path] != before[path]} == {Path("no-global/seed-1")}
    assert (again / "metrics.csv").read_text().splitlines()[1].split(",")[2] == losses


def test_with_nothing_left_to_train_only_the_table_is_made_again(folder, recipe, capsys):
    before = times(folder)
    (folder / "ablation.md").unlink()
    assert main(["ablate", recipe, str(folder), "--seeds", "0", "--rows", "pure-mlp"]) == 0
    assert "run 1 of" not in capsys.readouterr().out
    assert times(folder) == before
    assert "| Wide ConvNet |" in (folder / "ablation.md").read_text()  # all runs that there are


def test_the_plan_writes_nothing_and_says_what_is_left(folder, recipe, tmp_path, capsys):
    before = times(folder, "**/*")
    assert main(["ablate", recipe, str(folder), "--seeds", "0,1,2", "--rows", "conv9,pure-mlp", "--plan"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert times(folder, "**/*") == before
    assert shown.count("0, 1: finished; 2: new") == 2
    assert "nothing was written" in shown
    assert main(["ablate", recipe, str(tmp_path / "new"), "--plan"]) == 0
    assert capsys.readouterr().out.count("0, 1, 2: new") == len(ROWS)
    assert not any(tmp_path.iterdir())


def test_a_changed_recipe_is_refused_and_nothing_is_touched(folder, recipe, capsys):
    before = times(folder, "**/*")
    assert main(["ablate", recipe, str(folder), "--epochs", "3", "--batch-size", "64"]) == 2
    assert "batch_size was 32, now 64" in (error := capsys.readouterr().err)
    assert "epochs was 1, now 3" in error
    assert times(folder, "**/*") == before


def test_flags_replace_the_recipe(recipe, tmp_path):
    flags = ["--epochs=2", "--batch-size=64", "--seeds=5", "--rows=wide-convnet", "--data-root", str(tmp_path)]
    assert main(["ablate", recipe, str(tmp_path / "r"), *flags]) == 0
    used = yaml.safe_load((tmp_path / "r" / "wide-convnet" / "seed-5" / "config.yaml").read_text())
    assert (used["epochs"], used["batch_size"], used["seed"], used["data_root"]) == (2, 64, 5, str(tmp_path))
    assert used["model_args"]["channels"] == [8, 16]
    assert used["cpu"]  # a flag that is not given leaves the recipe's
    assert "Wide ConvNet" in (tmp_path / "r" / "report.html").read_text()


def test_a_switch_that_is_not_given_leaves_the_recipes_own(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("download: true\n")
    off, on = (read_recipe(Ablate(str(path), "out", cpu=cpu)) for cpu in (False, True))
    assert (off.cpu, off.download) == (False, True)
    assert (on.cpu, on.download) == (True, True)


def test_a_row_that_diverges_does_not_keep_the_others_from_being_trained(recipe, tmp_path, capsys, monkeypatch):
    run = Job.run

    def diverge(job, *callbacks):
        if job.row.name == "no-local":
            raise FloatingPointError("the loss became nan")
        return run(job, *callbacks)

    monkeypatch.setattr(Job, "run", diverge)
    assert main(["ablate", recipe, str(tmp_path / "r"), "--seeds=0", "--rows=pure-mlp,no-local,wide-convnet"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "the loss became nan" in shown
    assert "Not finished, and not in the table: no-local/seed-0." in shown
    assert (tmp_path / "r" / "wide-convnet" / "seed-0" / "converted.json").exists()


@pytest.mark.slow
def test_two_processes_share_the_runs(recipe, tmp_path):
    command = [sys.executable, "-m", "repmlp_cli", "ablate", recipe, str(tmp_path / "r"), "--seeds", "0,1"]
    command += ["--rows", "no-local,wide-convnet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    shown = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(text.count("epoch   1  train") for text in shown) == 4  # each run was trained once, of one epoch
    told = json.loads((tmp_path / "r" / "ablation.json").read_text())
    assert [line["accuracy"]["n"] for line in told["lines"]] == [2, 2]  # whichever process was last saw all
    assert told["missing"] == []


def test_torchrun_is_refused(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["ablate", recipe, str(tmp_path / "r")]) == 2
    assert "start it several times" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("epochs: 1\n", ["--rows=A"], "unknown row A: the rows are pure-mlp, no-local"),
        ("epocs: 1\n", [], "does not hold settings of repmlp train: .*epocs"),
        ("epochs: many\n", [], "does not hold settings of repmlp train: .*epochs"),
        ("[1, 2]\n", [], "does not hold settings of repmlp train"),
        ("model: repmlpnet_t224\n", [], "variants of repmlp_cifar, this recipe is for repmlpnet_t224"),
        (None, [], "there is no recipe .*r.yaml: give a YAML file"),
    ],
)
def test_wrong_recipes(tmp_path, capsys, text, flags, message):
    recipe = tmp_path / "r.yaml"
    if text:
        recipe.write_text(text)
    assert main(["ablate", str(recipe), str(tmp_path / "out"), *flags]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (29.4, "29 s"), (40, "1 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min"), (1500, "25 min")],
)
def test_a_duration_in_words(seconds, text):
    assert duration(seconds) == text


def test_seeds_by_the_state_of_their_runs(tmp_path):
    jobs = plan_jobs(RECIPE, tmp_path, choose_rows(["conv9"]), [0, 4, 2])
    (tmp_path / "conv9" / "seed-4").mkdir(parents=True)
    config = {**asdict(jobs[1].settings)}
    (tmp_path / "conv9" / "seed-4" / "config.yaml").write_text(yaml.safe_dump(config))
    append_row(tmp_path / "conv9" / "seed-4" / "metrics.csv", Epoch(1, 0.1, 2.0, 0.2, 2.1, 0.1, 0.5))
    assert states(jobs) == "0, 2: new; 4: interrupted after 1 of 1 epochs"


def test_a_table_of_unfinished_runs_trains_nothing_and_names_them(folder, recipe, capsys):
    before = times(folder)
    assert main(["ablate", recipe, str(folder), "--seeds", "0,1,2", "--rows", "pure-mlp,conv9", "--table"]) == 0
    assert times(folder) == before
    assert "Not finished, and not in the table: pure-mlp/seed-2, conv9/seed-2." in " ".join(
        capsys.readouterr().out.split()
    )
    assert json.loads((folder / "ablation.json").read_text())["missing"] == ["pure-mlp/seed-2", "conv9/seed-2"]


def test_a_table_of_nothing_is_refused(recipe, tmp_path, capsys):
    assert main(["ablate", recipe, str(tmp_path / "new"), "--table"]) == 2
    assert "is finished" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_rows_are_trained_on_subsets_of_the_images(recipe, tmp_path, capsys):
    output = tmp_path / "images"
    command = ["ablate", recipe, str(output), "--rows", "pure-mlp", "--seeds", "0"]
    assert main([*command, "--images", "64,200", "--steps", "4"]) == 0
    configs = {n: output / f"images-{n}/pure-mlp/seed-0/config.yaml" for n in (64, 200)}
    settings = {n: yaml.safe_load(config.read_text()) for n, config in configs.items()}
    assert {n: (s["train_images"], s["epochs"]) for n, s in settings.items()} == {64: (64, 2), 200: (200, 1)}
    assert list(json.loads((output / "images.json").read_text())["accuracy"]) == ["Pure MLP", "A: not converted"]
    assert (output / "images.png").exists()
    assert main([*command, "--images", "64,9999", "--steps", "4"]) == 2  # before the first run
    assert "train_images=9999 of 1293 images to train on" in capsys.readouterr().err
    assert not (output / "images-9999").exists()
    assert main([*command, "--images", "64,200", "--steps", "4"]) == 0
    assert "Accuracy against the number of training images" in capsys.readouterr().out
