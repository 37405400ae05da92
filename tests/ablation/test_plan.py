"""What an ablation will take: from real steps, and without writing anything."""

from dataclasses import replace

import pytest
import timm
import torch
from accelerate import Accelerator

import repmlp
from planted import RECIPE, plant
from repmlp.ablation import Cost, choose_rows, measure_costs, plan_jobs
from repmlp.ablation.plan import _step_and_look
from repmlp.counting import Complexity
from repmlp.data import load_data
from repmlp.deploy import Timing
from repmlp.training.setup import build_accelerator

ROWS = choose_rows(["pure-mlp", "conv9"])


def test_an_epoch_costs_its_steps_and_a_look_at_the_held_out_images():
    step, look = Timing(0.5, 0.1, 9.0), Timing(0.25, 0.1, 9.0)
    assert Cost(Complexity(1, 1), step, look, steps=40, looks=4).epoch_seconds == 40 * 0.5 + 4 * 0.25


def test_each_row_that_is_not_finished_is_measured(tmp_path):
    jobs = plan_jobs(RECIPE, tmp_path, ROWS, [0, 1])
    costs = measure_costs(jobs, rounds=2, warmup=0)
    assert list(costs) == ["pure-mlp", "conv9"]
    for cost in costs.values():
        assert (cost.steps, cost.looks) == (40, 5)  # 1293 images to train on, 144 held out, 32 in a batch
        assert cost.look.median > 0
        assert cost.step.median > 0
    model = timm.create_model("repmlp_cifar", in_chans=1, img_size=8, **RECIPE.model_args)
    assert costs["pure-mlp"].complexity == repmlp.complexity(model, (1, 8, 8))
    assert not any(tmp_path.iterdir())

    plant(jobs[0], 1, [1.0], [1.0])  # pure-mlp, seed 0: seed 1 is left
    plant(jobs[1], 1, [1.0], [1.0])
    plant(jobs[3], 1, [1.0], [1.0])  # conv9: nothing is left
    assert list(measure_costs(jobs, rounds=1, warmup=0)) == ["pure-mlp"]
    plant(jobs[2], 1, [1.0], [1.0])
    assert measure_costs(jobs, rounds=1, warmup=0) == {}


@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulation": 4}, {"mixup": 0.4}],
    ids=lambda settings: str(settings),
)
def test_a_step_trains_and_a_look_does_not(settings, monkeypatch, tmp_path):
    seen = {}

    def prepare(self, model, optimizer):
        seen["model"] = model
        model.register_forward_hook(lambda module, _, logits: seen.setdefault("batches", []).append(logits.shape[0]))
        return model, optimizer

    monkeypatch.setattr(Accelerator, "prepare", prepare)
    (job,) = plan_jobs(replace(RECIPE, **settings), tmp_path, ROWS[:1], [0])
    accelerator = build_accelerator(job.settings)
    _, step, look = _step_and_look(job.settings, load_data("digits"), 32, 40, accelerator)
    start = {key: value.clone() for key, value in seen["model"].state_dict().items()}
    look()
    assert all(torch.equal(start[key], value) for key, value in seen["model"].state_dict().items())
    step()
    step()
    changed = [key for key, value in seen["model"].state_dict().items() if not torch.equal(start[key], value)]
    assert set(changed) == set(start)
    parts = settings.get("accumulation", 1)
    assert seen["batches"] == [32] + [32 // parts] * parts * 2
