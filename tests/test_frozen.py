"""What an earlier version wrote still loads, resumes and trains as it did."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import yaml

import repmlp
import repmlp.training.loop as loop
from repmlp.training import Stopped, train
from repmlp_settings import Train

FROZEN = Path(__file__).parent / "frozen"
EXPECTED = json.loads((FROZEN / "expected.json").read_text())
#: Of a version that drew validation images without regard to their classes.
SETTINGS = Train(**yaml.safe_load((FROZEN / "stopped" / "config.yaml").read_text()), val_draw="at-random")


@pytest.mark.parametrize(("folder", "form"), [("model", "training"), ("deploy", "deploy")])
@pytest.mark.parametrize("load", [repmlp.load_model, lambda folder: timm.create_model(f"local-dir:{folder}", True)])
def test_an_old_model_folder_gives_its_old_logits(folder, form, load):
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = torch.tensor(json.loads((FROZEN / "logits.json").read_text())[form])
    torch.testing.assert_close(load(FROZEN / folder).eval()(x), logits, rtol=1e-4, atol=1e-5)


def test_an_old_run_resumes_to_the_result_that_it_had_without_a_stop(tmp_path, monkeypatch):
    shutil.copytree(FROZEN / "stopped", tmp_path / "run")
    states = []
    monkeypatch.setattr(loop, "write_state", lambda folder, state: states.append(state))
    run = train(Train(output=str(tmp_path / "run"), resume=True))
    assert not any(group["fused"] for group in states[-1]["optimizer"]["param_groups"])  # the kernel it started with
    assert run.epoch == EXPECTED["epoch"]
    assert run.test.images == EXPECTED["test"]["images"]
    assert run.test.loss == pytest.approx(EXPECTED["test"]["loss"], rel=2e-3)
    assert abs(run.test.correct - EXPECTED["test"]["correct"]) <= 2


def test_the_same_seed_gives_the_old_losses(tmp_path):
    sums = [0.0]  # a step reports the mean loss of the epoch so far; 20 steps are one epoch

    def on_step(step):
        sums.append(step.loss * step.step)
        if step.step == len(EXPECTED["losses"]):
            raise Stopped

    with pytest.raises(Stopped):
        train(replace(SETTINGS, output=str(tmp_path / "run")), on_step=on_step)
    losses = [after - before for before, after in itertools.pairwise(sums)]
    # Sums in another order, by two threads instead of one for example, move the first losses by 1e-4. From there the
    # difference grows with each step of this small network, up to 0.03.
    differences = (torch.tensor(losses) - torch.tensor(EXPECTED["losses"])).abs()
    assert differences[:3].max() < 1e-3
    assert differences.max() < 0.1
    assert differences.mean() < 0.03
