"""Data sets by name, and which of their images are held out."""

import struct

import numpy as np
import pytest
import torch

from pictures import picture
from repmlp.data import NORMALIZATION, draw_train_val, load_data


def write_mnist(folder, images=20, size=28):
    """Files in MNIST's format, of noise."""
    folder.mkdir(parents=True)
    for part, seed in (("train", 0), ("t10k", 1)):
        pixels = np.random.default_rng(seed).integers(0, 256, (images, size, size), dtype=np.uint8)
        labels = np.arange(images, dtype=np.uint8) % 10
        for name, kind, content in (("images-idx3", 3, pixels), ("labels-idx1", 1, labels)):
            head = struct.pack(f">{kind + 1}I", 0x800 + kind, *content.shape)
            (folder / f"{part}-{name}-ubyte").write_bytes(head + content.tobytes())
    return np.random.default_rng(0).integers(0, 256, (images, size, size), dtype=np.uint8)


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
    pixels = load_data("digits").train.pixels.numpy() / 255
    assert NORMALIZATION["digits"] == ((round(pixels.mean(), 4),), (round(pixels.std(), 4),))


def test_a_small_torchvision_set_states_its_size_and_the_published_statistics(tmp_path):
    pixels = write_mnist(tmp_path / "FashionMNIST" / "raw")
    data = load_data("torch/fashion_mnist", tmp_path)
    assert (len(data.train), len(data.test), data.image_size, data.in_chans) == (20, 20, (28, 28), 1)
    assert (data.mean, data.std) == NORMALIZATION["torch/fashion_mnist"]
    assert data.class_names[:2] == ("T-shirt/top", "Trouser")
    assert np.array_equal(np.asarray(data.train[7][0]), pixels[7])
    assert [data.test[i][1] for i in range(3)] == [0, 1, 2]


def test_statistics_that_are_not_published_are_those_of_the_training_images(tmp_path):
    pixels = write_mnist(tmp_path / "KMNIST" / "raw") / 255
    data = load_data("torch/kmnist", tmp_path)
    assert data.mean == pytest.approx((pixels.mean(),), abs=1e-4)
    assert data.std == pytest.approx((pixels.std(),), abs=1e-4)
    assert data.image_size == (28, 28)


@pytest.fixture
def imagenet(tmp_path):
    for part in ("train", "val"):
        for wnid in ("n01", "n02"):
            (tmp_path / part / wnid).mkdir(parents=True)
            picture().save(tmp_path / part / wnid / "0.JPEG")
    torch.save(({"n01": ("tench", "Tinca tinca"), "n02": ("goldfish",)}, []), tmp_path / "meta.bin")
    return tmp_path


def test_a_large_torchvision_set_is_one_of_image_files(imagenet):
    data = load_data("torch/imagenet", imagenet, in_memory="no")
    assert data.class_names == ("tench, Tinca tinca", "goldfish")
    assert data.image_size is None
    assert [data.train[i][1] for i in range(2)] == [0, 1]
    assert data.train[1][0].size == picture().size
    (imagenet / "val" / "n02" / "0.JPEG").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"val.n02.0\.JPEG is not an image"):
        data.test[1]
    with pytest.warns(UserWarning, match=r"1 of 4 images cannot be read"):
        assert len(load_data("torch/imagenet", imagenet, bad_images="skip").test) == 1


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("torch/cifar10", "pass download=True"),
        ("torch/places365", "pass download=True"),
        (
            "torch/fashion_mnist",
            r"pass download=True, or install Debian's package dataset-fashion-mnist .* \S+/FashionMNIST/raw",
        ),
        ("torch/imagenet", "put the archives from image-net.org there"),
    ],
)
def test_torchvision_data_that_is_not_there_says_how_to_get_it(tmp_path, name, how):
    with pytest.raises(FileNotFoundError, match=rf"no {name} in .*: point data_root .* or {how}"):
        load_data(name, tmp_path)


def test_a_download_that_fails_says_why(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("repmlp.data.sets.create_dataset", fail)
    with pytest.raises(FileNotFoundError, match=r"torch/cifar10 could not be downloaded to .*new: no route to host"):
        load_data("torch/cifar10", tmp_path / "new", download=True)


@pytest.mark.parametrize("name", ["cifar", "torch/cifar11", "torch/folder", "tfds/mnist", "./photos"])
def test_an_unknown_data_set_says_which_exist(name):
    known = r"digits, torch/cifar10, .*torch/places365, folder:\.\.\., wds/\.\.\., hfds/\.\.\."
    with pytest.raises(ValueError, match=rf"unknown data set '{name}': there are {known}"):
        load_data(name)


def test_a_path_may_begin_at_home(folders, shards, monkeypatch):
    monkeypatch.setenv("HOME", str(folders))
    assert len(load_data("folder:~").train) == 6
    assert len(load_data("wds/~").train) == 12


def test_an_unknown_way_with_bad_images_is_refused(folders):
    with pytest.raises(ValueError, match="bad_images is 'ignore': use stop or skip"):
        load_data(f"folder:{folders}", bad_images="ignore")


def test_held_out_images_are_the_same_for_a_seed_and_apart_from_the_others():
    train, held_out = draw_train_val(50, 0.2, seed=3)
    assert (len(train), len(held_out)) == (40, 10)
    assert sorted(train + held_out) == list(range(50))
    assert draw_train_val(50, 0.2, seed=3) == (train, held_out)
    assert draw_train_val(50, 0.2, seed=4) != (train, held_out)
    assert draw_train_val(50, 0.0, seed=3) == (list(range(50)), [])
