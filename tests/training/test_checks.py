"""Settings that cannot work, or would do nothing, are refused before anything is written; their neighbors train."""

from dataclasses import fields

import pytest
from accelerate import tracking

from pictures import picture
from repmlp.training import checks, train
from repmlp_settings import Train
from repmlp_settings.limits import LEAST
from tiny import TINY


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_fraction": -0.5}, "val_fraction is -0.5, but has to be at least 0 and less than 1"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"val_fraction": float("nan")}, "val_fraction is nan"),
        ({"val_fraction": 1e-4}, "val_fraction 0.0001 of 1437 images leaves none to validate on"),
        ({"epochs": 0}, "epochs is 0, but has to be 1 or more"),
        ({"accumulation": 0}, "accumulation is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1, but has to be 0 or more"),
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"hflip": 1.5}, "hflip is 1.5, but has to be between 0 and 1"),
        ({"qat": True, "qat_fraction": 0.0}, "qat_fraction is 0.0"),
        ({"momentum": 0.0}, "momentum is 0, but opt=sgd is SGD with Nesterov momentum: use more, or opt=momentum"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0, but has to be more than 0 and at most 1"),
        ({"seed": -1}, "seed is -1"),
        ({"warmup_epochs": 3}, "warmup_epochs=3 leaves none of the 3 epochs"),
        ({"opt": "sdg"}, "unknown optimizer 'sdg'"),
        ({"precision": "fp16"}, "precision fp16 needs a GPU, and this run is on a CPU: use bf16 or no"),
        ({"trackers": ["nosuch"]}, "unknown tracker 'nosuch': accelerate has .*tensorboard"),
        ({"img_size": [8, 8, 8]}, "img_size .* is not a size: use one number, or height and width"),
        ({"crop_padding": 9}, "crop_padding is 9, but has to be at most 8, the image size"),
        ({"workers": 1025}, "workers is 1025, but has to be at most 1024"),
        ({"freeze": "all-but-blocks", "model": "test_resnet", "model_args": {}}, "there is no RepMLP block in this"),
    ],
)
def test_settings_that_do_nothing_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(Train(output=str(tmp_path / "r"), **{**TINY, **changes}))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"val_fraction": 0.0},
        {"val_fraction": 0.001},
        {"hflip": 1.0, "random_erasing": 1.0},
        {"layer_decay": 1.0, "qat_fraction": 1.0},
        {"epochs": 1, "warmup_epochs": 0},
        {"opt": "lookahead_adamw"},
        {"opt": "momentum", "momentum": 0.0},
        {"opt": "adamw", "momentum": 0.0},
    ],
)
def test_their_neighbors_are_not(changes):
    checks.check_settings(Train(output="r", **{**TINY, **changes}))


def test_every_number_has_a_range():
    numbers = {field.name for field in fields(Train) if type(field.default) in (int, float)}
    assert numbers == {*checks.RANGES, *LEAST} - {"steps", "seeds"}  # which other commands have


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "get_available_trackers", lambda: [tracking.LoggerType.TENSORBOARD])
    checks.check_settings(Train(output="r", trackers=["tensorboard"]))
    with pytest.raises(ImportError, match="the tracker wandb is not installed: install it, or train without it"):
        train(Train(output=str(tmp_path / "r"), trackers=["wandb"], **TINY))
    assert not (tmp_path / "r").exists()


def test_data_of_a_single_class(tmp_path):
    for split in ("train", "val"):
        folder = tmp_path / "data" / split / "only"
        folder.mkdir(parents=True)
        for i in range(4):
            picture(i, 8, 8).save(folder / f"{i}.png")
    with pytest.raises(ValueError, match="the data has a single class, only: a classifier needs"):
        train(Train(output=str(tmp_path / "r"), data=f"folder:{tmp_path / 'data'}", **TINY))
