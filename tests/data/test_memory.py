"""Whole batches in memory: the same pixels as image by image, cropped and mirrored as torchvision would."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from repmlp.data import (
    ProcessShard,
    TensorBatches,
    Transformed,
    crop_and_flip,
    eval_transform,
    load_data,
    load_tensor,
    normalize,
)

CONFIG = {"input_size": (3, 12, 12), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "interpolation": "bicubic"}
CONFIG["crop_pct"] = 1.0


def pictures(n=7, size=9):
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return [(Image.fromarray(image), i % 3) for i, image in enumerate(pixels)]


@pytest.mark.parametrize("crop_pct", [1.0, 0.8, 12 / 9.01])
def test_the_tensor_holds_what_each_image_becomes_for_evaluation(crop_pct):
    config, data = {**CONFIG, "crop_pct": crop_pct}, pictures()
    images, labels = load_tensor(data, config)
    assert images.dtype == torch.uint8
    expected = torch.stack([eval_transform(config)(image) for image, _ in data])
    assert torch.equal(normalize(images, config["mean"], config["std"]), expected)  # to the last bit
    assert labels.tolist() == [label for _, label in data]


def test_a_choice_of_images_and_none():
    data = pictures()
    images, labels = load_tensor(data, CONFIG, [4, 1])
    assert torch.equal(images, load_tensor(data, CONFIG)[0][[4, 1]])
    assert labels.tolist() == [1, 1]
    assert load_tensor(data, CONFIG, [])[0].shape == (0, 3, 12, 12)


def test_images_are_padded_with_black_where_they_are_smaller():
    data = pictures(size=8)
    images, _ = load_tensor(data, {**CONFIG, "crop_pct": 12 / 8.01})
    for image, (picture, _) in zip(images, data, strict=True):
        expected = np.zeros((12, 12, 3), np.uint8)
        expected[2:10, 2:10] = np.asarray(picture)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_crops_and_flips_are_those_of_torchvision():
    x = torch.randint(0, 256, (40, 2, 5, 7), dtype=torch.uint8)
    top, left = torch.randint(0, 7, (2, 40))
    flip = torch.rand(40) < 0.5
    got = crop_and_flip(x, top, left, flip, 3)
    for i in range(40):
        one = tv.crop(tv.pad(x[i], [3]), int(top[i]), int(left[i]), 5, 7)
        assert torch.equal(got[i], tv.hflip(one) if flip[i] else one)


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (50, 1, 6, 6), generator=generator).byte(), torch.arange(50)


def batches_of(tensors, batch_size=8, **arguments):
    return TensorBatches(*tensors, batch_size, {"mean": (0.5,), "std": (0.5,)}, **arguments)


def test_an_epoch_has_every_image_once_shuffled_and_full_batches_only(tensors):
    batches = batches_of(tensors, train=True)
    first, second = ([labels.tolist() for _, labels in batches.iter_epoch(epoch)] for epoch in (1, 2))
    assert len(batches) == len(first) == 6
    assert {len(labels) for labels in first} == {8}
    seen = [label for labels in first for label in labels]
    assert len(set(seen)) == 48
    assert seen != sorted(seen)
    assert first != second


def test_without_training_images_come_in_order_and_all_of_them(tensors):
    batches = batches_of(tensors)
    assert torch.equal(torch.cat([labels for _, labels in batches.iter_epoch()]), torch.arange(50))
    assert len(batches) == 7
    x = torch.cat([x for x, _ in batches.iter_epoch()])
    assert torch.equal(x, normalize(tensors[0], (0.5,), (0.5,)))


def test_from_a_later_batch_on_an_epoch_is_the_same(tensors):
    batches = batches_of(tensors, train=True, padding=2, hflip=0.5, seed=3)
    whole, rest = list(batches.iter_epoch(5)), list(batches.iter_epoch(5, start=4))
    assert len(rest) == 2
    for (x, labels), (again, labels_again) in zip(whole[4:], rest, strict=True):
        assert torch.equal(x, again)
        assert torch.equal(labels, labels_again)


def test_processes_share_the_batches_of_one(tensors):
    arguments = {"train": True, "padding": 2, "hflip": 0.5, "seed": 1}
    whole = list(batches_of(tensors, **arguments).iter_epoch(1))
    parts = [list(batches_of(tensors, shard=ProcessShard(rank, 2), **arguments).iter_epoch(1)) for rank in range(2)]
    for (x, labels), (x0, labels0), (x1, labels1) in zip(whole, *parts, strict=True):
        assert torch.equal(x[0::2], x0)
        assert torch.equal(x[1::2], x1)
        assert torch.equal(torch.stack([labels0, labels1], 1).flatten(), labels)


def test_every_image_is_augmented_differently_and_every_place_is_drawn(tensors):
    marked = torch.zeros(64, 1, 5, 5, dtype=torch.uint8)
    marked[:, 0, 2, 1] = 255
    places = set()
    batches = TensorBatches(
        marked, torch.arange(64), 64, {"mean": (0.0,), "std": (1.0,)}, train=True, padding=1, hflip=0.5
    )
    for epoch in range(4):
        for x, _ in batches.iter_epoch(epoch):
            places |= {tuple(place) for place in x[:, 0].nonzero()[:, 1:].tolist()}
    rows, columns = (1, 2, 3), (0, 1, 2, 3, 4)  # 1 +- 1, and mirrored 3 +- 1
    assert places == {(row, column) for row in rows for column in columns}


def test_erasing_is_seeded_by_the_place_too(tensors):
    def erase(x):
        return x * torch.rand(len(x), 1, 1, 1)

    batches = batches_of(tensors, train=True, erase=erase)
    first, again, other = (next(batches.iter_epoch(epoch))[0] for epoch in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_digits_in_memory_are_the_digits():
    data = load_data("digits")
    config = {**CONFIG, "input_size": (1, 16, 16), "mean": data.mean, "std": data.std}
    images, labels = load_tensor(data.test, config)
    assert images.shape == (360, 1, 16, 16)
    x, label = Transformed(data.test, eval_transform(config))[17]
    assert torch.equal(normalize(images[17:18], data.mean, data.std)[0], x)
    assert labels[17] == label
