"""Folders and shards of pictures, all of which differ."""

import pytest

from pictures import encoded, picture, write_shard


@pytest.fixture
def folders(tmp_path):
    """train and val, cat and dog, three images each; all twelve images differ."""
    seeds = iter(range(12))
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                picture(next(seeds)).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


@pytest.fixture
def shards(tmp_path):
    """Three shards to train on and two to test on, of four images each: image i is picture(i), its label i % 3."""
    for number in range(5):
        name = f"train-{number:06d}.tar" if number < 3 else f"val-{number - 3:06d}.tar"
        members = []
        for i in range(4 * number, 4 * number + 4):
            members += [(f"{i:04d}.cls", str(i % 3).encode()), (f"{i:04d}.png", encoded(picture(i)))]
        write_shard(tmp_path / name, members)
    return tmp_path
