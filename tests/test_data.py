"""Data sets by name, and what happens between an image file and a network."""

import numpy as np
import pytest
import torch
from PIL import Image

from repmlp.data import (
    NORMALIZATION,
    Transformed,
    eval_transform,
    hold_out,
    load_data,
    open_image,
    train_transform,
)

GRAY = {"input_size": (1, 16, 16), "mean": (0.5,), "std": (0.5,), "interpolation": "bilinear", "crop_pct": 1.0}
COLOR = {**GRAY, "input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}


def image(width=20, height=20, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folders(tmp_path):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                image().save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def test_the_digits_are_on_board_and_split_without_overlap():
    data = load_data("digits")
    assert (len(data.train), len(data.test), data.in_chans) == (1437, 360, 1)
    assert data.class_names == tuple("0123456789")
    train = {bytes(np.asarray(data.train[i][0])) for i in range(1437)}
    test = [bytes(np.asarray(data.test[i][0])) for i in range(360)]
    assert not any(digit in train for digit in test)
    labels = np.bincount([data.test[i][1] for i in range(360)])
    assert labels.min() >= 34  # stratified: all digits are about as frequent


def test_the_digits_are_normalized_by_their_own_statistics():
    pixels = load_data("digits").train.images / 255
    assert NORMALIZATION["digits"] == ((round(pixels.mean(), 4),), (round(pixels.std(), 4),))


def test_an_image_folder(folders):
    data = load_data(f"folder:{folders}")
    assert (len(data.train), len(data.test), data.class_names, data.in_chans) == (6, 6, ("cat", "dog"), 3)
    x, label = Transformed(data.train, eval_transform(COLOR))[5]
    assert x.shape == (3, 16, 16)
    assert label == 1


def test_an_image_folder_that_cannot_be_used(folders):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        load_data(f"folder:{folders}/nowhere")
    (folders / "val" / "dog").rename(folders / "val" / "wolf")
    with pytest.raises(ValueError, match="other classes to train on than to test on: dog, wolf"):
        load_data(f"folder:{folders}")
    for path in (folders / "val").rglob("*.png"):
        path.unlink()
    (folders / "val" / "wolf").rename(folders / "val" / "dog")
    with pytest.raises(FileNotFoundError, match="Found no valid file for the classes"):
        load_data(f"folder:{folders}")


def test_torchvision_data_that_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no torch/cifar10 in .*--data_root .* or pass --download"):
        load_data("torch/cifar10", tmp_path)


def test_an_unknown_data_set_says_which_exist():
    with pytest.raises(ValueError, match=r"unknown data set 'cifar': there are digits, .*torch/cifar10.* folder:PATH"):
        load_data("cifar")


def test_held_out_images_are_the_same_for_a_seed_and_apart_from_the_others():
    train, held_out = hold_out(range(50), 0.2, seed=3)
    assert (len(train), len(held_out)) == (40, 10)
    assert sorted(train + held_out) == list(range(50))
    assert hold_out(range(50), 0.2, seed=3) == (train, held_out)
    assert hold_out(range(50), 0.2, seed=4) != (train, held_out)
    assert hold_out(range(50), 0.0, seed=3) == (list(range(50)), [])


@pytest.mark.parametrize("augment", ["none", "pad-crop", "resized-crop"])
@pytest.mark.parametrize("config", [GRAY, COLOR])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1"])
def test_any_image_becomes_what_the_network_wants(augment, config, mode):
    x = train_transform(config, augment)(image(31, 23, mode))
    assert x.dtype == torch.float32
    assert x.shape == config["input_size"]


def test_pad_crop_shifts_an_image_by_at_most_the_padding():
    square = Image.new("L", (16, 16), 0)
    square.putpixel((8, 8), 255)
    transform = train_transform({**GRAY, "mean": (0.0,), "std": (1.0,)}, "pad-crop", padding=2, hflip=0.0)
    seen = {tuple(transform(square)[0].nonzero()[0].tolist()) for _ in range(300)}
    assert seen == {(y, x) for y in range(6, 11) for x in range(6, 11)}


def test_evaluation_only_resizes_and_normalizes():
    x = eval_transform(GRAY)(Image.new("L", (16, 16), 255))
    assert torch.equal(x, torch.ones(1, 16, 16))


def test_a_file_that_is_no_image(tmp_path):
    (tmp_path / "x.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"x\.png is not an image that can be read"):
        open_image(tmp_path / "x.png")
    image(64, 64).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.png is not an image that can be read"):
        open_image(tmp_path / "cut.png")
    with pytest.raises(FileNotFoundError, match="there is no image file"):
        open_image(tmp_path / "nothing.png")
