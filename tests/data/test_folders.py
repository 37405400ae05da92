"""folder:PATH: images, classes and statistics; images that cannot be read; and what is remembered of a folder."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from torch.utils.data import DataLoader

from pictures import encoded, picture
from repmlp.data import Transformed, eval_transform, split_train_val
from repmlp.data import load_data as load_any_data
from repmlp.data.sets import CACHE

#: Image by image, as large ones are read; test_pixels.py has those that are kept in memory.
load_data = partial(load_any_data, in_memory="no")
COLOR = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 1.0}

#: Two workers on one core are slow, but right.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def cut(path):
    """Leave a file without its second half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def pixels(data):
    return [np.asarray(data[i][0]) for i in range(len(data))]


@pytest.fixture
def decoded(monkeypatch):
    """Names of the images that are decoded from here on."""
    from repmlp.data import images

    names, decode = [], images.decode_image

    def counted(content, name, size=None):
        names.append(name)
        return decode(content, name, size)

    monkeypatch.setattr(images, "decode_image", counted)
    return names


def test_an_image_folder(folders):
    data = load_data(f"folder:{folders}")
    assert (len(data.train), len(data.test), data.class_names, data.in_chans) == (6, 6, ("cat", "dog"), 3)
    assert data.image_size is None
    for split, first in ((data.train, 0), (data.test, 6)):
        assert [split[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
        assert all(np.array_equal(pixels(split)[i], picture(first + i)) for i in range(6))


@pytest.mark.parametrize("name", ["validation", "test"])
def test_the_images_to_test_on_may_lie_in_a_folder_of_another_name(folders, name):
    (folders / "val").rename(folders / name)
    assert len(load_data(f"folder:{folders}").test) == 6


def test_images_of_any_mode_are_given_in_rgb(folders):
    for i, mode in enumerate(("L", "1", "P")):
        picture(0, mode=mode).save(folders / "train" / "cat" / f"{i}.png")
    data = load_data(f"folder:{folders}")
    assert {data.train[i][0].mode for i in range(6)} == {"RGB"}


# What cannot be used


def test_a_folder_that_is_not_there(folders):
    with pytest.raises(
        FileNotFoundError, match=r"no folder \S+nowhere/train: folder:PATH needs PATH/train and PATH/val"
    ):
        load_data(f"folder:{folders}/nowhere")
    shutil.rmtree(folders / "val")
    with pytest.raises(FileNotFoundError, match=r"no folder \S+val: folder:PATH needs"):
        load_data(f"folder:{folders}")
    shutil.rmtree(folders / "train")
    (folders / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no folder \S+train: folder:PATH needs"):
        load_data(f"folder:{folders}")
    (folders / "Training").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no folder \S+train: folder:PATH needs .*; PATH holds Training$"):
        load_data(f"folder:{folders}")


@pytest.mark.filterwarnings("ignore:ignored")
def test_folders_that_are_not_splits_are_named(folders):
    for name in ("valid/cat", ".git/cat", "notes"):
        (folders / name).mkdir(parents=True)
    (folders / "text").write_text("not a folder")
    only = "since only train, val, validation, test are read"
    assert load_data(f"folder:{folders}").ignored == (f"the folder valid, {only}",)
    (folders / "dev/cat").mkdir(parents=True)
    assert load_data(f"folder:{folders}").ignored == (f"the folders dev, valid, {only}",)


def test_an_empty_folder(folders):
    shutil.rmtree(folders / "train")
    (folders / "train").mkdir()
    picture().save(folders / "train" / "loose.png")
    with pytest.raises(FileNotFoundError, match=r"train has no subfolders: put the images of each class into one"):
        load_data(f"folder:{folders}")


@pytest.mark.parametrize("part", ["train", "val"])
def test_an_empty_class(folders, part):
    for path in (folders / part / "dog").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(
        FileNotFoundError, match=rf"no image in \S+{part}/dog: add some, or remove the class from all splits"
    ):
        load_data(f"folder:{folders}")


def test_classes_that_differ_are_named(folders):
    (folders / "val" / "dog").rename(folders / "val" / "wolf")
    message = r"the classes of .* differ: dog only in \S+train; wolf only in \S+val"
    with pytest.raises(ValueError, match=message):
        load_data(f"folder:{folders}")
    shutil.rmtree(folders / "val" / "wolf")
    with pytest.raises(ValueError, match=r"differ: dog only in \S+train$"):
        load_data(f"folder:{folders}")


# Images that cannot be read


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_stops_the_run_where_it_is_reached(folders, workers):
    data = load_data(f"folder:{folders}")
    cut(folders / "val" / "dog" / "0.png")
    batches = iter(DataLoader(Transformed(data.test, eval_transform(COLOR)), batch_size=2, num_workers=workers))
    seen = []
    with pytest.raises(ValueError, match=r"val/dog/0\.png is not an image that can be read .*bad_images='skip'"):
        seen.extend(labels.tolist() for _, labels in batches)
    assert seen == [[0, 0]]
    assert [labels.tolist() for _, labels in batches] == [[1, 1]]  # workers leave at once when all is taken


def test_a_broken_image_among_those_the_statistics_come_from_stops_at_once(folders):
    (folders / "train" / "cat" / "1.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"train/cat/1\.png is not an image that can be read .*bad_images='skip'"):
        load_data(f"folder:{folders}")


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_left_out_counted_and_named(folders, workers):
    cut(folders / "train" / "cat" / "1.png")
    (folders / "val" / "cat" / "2.png").write_text("not an image")
    (folders / "val" / "dog" / "0.png").write_bytes(b"")
    broken = [str(folders / name) for name in ("train/cat/1.png", "val/cat/2.png", "val/dog/0.png")]
    with pytest.warns(UserWarning, match=f"3 of 12 images cannot be read and are left out: {', '.join(broken)}"):
        data = load_data(f"folder:{folders}", bad_images="skip")
    assert list(data.skipped) == broken
    assert [np.array_equal(a, picture(b)) for a, b in zip(pixels(data.train), (0, 2, 3, 4, 5), strict=True)] == [
        True
    ] * 5
    loader = DataLoader(Transformed(data.test, eval_transform(COLOR)), batch_size=2, num_workers=workers)
    assert [label for _, labels in loader for label in labels.tolist()] == [0, 0, 1, 1]  # each of the others once
    train, held_out = split_train_val(data.train.labels, 0.4, seed=0)
    assert sorted(train + held_out) == list(range(5))


def test_the_warning_names_five_images_and_counts_the_others(folders):
    for path in (folders / "val").rglob("[01].png"):
        cut(path)
    for path in (folders / "train").rglob("[01].png"):
        cut(path)
    with pytest.warns(UserWarning, match=r"8 of 12 images .*(\S+png, ){4}\S+png and 3 more$"):
        assert len(load_data(f"folder:{folders}", bad_images="skip").skipped) == 8


def test_nothing_is_said_of_images_that_are_whole(folders):
    data = load_data(f"folder:{folders}", bad_images="skip")
    assert data.skipped == ()
    assert (len(data.train), len(data.test)) == (6, 6)


def test_a_file_that_is_gone_is_one_that_cannot_be_read(folders):
    gone = folders / "val" / "cat" / "0.png"
    gone.unlink()
    gone.symlink_to("nowhere.png")
    with pytest.warns(UserWarning, match=r"1 of 12 .*val/cat/0\.png"):
        load_data(f"folder:{folders}", bad_images="skip")
    with pytest.raises(FileNotFoundError, match=r"val/cat/0\.png"):
        load_data(f"folder:{folders}").test[0]


def test_a_split_of_which_nothing_can_be_read_is_an_error(folders):
    for path in (folders / "val").rglob("*.png"):
        cut(path)
    with pytest.raises(ValueError, match=r"none of the 6 images to test on can be read, \S+val/cat/0\.png for example"):
        load_data(f"folder:{folders}", bad_images="skip")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_every_image_that_the_check_passes_can_be_decoded(folders, format):
    """The check decodes JPEG at a part of its size: a file cut off anywhere must fail there too."""
    path = folders / "train" / "cat" / "0.png"
    whole = encoded(picture(0, 600, 520), format)
    data = load_data(f"folder:{folders}").train
    broken = 0
    for length in [*np.linspace(0, len(whole), 25).astype(int), len(whole) - 1, len(whole) - 20]:
        path.write_bytes(whole[:length])
        try:
            data[0]
        except ValueError:
            broken += 1
            assert not data.is_readable(0)
        else:
            assert data.is_readable(0)
    assert broken >= 20


def test_progress_of_the_check_is_told(folders):
    seen = []
    load_data(f"folder:{folders}", bad_images="skip", on_check=lambda done, of: seen.append((done, of)))
    assert seen == [(6, 6), (6, 6)]


# What is remembered


def test_what_the_check_found_is_remembered(folders, decoded):
    cut(folders / "val" / "dog" / "1.png")
    with pytest.warns(UserWarning, match="1 of 12"):
        first = load_data(f"folder:{folders}", bad_images="skip")
    decoded.clear()
    with pytest.warns(UserWarning, match="1 of 12"):
        second = load_data(f"folder:{folders}", bad_images="skip")
    assert decoded == [str(folders / "val" / "dog" / "1.png")]  # nothing but the broken image is looked at
    assert second.skipped == first.skipped
    assert (second.mean, second.std) == (first.mean, first.std)


def test_an_image_that_was_repaired_is_in_again(folders):
    path = folders / "val" / "dog" / "1.png"
    cut(path)
    with pytest.warns(UserWarning, match="1 of 12"):
        load_data(f"folder:{folders}", bad_images="skip")
    picture(10).save(path)
    data = load_data(f"folder:{folders}", bad_images="skip")
    assert (len(data.test), data.skipped) == (6, ())


def test_an_image_that_broke_after_the_check_says_how_to_check_again(folders):
    data = load_data(f"folder:{folders}", bad_images="skip")
    cut(folders / "val" / "dog" / "1.png")
    with pytest.raises(ValueError, match=rf"dog/1\.png is not an image .*could be read when .* or remove \S+{CACHE}"):
        data.test[4]
    (folders / CACHE).unlink()
    with pytest.warns(UserWarning, match="1 of 12"):
        load_data(f"folder:{folders}", bad_images="skip")


def test_the_statistics_are_those_of_the_training_images(folders):
    data = load_data(f"folder:{folders}")
    train = np.stack([picture(i) for i in range(6)]) / 255
    assert data.mean == pytest.approx(train.mean((0, 1, 2)), abs=1e-4)
    assert data.std == pytest.approx(train.std((0, 1, 2)), abs=1e-4)


def test_the_statistics_leave_out_what_cannot_be_read(folders):
    cut(folders / "train" / "cat" / "1.png")
    with pytest.warns(UserWarning, match="1 of 12"):
        data = load_data(f"folder:{folders}", bad_images="skip")
    train = np.stack([picture(i) for i in (0, 2, 3, 4, 5)]) / 255
    assert data.mean == pytest.approx(train.mean((0, 1, 2)), abs=1e-4)


def test_the_statistics_take_in_an_image_that_was_repaired(folders):
    whole = load_data(f"folder:{folders}").mean
    cut(folders / "train" / "cat" / "1.png")
    with pytest.warns(UserWarning, match="1 of 12"):
        assert load_data(f"folder:{folders}", bad_images="skip").mean != whole
    picture(1).save(folders / "train" / "cat" / "1.png")
    assert load_data(f"folder:{folders}", bad_images="skip").mean == whole


def test_the_statistics_are_remembered(folders, decoded):
    first = load_data(f"folder:{folders}")
    assert len(decoded) == 6
    second = load_data(f"folder:{folders}")
    assert len(decoded) == 6
    assert (second.mean, second.std) == (first.mean, first.std)


def test_statistics_of_other_images_are_not_used(folders):
    before = load_data(f"folder:{folders}")
    (folders / "train" / "cat" / "new.png").write_bytes(encoded(picture(0, mode="1")))
    assert load_data(f"folder:{folders}").mean != before.mean
    (folders / "train" / "cat" / "new.png").unlink()
    assert load_data(f"folder:{folders}").mean == before.mean


def test_images_to_test_on_do_not_change_the_statistics(folders, decoded):
    load_data(f"folder:{folders}")
    picture(99).save(folders / "val" / "cat" / "new.png")
    load_data(f"folder:{folders}")
    assert len(decoded) == 6


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 0, "entries": {}}', b'{"format": 1}', b"\xff\xfe"])
def test_a_file_that_remembers_nothing_is_replaced(folders, content):
    before = load_data(f"folder:{folders}")
    (folders / CACHE).write_bytes(content)
    assert load_data(f"folder:{folders}").mean == before.mean
    assert json.loads((folders / CACHE).read_text())["format"] == 1


def test_a_folder_that_cannot_be_written_is_computed_again(folders, decoded):
    (folders / CACHE).mkdir()  # in the way of the file, for root too
    first = load_data(f"folder:{folders}")
    assert load_data(f"folder:{folders}").mean == first.mean
    assert len(decoded) == 12
    assert sorted(path.name for path in folders.iterdir()) == [CACHE, "train", "val"]  # nothing is left behind
