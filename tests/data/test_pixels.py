"""Image files of one size in memory: the same pixels as image by image, decoded once for all runs."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open

from pictures import encoded, picture, write_shard
from repmlp.data import TensorBatches, load_data, load_tensor, pixels
from repmlp.data.loading import ImageBatches
from repmlp.data.pixels import PIXELS
from repmlp.training.batches import build_batches
from repmlp_settings import Train

CONFIG = {"input_size": (3, 16, 20), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "interpolation": "bicubic"}
CONFIG["crop_pct"] = 1.0


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory, monkeypatch):
    """The user's cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """Names of the images that are decoded into memory from here on."""
    names, decode = [], pixels._decode

    def counted(parts, size, on_check):
        names.extend(part.name(i) for part in parts for i in range(len(part)))
        return decode(parts, size, on_check)

    monkeypatch.setattr(pixels, "_decode", counted)
    return names


def same_samples(a, b):
    return len(a) == len(b) and all(
        np.array_equal(np.asarray(a[i][0]), np.asarray(b[i][0])) and a[i][1] == b[i][1] for i in range(len(a))
    )


@pytest.mark.parametrize("source", ["folder", "wds", "hfds"])
def test_the_images_in_memory_are_those_that_are_read_one_by_one(request, source, tmp_path_factory):
    if source == "hfds":
        pytest.importorskip("datasets", reason="pip install 'repmlp[hub]'")
    path = request.getfixturevalue("shards" if source == "wds" else "folders")
    name = {"folder": f"folder:{path}", "wds": f"wds/{path}", "hfds": f"hfds/{path}"}[source]
    root = tmp_path_factory.mktemp("hub")
    for _ in range(2):  # decoded, and from the file
        kept, read = (load_data(name, root, in_memory=how) for how in ("auto", "no"))
        assert (kept.image_size, read.image_size) == ((16, 20), None)
        assert (kept.mean, kept.std, kept.class_names) == (read.mean, read.std, read.class_names)
        assert same_samples(kept.train, read.train)
        assert same_samples(kept.test, read.test)


@pytest.mark.parametrize("change", [{}, {"input_size": (3, 8, 12)}, {"crop_pct": 0.8}, {"input_size": (1, 16, 20)}])
def test_they_are_prepared_for_a_network_as_one_by_one(folders, change):
    config = CONFIG | change
    kept, read = (load_data(f"folder:{folders}", in_memory=how).train for how in ("yes", "no"))
    for indices in (None, [4, 1], []):
        images, labels = load_tensor(kept, config, indices)
        expected, expected_labels = load_tensor(read, config, indices)
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)
        assert images.is_contiguous()


def test_pixels_that_no_transform_changes_are_taken_without_one(folders, monkeypatch):
    kept = load_data(f"folder:{folders}").train
    monkeypatch.setattr(pixels.PixelImages, "__getitem__", None)
    assert load_tensor(kept, CONFIG)[0].shape == (6, 3, 16, 20)
    with pytest.raises(TypeError):
        load_tensor(kept, CONFIG | {"crop_pct": 0.8})


def batches_for(data, **settings):
    settings = Train(output="", batch_size=2, val_fraction=0.0, **settings)
    return build_batches(settings, data, CONFIG, Accelerator(cpu=True))


def test_a_folder_in_memory_trains_in_whole_batches(folders):
    train, _, test = batches_for(load_data(f"folder:{folders}"), crop_padding=2)
    assert isinstance(train, TensorBatches)
    assert (train.padding, train.hflip) == (2, 0.5)
    read = batches_for(load_data(f"folder:{folders}", in_memory="no"))[2]
    assert isinstance(read, ImageBatches)
    for (x, labels), (x_read, labels_read) in zip(test.iter_epoch(), read.iter_epoch(), strict=True):
        assert torch.equal(x, x_read)
        assert torch.equal(labels, labels_read)


@pytest.mark.parametrize(
    "settings", [{"augment": "resized-crop"}, {"auto_augment": "rand-m5-n1"}, {"in_memory": "no"}], ids=str
)
def test_what_whole_batches_cannot_do_is_done_one_by_one(folders, settings):
    assert isinstance(batches_for(load_data(f"folder:{folders}"), **settings)[0], ImageBatches)


def test_images_that_grow_beyond_the_limit_for_a_network_are_prepared_one_by_one(folders, monkeypatch):
    data = load_data(f"folder:{folders}")
    monkeypatch.setattr("repmlp.data.memory.MEMORY_LIMIT", 12 * 16 * 20 * 3)
    assert isinstance(batches_for(data)[0], TensorBatches)
    monkeypatch.setattr("repmlp.data.memory.MEMORY_LIMIT", 12 * 16 * 20 * 3 - 1)
    assert isinstance(batches_for(data)[0], ImageBatches)
    assert isinstance(batches_for(data, in_memory="yes")[0], TensorBatches)


# Which images


def test_the_limit_counts_the_bytes_of_all_pixels(folders, monkeypatch, decoded):
    monkeypatch.setattr(pixels, "MEMORY_LIMIT", 12 * 16 * 20 * 3 - 1)
    assert load_data(f"folder:{folders}").image_size is None
    assert decoded == []
    assert load_data(f"folder:{folders}", in_memory="yes").image_size == (16, 20)
    monkeypatch.setattr(pixels, "MEMORY_LIMIT", 12 * 16 * 20 * 3)
    assert load_data(f"folder:{folders}").image_size == (16, 20)


def test_images_of_several_sizes_are_read_one_by_one(folders, decoded):
    picture(0, 20, 17).save(folders / "val" / "dog" / "1.png")
    assert load_data(f"folder:{folders}").image_size is None
    count = len(decoded)
    assert load_data(f"folder:{folders}").image_size is None
    assert len(decoded) == count  # it is remembered
    with pytest.raises(ValueError, match=r"cat/0\.png is 20x16, \S+val/dog/1\.png 20x17; use in_memory='auto'"):
        load_data(f"folder:{folders}", in_memory="yes")
    picture(0).save(folders / "val" / "dog" / "1.png")
    assert load_data(f"folder:{folders}").image_size == (16, 20)


def test_images_that_cannot_be_read(folders, decoded):
    bad = folders / "train" / "cat" / "1.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:300])
    with pytest.raises(ValueError, match=r"cat/1\.png is not an image that can be read"):
        load_data(f"folder:{folders}")
    with pytest.warns(UserWarning, match="1 of 12"):
        kept = load_data(f"folder:{folders}", bad_images="skip")
    with pytest.warns(UserWarning, match="1 of 12"):
        assert same_samples(kept.train, load_data(f"folder:{folders}", bad_images="skip", in_memory="no").train)
    assert len(kept.train) == 5
    bad.write_bytes(whole)
    assert len(load_data(f"folder:{folders}", bad_images="skip").train) == 6


def test_a_switch_of_another_word_is_refused(folders):
    with pytest.raises(ValueError, match="in_memory is 'maybe': use auto, yes or no"):
        load_data(f"folder:{folders}", in_memory="maybe")


def test_progress_is_reported(folders):
    seen = []
    load_data(f"folder:{folders}", on_check=lambda done, of: seen.append((done, of)))
    assert seen == [(6, 12), (12, 12)]


# The file


def test_a_second_run_decodes_nothing(folders, decoded):
    load_data(f"folder:{folders}")
    assert len(decoded) == 12
    load_data(f"folder:{folders}")
    assert len(decoded) == 12
    with safe_open(folders / PIXELS, "pt") as stored:
        assert {name: tuple(stored.get_tensor(name).shape) for name in stored.keys()} == {  # noqa: SIM118
            "0": (6, 16, 20, 3),
            "1": (6, 16, 20, 3),
        }


def rewrite(file):
    """Another image in a file of the same size and time of change is the one thing that is not seen."""
    picture(99).save(file)


def touch(file):
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1000))


@pytest.mark.parametrize(
    "change", [rewrite, touch, lambda file: file.unlink(), lambda file: file.rename(file.with_name("x.png"))]
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_it_is_written_again_when_an_image_changes(folders, change, split):
    load_data(f"folder:{folders}")
    before = (folders / PIXELS).read_bytes()
    change(folders / split / "dog" / "1.png")
    kept, read = (load_data(f"folder:{folders}", in_memory=how) for how in ("auto", "no"))
    assert (folders / PIXELS).read_bytes() != before
    assert same_samples(kept.train, read.train)
    assert same_samples(kept.test, read.test)


def test_it_is_written_again_when_a_shard_changes(shards):
    load_data(f"wds/{shards}")
    members = [
        (f"{i}.{kind}", value) for i in range(4) for kind, value in (("cls", b"0"), ("png", encoded(picture(i))))
    ]
    write_shard(shards / "val-000000.tar", members)
    assert same_samples(load_data(f"wds/{shards}").test, load_data(f"wds/{shards}", in_memory="no").test)


def test_labels_are_never_those_of_the_file(folders):
    """A class that comes first in the alphabet moves all labels, and no pixels of the others."""
    load_data(f"folder:{folders}")
    for split in ("train", "val"):
        (folders / split / "ant").mkdir()
        picture(5).save(folders / split / "ant" / "0.png")
    kept, read = (load_data(f"folder:{folders}", in_memory=how) for how in ("auto", "no"))
    assert kept.train[0][1] == 0
    assert same_samples(kept.train, read.train)


@pytest.mark.parametrize("content", [b"", b"no file of tensors", "cut"])
def test_a_damaged_file_is_written_again(folders, content, decoded):
    load_data(f"folder:{folders}")
    whole = (folders / PIXELS).read_bytes()
    (folders / PIXELS).write_bytes(whole[:-100] if content == "cut" else content)
    load_data(f"folder:{folders}")
    load_data(f"folder:{folders}")
    assert len((folders / PIXELS).read_bytes()) == len(whole)
    assert len(decoded) == 24


def test_where_it_cannot_be_written_the_users_cache_folder_has_it(folders, decoded, user_cache):
    (folders / PIXELS).mkdir()  # in the way of the file, for root too
    load_data(f"folder:{folders}")
    load_data(f"folder:{folders}")
    assert len(decoded) == 12
    assert len(list(user_cache.rglob("*.safetensors"))) == 1
    assert sorted(path.name for path in folders.iterdir()) == ["repmlp-cache.json", PIXELS, "train", "val"]


def test_where_neither_can_be_written_images_are_decoded_each_time(folders, decoded, user_cache):
    (folders / PIXELS).mkdir()
    (user_cache / "repmlp").write_text("in the way")
    assert load_data(f"folder:{folders}").image_size == (16, 20)
    assert load_data(f"folder:{folders}").image_size == (16, 20)
    assert len(decoded) == 24


def test_a_moved_folder_keeps_its_file(folders, decoded, tmp_path_factory):
    load_data(f"folder:{folders}")
    moved = tmp_path_factory.mktemp("elsewhere") / "photos"
    shutil.move(folders, moved)
    load_data(f"folder:{moved}")
    assert len(decoded) == 12


def test_a_set_that_lies_nowhere_is_kept_in_memory_without_a_file(folders, decoded, user_cache):
    from repmlp.data.folders import open_folder
    from repmlp.data.sets import _on_disk

    splits = replace(open_folder(folders), folder=None)
    assert _on_disk(splits, False, "auto", lambda done, of: None).image_size == (16, 20)
    assert not (folders / PIXELS).exists()
    assert list(user_cache.iterdir()) == []
