"""Runs of an ablation: trained once each, never mixed, never lost."""

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator

import repmlp
from planted import MACHINE, RECIPE, plant
from repmlp.ablation import ROWS, choose_rows, plan_jobs
from repmlp.ablation.jobs import with_found
from repmlp.data import load_data
from repmlp.training import build_test_loader, classify, evaluate, stored_settings

PURE = choose_rows(["pure-mlp"])


def one(folder, recipe=RECIPE, **settings):
    (job,) = plan_jobs(replace(recipe, **settings), folder, PURE, [0])
    return job


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    job = one(tmp_path_factory.mktemp("ablation"))
    assert job.state == "new"
    assert job.run()
    return job


def files(folder: Path):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


def stop_at(wanted):
    def on_step(step):
        if step.step == wanted:
            raise KeyboardInterrupt

    return on_step


def test_jobs_take_all_rows_with_one_seed_and_then_all_with_the_next(tmp_path):
    rows = choose_rows(["pure-mlp", "conv9"])
    jobs = plan_jobs(RECIPE, tmp_path, rows, [3, 1, 3])
    assert [job.name for job in jobs] == ["pure-mlp/seed-3", "conv9/seed-3", "pure-mlp/seed-1", "conv9/seed-1"]
    assert all(job.folder == tmp_path / job.name for job in jobs)
    assert not any(tmp_path.iterdir())


def test_both_forms_are_counted_on_the_test_images(finished):
    written = json.loads(finished.converted.read_text())
    model, data = repmlp.load_model(finished.folder), load_data("digits")
    for name, form in {"training form": model, "deploy form": repmlp.reparameterize(model)}.items():
        test = evaluate(form, build_test_loader(form, data, batch_size=50), Accelerator(cpu=True))
        assert written["correct"][name] == test.correct
        assert written["images"] == test.images == 360
    assert json.loads((finished.folder / "test.json").read_text())["correct"] == test.correct
    assert set(written["machine"]) >= set(MACHINE)


def test_the_deploy_form_is_measured_and_not_assumed(finished, monkeypatch):
    def spoiled(model):
        deploy = repmlp.reparameterize(model)
        deploy.head.fc.weight.data.neg_()
        return deploy

    before = finished.converted.read_text()
    monkeypatch.setattr("repmlp.ablation.jobs.reparameterize", spoiled)
    finished.converted.unlink()
    assert finished.run()
    correct = json.loads(finished.converted.read_text())["correct"]
    finished.converted.write_text(before)
    assert correct["deploy form"] < correct["training form"] == json.loads(before)["correct"]["training form"]


def test_both_forms_are_compared_in_full_float32(finished, monkeypatch):
    # A GPU would round convs to TF32, and not the FCs that they are merged into: a count differed by one on an H200.
    seen = []

    def spy(*args):
        seen.append(torch.backends.cudnn.conv.fp32_precision)
        return classify(*args)

    monkeypatch.setattr("repmlp.ablation.jobs.classify", spy)
    before = finished.converted.read_text()
    finished.converted.unlink()
    assert finished.run()
    assert seen == ["ieee"]
    assert finished.converted.read_text() == before


def test_a_finished_run_is_not_touched(finished):
    before = files(finished.folder)
    assert finished.state == "finished"
    assert finished.run()
    assert files(finished.folder) == before


def test_a_run_that_was_trained_but_not_tested_in_both_forms_is_not_trained_again(finished):
    before, text = files(finished.folder), finished.converted.read_text()
    finished.converted.unlink()
    assert finished.state == "interrupted"
    assert finished.run()
    assert finished.converted.read_text() == text
    changed = {path for path, time in files(finished.folder).items() if time != before[path]}
    assert changed == {Path("converted.json")}


def test_an_interrupted_run_goes_on_bit_for_bit(finished, tmp_path):
    job = one(tmp_path, state_every=6)
    with pytest.raises(KeyboardInterrupt):
        job.run(stop_at(13))
    assert job.state == "interrupted"
    steps = []
    assert job.run(lambda step: steps.append(step.step))
    assert steps == list(range(13, 41))  # from the last state on, after step 12, to the end
    weights = [folder / "model" / "model.safetensors" for folder in (job.folder, finished.folder)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert job.converted.exists()


def test_a_run_is_in_the_hands_of_one_process_only(tmp_path):
    job, same = one(tmp_path), one(tmp_path)
    seen = []

    def on_step(step):
        if step.step == 1:
            before = files(tmp_path)
            with ThreadPoolExecutor(1) as other:  # within a thread, claims nest
                seen.extend(other.submit(lambda: [same.state, same.run(), files(tmp_path) == before]).result())

    assert job.run(on_step)
    assert seen == ["running", False, True]
    assert same.state == "finished"


def test_a_process_that_ends_lets_go_of_its_run(tmp_path):
    job = one(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        job.run(stop_at(1))
    assert (job.folder.parent / ".repmlp-lock-seed-0").exists()
    assert one(tmp_path).state == "interrupted"


def test_looking_at_the_state_writes_nothing(tmp_path):
    assert one(tmp_path / "not_there").state == "new"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.2}, r"pure-mlp/seed-0 was trained with other settings: lr was 0\.1, now 0\.2\. Use"),
        ({"epochs": 2, "cpu": False}, r"epochs was 1, now 2; cpu was True, now False"),
        ({"model_args": {"channels": [4, 8], "partition_size": 4, "kernel_sizes": [3]}}, "model_args was .* now"),
    ],
)
def test_runs_of_another_recipe_are_refused(tmp_path, change, message):
    plant(one(tmp_path), 100, [1.0], [1.0])
    with pytest.raises(ValueError, match=message):
        plan_jobs(replace(RECIPE, **change), tmp_path, PURE, [0])
    with pytest.raises(ValueError, match=message):  # other rows and seeds in the folder count too
        plan_jobs(replace(RECIPE, **change), tmp_path, choose_rows(["conv9"]), [5])


def test_what_does_not_change_the_result_may_differ(tmp_path):
    plant(one(tmp_path), 100, [1.0], [1.0])
    job = one(tmp_path, data_root="elsewhere", download=True, workers=2, state_every=7, trackers=["tensorboard"])
    assert job.state == "finished"


def test_a_tuple_is_the_list_that_yaml_makes_of_it(tmp_path):
    plant(one(tmp_path), 100, [1.0], [1.0])
    arguments = {name: tuple(v) if isinstance(v, list) else v for name, v in RECIPE.model_args.items()}
    assert one(tmp_path, model_args=arguments).state == "finished"


def test_a_run_from_before_images_were_held_out_by_class_is_none_of_a_recipe_that_does(tmp_path):
    for fraction in (0.1, 0.0):
        job = one(tmp_path / str(fraction), val_fraction=fraction)
        plant(job, 100, [1.0], [1.0])
        config = job.folder / "config.yaml"
        config.write_text(config.read_text().replace("val_draw: by-class\n", ""))
    with pytest.raises(ValueError, match=r"val_draw was 'at-random', now 'by-class'"):
        one(tmp_path / "0.1", val_fraction=0.1)
    assert one(tmp_path / "0.1", val_fraction=0.1, val_draw="at-random").state == "finished"
    assert one(tmp_path / "0.0", val_fraction=0.0).state == "finished"  # nothing is held out


def test_an_interrupted_run_goes_on_where_its_data_is_now(tmp_path):
    settings = replace(RECIPE, data="torch/cifar10", data_root="before")
    plant(one(tmp_path, settings), 100, [1.0], [1.0])
    job = one(tmp_path, replace(settings, data_root="now", workers=2))
    (job.folder / "test.json").unlink()
    own = stored_settings(job._resumed)
    assert (own.data_root, own.workers) == (str(Path("now").absolute()), 2)


def test_settings_that_cannot_work_are_refused_before_any_run(tmp_path):
    with pytest.raises(ValueError, match=r"warmup_epochs=5 leaves none of the 1 epochs"):
        one(tmp_path, warmup_epochs=5)


def test_a_config_that_holds_no_settings_is_told(tmp_path):
    plant(one(tmp_path), 100, [1.0], [1.0])
    config = one(tmp_path).folder / "config.yaml"
    config.write_text(yaml.safe_dump({"output": "x", "colour": "red"}))
    with pytest.raises(ValueError, match=r"config\.yaml holds 'colour', which is not a setting of a run"):
        one(tmp_path)


def test_runs_of_other_processes_are_found(tmp_path):
    rows = choose_rows(["pure-mlp", "conv9"])
    jobs = plan_jobs(RECIPE, tmp_path, rows, [0, 10, 2])
    plant(jobs[1], 100, [1.0], [1.0])  # conv9, 0
    plant(jobs[2], 100, [1.0], [1.0])  # pure-mlp, 10
    (tmp_path / "conv9" / "seed-old").mkdir()
    (tmp_path / "conv9" / "seed-old" / "config.yaml").write_text("")
    found = with_found(plan_jobs(RECIPE, tmp_path, PURE, [2]), RECIPE, tmp_path)
    assert [job.name for job in found] == ["pure-mlp/seed-2", "pure-mlp/seed-10", "conv9/seed-0"]


def test_no_seeds_are_told(tmp_path):
    with pytest.raises(ValueError, match="needs at least one seed"):
        plan_jobs(RECIPE, tmp_path, ROWS, [])


def test_the_epochs_that_an_interrupted_run_has_done_are_counted(tmp_path):
    job = one(tmp_path, epochs=3)
    assert job.epochs_done == 0
    with pytest.raises(KeyboardInterrupt):
        job.run(stop_at(85))  # 40 steps an epoch
    assert job.epochs_done == 2
    with (job.folder / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
