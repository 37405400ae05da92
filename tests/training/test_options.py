"""Each setting of a run does what it says."""

import copy
import warnings

import pytest
import timm
import torch
from safetensors.torch import load_file

import repmlp
import repmlp.training.loop as loop
from repmlp.data import load_data
from repmlp.training import train
from repmlp.training.batches import data_config_of
from repmlp.training.setup import build_loss, build_model, build_optimizer
from repmlp_settings import Train
from tiny import TINY


def tiny(folder, **changes):
    return Train(output=str(folder), **{**TINY, "epochs": 1, **changes})


def weights(run):
    return load_file(run.folder / "model" / "model.safetensors")


def states(monkeypatch):
    """All states that a run writes."""
    seen = []
    monkeypatch.setattr(loop, "write_state", lambda folder, state: seen.append(copy.deepcopy(state)))
    return seen


def test_accumulation_gives_the_weights_of_the_whole_batch(tmp_path):
    """In a network without batch norm, where every sum over the batch is the sum over its micro-batches.

    1293 images are 26 batches of 48 and 107 micro-batches of 12: 3 are left over in each epoch.
    """
    arguments = {
        "model": "resmlp_6_32",
        "model_args": {"patch_size": 4},
        "img_size": 8,
        "augment": "none",
        "opt": "sgd",
        "clip": 1.0,
        "epochs": 2,
        "batch_size": 48,
        "ema": 0.9,
    }
    rows = {1: [], 4: []}
    first, second = (
        weights(train(tiny(tmp_path / str(parts), **arguments, accumulation=parts), on_epoch=own.append))
        for parts, own in rows.items()
    )
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-6)
    assert [row.lr for row in rows[4]] == pytest.approx([row.lr for row in rows[1]])
    assert rows[4][-1].lr == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("locality", [[], [3]])
def test_grad_checkpointing_moves_running_statistics_once_a_step(tmp_path, locality):
    own = {"model": "resmlp_6_32", "model_args": {"patch_size": 2}, "locality": locality} if locality else {}
    first, second = (
        weights(train(tiny(tmp_path / str(on), grad_checkpointing=on, lr=0.01, batch_size=256, **own)))
        for on in (False, True)
    )
    assert any("running_mean" in key for key in first)
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-5)


def test_steps_are_counted_in_whole_batches(tmp_path):
    steps = []
    train(tiny(tmp_path / "r", accumulation=4), steps.append)
    assert [step.step for step in steps] == list(range(1, 21))  # 1293 images, 64 of them a step
    assert steps[0].steps == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulation": 3}, "a batch of 64 images cannot be divided by 1 processes times 3 micro-batches"),
        ({"fit": "pad"}, r"fit pad is for square images that are smaller than the network's 8x8"),
        ({"weights": "nowhere"}, "there are no weights .*nowhere: give a model folder"),
        ({"mixup": 0.2, "batch_size": 63}, "a process computes 63 at a time: use a batch_size that is a multiple of 2"),
        ({"warmup_epochs": 1}, "warmup_epochs=1 leaves none of the 1 epochs for training: reduce warm-up or add"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, changes, message):
    settings = {**changes, "img_size": 4} if "fit" in changes else changes
    message = message.replace("8x8", "4x4") if "fit" in changes else message
    if "fit" in changes:
        settings["model_args"] = {"channels": [4], "partition_size": 4, "kernel_sizes": [3]}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(tiny(tmp_path / "r", **settings))
    assert not (tmp_path / "r").exists()


def test_the_state_may_be_written_after_epochs_only(tmp_path, monkeypatch):
    written = states(monkeypatch)
    train(tiny(tmp_path / "r", epochs=2, state_every=0))
    assert [state["progress"]["epoch"] for state in written] == [2, 3]


def test_padding_is_written_in_timms_terms_and_keeps_every_pixel():
    data = load_data("digits")
    settings = tiny("r", img_size=16, fit="pad")
    model = build_model(settings, data)
    config = data_config_of(settings, model, data)
    from timm.data import create_transform

    keys = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
    x = create_transform((1, 16, 16), **{key: config[key] for key in keys}, normalize=False)(data.test[0][0])
    assert torch.equal(x[0, 4:12, 4:12], torch.as_tensor(data.test.pixels[0]))
    assert x.sum() == int(data.test.pixels[0].sum())


def test_the_average_of_the_weights_is_what_is_kept(tmp_path, monkeypatch):
    written = states(monkeypatch)
    done = train(tiny(tmp_path / "r", ema=0.9, state_every=1, val_fraction=0.0))
    kept = weights(done)
    assert all(torch.equal(written[-1]["ema"][key], value) for key, value in kept.items())
    assert not torch.equal(written[-1]["model"]["head.fc.weight"], kept["head.fc.weight"])
    low, high = (
        torch.stack([state["model"]["head.fc.weight"] for state in written]).amin(0),
        torch.stack([state["model"]["head.fc.weight"] for state in written]).amax(0),
    )
    assert ((low <= kept["head.fc.weight"]) & (kept["head.fc.weight"] <= high)).float().mean() > 0.9


def test_clipping_bounds_the_gradient(tmp_path, monkeypatch):
    """With plain SGD a step moves the weights by lr times the gradient."""
    written = states(monkeypatch)
    train(tiny(tmp_path / "r", opt="momentum", clip=0.01, momentum=0.0, weight_decay=0.0, state_every=1))
    (before, after) = (written[0]["model"], written[1]["model"])
    names = [name for name in before if not name.split(".")[-1].startswith(("running", "num"))]
    moved = sum((after[name] - before[name]).square().sum() for name in names).sqrt()
    assert 0 < moved <= 0.01 * 0.1 * 1.001


def test_warm_up_starts_at_its_own_rate(tmp_path, monkeypatch):
    written = states(monkeypatch)
    train(tiny(tmp_path / "r", epochs=2, warmup_epochs=1, warmup_lr=0.02, state_every=1))
    rates = [state["optimizer"]["param_groups"][0]["lr"] for state in written]
    assert rates[0] == pytest.approx(0.02 + 0.08 / 20)  # after the first of 20 steps
    assert max(rates) == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_no_weight_decay_on_norms_and_biases(tmp_path, monkeypatch):
    written = states(monkeypatch)
    train(tiny(tmp_path / "r", weight_decay=0.5))
    groups = written[-1]["optimizer"]["param_groups"]
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.5]


@pytest.mark.parametrize(
    ("opt", "fused"), [("sgd", True), ("momentum", True), ("adamw", None), ("lookahead_sgd", True)]
)
def test_sgd_runs_fused(opt, fused):
    model = torch.nn.Linear(3, 2)
    assert build_optimizer(tiny("r", opt=opt), model).param_groups[0].get("fused") == fused
    if fused:
        assert not build_optimizer(tiny("r", opt=opt), model, fused=False).param_groups[0]["fused"]


def test_mixup_and_cutmix_mix_images_and_labels():
    mix, loss = build_loss(tiny("r", mixup=1.0, cutmix=1.0, label_smoothing=0.1), 10)
    x, labels = torch.rand(64, 1, 8, 8), torch.arange(64) % 10
    mixed, target = mix(x.clone(), labels)
    assert not torch.equal(mixed, x)
    torch.testing.assert_close(target.sum(1), torch.ones(64))
    assert (target.amax(1) < 0.99).all()
    assert loss(torch.zeros(64, 10), target).item() == pytest.approx(torch.tensor(10.0).log().item())


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"channels_last": True},
        {
            "model": "resmlp_6_32",
            "model_args": {"patch_size": 4},
            "grad_checkpointing": True,
        },
        {"random_erasing": 0.5},
        {"auto_augment": "rand-m5-mstd0.5-inc1"},
        {"augment": "resized-crop", "auto_augment": "augmix-m3-w2"},
    ],
    ids=lambda changes: next(reversed(changes)),
)
def test_a_network_learns_with(tmp_path, changes):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # accelerate keeps the precision of the first run
    try:
        losses = []
        train(tiny(tmp_path / "r", epochs=2, **changes), on_epoch=lambda row: losses.append(row.train_loss))
        assert losses[1] < losses[0]
    finally:
        AcceleratorState._reset_state()


def test_what_accelerate_keeps_from_the_first_run_of_a_process_is_said(tmp_path):
    train(tiny(tmp_path / "first", epochs=1))
    with pytest.raises(ValueError, match=r"compile is kept as in the first run of this process, which did not"):
        train(tiny(tmp_path / "second", epochs=1, compile=True))


@pytest.mark.parametrize(
    ("model", "arguments"), [("repmlp_cifar", {"channels": [4, 8], "partition_size": 8}), ("resmlp_6_32", {})]
)
def test_a_network_that_is_built_for_a_size_gets_images_of_that_size(model, arguments):
    settings = Train(output="r", model=model, model_args={**arguments, "img_size": 16})
    data = load_data("digits")
    network = build_model(settings, data)
    assert data_config_of(settings, network, data)["input_size"] == (1, 16, 16)


def test_channels_last_computes_the_same(tmp_path):
    """In three steps: its sums are added in another order, and rounding grows with the steps."""
    runs = {on: train(tiny(tmp_path / str(on), channels_last=on, lr=1e-3, train_images=144)) for on in (False, True)}
    first, second = map(weights, runs.values())
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=2e-5)
    assert any(
        not torch.equal(second[key], value) for key, value in first.items()
    )  # another order, so the other layout


def test_metrics_go_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensorboard's own imports
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        rows = []
        done = train(tiny(tmp_path / "r", epochs=2, trackers=["tensorboard"]), on_epoch=rows.append)
        events = EventAccumulator(str(next(done.folder.rglob("events.out.tfevents*")).parent))
        events.Reload()
    values = [event.value for event in events.Scalars("val_accuracy")]
    assert values == pytest.approx([row.val_accuracy for row in rows], rel=1e-6)


def test_locality_is_trained_beside_the_fcs_and_merged(tmp_path):
    done = train(tiny(tmp_path / "r", model="resmlp_6_32", model_args={"patch_size": 2}, locality=[1, 3], lr=0.01))
    model = repmlp.load_model(done.folder)
    assert any(".local_perceptron." in key for key in weights(done))
    plain = repmlp.reparameterize(model)
    assert plain.state_dict().keys() == timm.create_model("resmlp_6_32").state_dict().keys()
    assert repmlp.verify(model, plain)


def test_locality_where_there_is_no_place_for_it(tmp_path):
    with pytest.raises(ValueError, match="nothing to inject into: this CifarNet"):
        train(tiny(tmp_path / "r", locality=[1, 3]))
    assert not (tmp_path / "r").exists()


def test_the_trained_network_is_a_model_folder_like_any_other(tmp_path):
    done = train(tiny(tmp_path / "r", ema=0.9))
    model = repmlp.load_model(done.folder)
    assert repmlp.verify(model, repmlp.reparameterize(model))
