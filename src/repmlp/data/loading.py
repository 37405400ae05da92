"""Batches whose random choices are all functions of the seed and the position in the run.

Which images form batch b of epoch e, how image i is augmented in it and what dropout draws in a step follow from (seed,
epoch, position) alone. So a run does not depend on the number of workers, two processes see the batches that one would
see, and an interrupted run resumes bit for bit without saving the state of a random generator.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .images import LabeledImages


class Batches(Protocol):
    """Batches of images (B, C, H, W) and labels (B), epoch by epoch."""

    def __len__(self) -> int:
        """Number of batches per epoch."""

    def iter_epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, starting with batch number ``start``."""


@dataclass(frozen=True)
class ProcessShard:
    """The share of one of several processes: every ``world``-th image, starting with number ``rank``."""

    rank: int = 0
    world: int = 1

    def slice(self) -> slice:
        return slice(self.rank, None, self.world)


#: The share of a single process: everything.
WHOLE = ProcessShard()


def mixed_seed(*key: int) -> int:
    """A 64-bit seed from several numbers; any difference in them gives an unrelated seed."""
    # The count comes first, because SeedSequence ignores trailing zeros.
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0])


def seed_from_key(*key: int) -> None:
    """Seed Python, NumPy and PyTorch (on the CPU, and on CUDA GPUs in use) from a position in a run."""
    seed = mixed_seed(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  timm's mixup draws from it
    torch.default_generator.manual_seed(seed % 2**63)  # torch.manual_seed takes a millisecond even without CUDA
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed % 2**63)


def _generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(mixed_seed(*key) % 2**63)


def epoch_batches(
    n: int, batch_size: int, train: bool, seed: int = 0, epoch: int = 0, shard: ProcessShard = WHOLE
) -> Sequence[Tensor]:
    """The indices, in 0 .. n-1, of the images in each batch of an epoch, for this process.

    For training they are shuffled and all batches have the same size, as BN needs; an incomplete last one is dropped
    for that epoch. Otherwise each image occurs exactly once over all processes.

    Args:
        n: number of images.
        batch_size: over all processes.
    """
    if not train:
        return torch.arange(n)[shard.slice()].split(max(1, batch_size // shard.world)) if n > shard.rank else ()
    order = torch.randperm(n, generator=_generator(seed, epoch))
    batches = order[: n // batch_size * batch_size].view(-1, batch_size)[:, shard.slice()]  # (batches, B / world)
    return batches.unbind()


def count_batches(n: int, batch_size: int, train: bool, shard: ProcessShard = WHOLE) -> int:
    """The number of batches that :func:`epoch_batches` gives, without shuffling."""
    if train:
        return n // batch_size
    return -(-len(range(n)[shard.slice()]) // max(1, batch_size // shard.world))


def augmentation_draws(
    batch_size: int, padding: int, hflip: float, key: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Random crops and flips of a batch, over all processes: top, left, flip (B)."""
    generator = _generator(*key)
    top, left = torch.randint(0, 2 * padding + 1, (2, batch_size), generator=generator)
    return top, left, torch.rand(batch_size, generator=generator) < hflip


class ImageBatches:
    """Batches of images that worker processes read, augment and prepare one by one.

    Args:
        data: map-style data set of (PIL image, class index).
        indices: of the images to use.
        transform: PIL image -> (C, H, W).
        batch_size: over all processes.
        shard, train, seed: as for :class:`repmlp.data.TensorBatches`.
        workers: processes that load images; with 0, this process loads them.
    """

    def __init__(
        self,
        data: LabeledImages,
        indices: Sequence[int],
        transform: Callable[[Image.Image], Tensor],
        batch_size: int,
        shard: ProcessShard = WHOLE,
        train: bool = False,
        seed: int = 0,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.shard, self.train, self.seed = shard, train, seed
        self.sampler = _Positions(len(indices), batch_size, shard, train, seed)
        self.loader = DataLoader(
            _Seeded(data, indices, transform, seed if train else None),
            batch_sampler=self.sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # only for the workers' own seeds, which ours replace
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def iter_epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, H, W) and labels (B), starting with batch number ``start``."""
        self.sampler.epoch, self.sampler.start = epoch, start
        for number, (x, labels) in enumerate(self.loader, start):
            if self.train:
                seed_from_key(self.seed, epoch, number, self.shard.rank)
            yield x, labels


class _Positions(Sampler[list[tuple[int, int]]]):
    """(epoch, position) of the images in each batch."""

    def __init__(self, n: int, batch_size: int, shard: ProcessShard, train: bool, seed: int) -> None:
        self.n, self.batch_size, self.shard, self.train, self.seed = n, batch_size, shard, train, seed
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return count_batches(self.n, self.batch_size, self.train, self.shard)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches = epoch_batches(self.n, self.batch_size, self.train, self.seed, self.epoch, self.shard)
        for positions in batches[self.start :]:
            yield [(self.epoch, position) for position in positions.tolist()]


class _Seeded(Dataset):
    """Images by (epoch, position), which also seed the transform if it is random."""

    def __init__(self, data: LabeledImages, indices: Sequence[int], transform: Callable, seed: int | None) -> None:
        self.data, self.indices, self.transform, self.seed = data, indices, transform, seed

    def __getitem__(self, where: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, position = where
        image, label = self.data[self.indices[position]]
        if self.seed is not None:
            seed_from_key(self.seed, epoch, position)
        return self.transform(image), label
