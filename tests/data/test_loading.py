"""Batches are a function of seed, epoch and place: whoever reads them, and from wherever on."""

import random

import numpy as np
import pytest
import torch

from repmlp.data import ImageBatches, ProcessShard, count_batches, epoch_batches, seed_from_key
from repmlp.data.loading import augmentation_draws, mixed_seed

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")


class Numbers:
    """A data set whose images are their own index."""

    def __len__(self):
        return 23

    def __getitem__(self, i):
        return float(i), i


def noisy(x):
    """A transform that draws from every generator that an augmentation may use."""
    return torch.tensor([x, random.random(), np.random.rand(), torch.rand(()).item()])  # noqa: NPY002


def batches(workers=0, shard=ProcessShard(), train=True, batch_size=4, indices=range(23), seed=0):  # noqa: B008
    return ImageBatches(Numbers(), indices, noisy, batch_size, shard, train, seed, workers)


def same(first, second):
    return all(torch.equal(a, b) and torch.equal(i, j) for (a, i), (b, j) in zip(first, second, strict=True))


def test_the_number_of_workers_changes_no_bit_and_an_epoch_may_begin_anywhere():
    alone, workers = batches(), batches(workers=2)
    for epoch in (1, 2):
        assert same(list(alone.iter_epoch(epoch)), list(workers.iter_epoch(epoch)))
    assert same(list(alone.iter_epoch(2))[3:], list(workers.iter_epoch(2, start=3)))


def test_processes_share_the_images_and_their_augmentation():
    whole = list(batches(seed=5).iter_epoch(1))
    parts = [list(batches(shard=ProcessShard(rank, 2), seed=5).iter_epoch(1)) for rank in range(2)]
    for (x, labels), (x0, labels0), (x1, labels1) in zip(whole, *parts, strict=True):
        assert torch.equal(torch.stack([x0, x1], 1).flatten(0, 1), x)
        assert torch.equal(torch.stack([labels0, labels1], 1).flatten(), labels)


def test_epochs_images_and_seeds_draw_differently():
    def draws(epoch, seed=0):
        return {round(value, 9) for x, _ in batches(seed=seed).iter_epoch(epoch) for value in x[:, 1].tolist()}

    first, second, other = draws(1), draws(2), draws(1, seed=1)
    assert len(first) == 20
    assert not first & second
    assert not first & other


def test_each_step_finds_the_generators_seeded_by_its_place():
    def after(epoch, start=0):
        return [torch.rand(()).item() for _ in batches().iter_epoch(epoch, start)]

    assert after(1)[2:] == after(1, start=2)
    assert len(set(after(1) + after(2))) == 10


def test_evaluation_leaves_the_generators_alone():
    torch.manual_seed(7)
    expected = torch.rand(())
    torch.manual_seed(7)
    assert len(list(ImageBatches(Numbers(), range(5), torch.tensor, 2).iter_epoch())) == 3
    assert torch.rand(()) == expected


@pytest.mark.parametrize(("n", "world"), [(10, 1), (10, 3), (2, 4), (0, 2)])
def test_over_all_processes_every_image_is_evaluated_exactly_once(n, world):
    shards = [ProcessShard(rank, world) for rank in range(world)]
    seen = [i for shard in shards for b in epoch_batches(n, 4, False, shard=shard) for i in b.tolist()]
    assert sorted(seen) == list(range(n))


def test_shuffles_are_uniform_enough():
    firsts = [epoch_batches(5, 5, True, 0, epoch)[0][0].item() for epoch in range(500)]
    assert np.bincount(firsts).min() > 60  # 100 each, 9 is one standard deviation


def test_seeds_of_neighboring_places_are_unrelated():
    seeds = {mixed_seed(*key) for key in [(0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (2**40, 0)]}
    assert len(seeds) == 6


def test_seeding_reaches_python_numpy_and_torch():
    draws = []
    for _ in range(2):
        seed_from_key(1, 2, 3)
        draws.append((random.random(), np.random.rand(), torch.rand(()).item()))  # noqa: NPY002
    assert draws[0] == draws[1]


def test_draws_for_crops_cover_their_range():
    top, left, flip = augmentation_draws(2000, 2, 0.25, (0,))
    assert set(top.tolist()) == set(left.tolist()) == {0, 1, 2, 3, 4}
    assert 0.2 < flip.float().mean() < 0.3
    assert not torch.equal(top, left)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("n", "world"), [(0, 1), (3, 1), (8, 2), (23, 1), (23, 3), (2, 4)])
def test_batches_are_counted_without_drawing_them(n, world, train):
    for rank in range(world):
        shard = ProcessShard(rank, world)
        assert count_batches(n, 4 * world, train, shard) == len(epoch_batches(n, 4 * world, train, shard=shard))
