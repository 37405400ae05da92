"""Splits and their names, class names, and validation images drawn by class."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pictures import encoded, picture, write_shard
from repmlp.data import draw_train_val, load_data, split_train_val
from repmlp.data.splits import choose_splits, class_names_of


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60).map(np.array), st.floats(0, 0.9), st.integers(0, 2**31))
def test_every_class_is_trained_on_and_validated_in_its_share(labels, fraction, seed):
    train, val = split_train_val(labels, fraction, seed)
    assert sorted(train + val) == list(range(len(labels)))
    assert (train, val) == (sorted(train), sorted(val))
    counts = np.bincount(labels, minlength=6)
    in_train, in_val = (np.bincount(labels[part].astype(int), minlength=6) for part in (train, val))
    assert (in_train[counts > 0] >= 1).all()
    assert (np.abs(in_val - counts * fraction) < 1 + 1e-9).all()
    room = np.minimum(np.floor(counts * fraction) + 1, np.maximum(counts - 1, 0)).sum()
    assert len(val) == min(round(len(labels) * fraction), room)
    assert split_train_val(labels, fraction, seed) == (train, val)


def test_another_seed_draws_others():
    labels = np.arange(100) % 4
    assert split_train_val(labels, 0.2, 0) != split_train_val(labels, 0.2, 1)


def test_a_class_that_cannot_be_validated_is_named():
    labels = np.array([0, 0, 0, 1, 2, 2])
    with pytest.warns(UserWarning, match="too few images to validate on in 1 class, only trained on: dog"):
        train, val = split_train_val(labels, 0.5, 0, ["cat", "dog", "owl"])
    assert 3 in train
    assert set(labels[val]) == {0, 2}


def test_nothing_is_said_where_nothing_is_to_be_validated():
    assert split_train_val(np.array([0, 1]), 0.0, 0, ["cat", "dog"]) == ([0, 1], [])


def test_three_one_image_classes_are_always_trained_on():
    for seed in range(40):
        assert split_train_val(np.array([0, 1, 2]), 0.34, seed)[0] == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["train", "val"], {"train": "train", "test": "val"}),
        (["train", "test"], {"train": "train", "test": "test"}),
        (["test", "validation", "train"], {"train": "train", "val": "validation", "test": "test"}),
        (["train", "val", "validation"], {"train": "train", "test": "val"}),
        (["train", "val", "validation", "test"], {"train": "train", "val": "val", "test": "test"}),
    ],
)
def test_which_split_is_what(names, chosen):
    assert choose_splits(names, "x") == chosen


@pytest.mark.parametrize("names", [[], ["train"], ["val", "test"], ["train", "dev"]])
def test_a_split_that_is_missing(names):
    with pytest.raises(ValueError, match=r"x has the splits .*: it needs train, and val or validation or test"):
        choose_splits(names, "x")


@pytest.fixture(params=["folder", "wds", "hfds"])
def three(request, tmp_path):
    """A data set of three splits: class i has i + 1 training images; validation and test images have other pixels."""
    seeds = iter(range(100))
    counts = {"train": 3, "val": 2, "test": 1}
    if request.param == "wds":
        for split, count in counts.items():
            members = []
            for key in range(2 * count):
                members += [(f"{key}.cls", str(key % 2).encode()), (f"{key}.png", encoded(picture(next(seeds))))]
            write_shard(tmp_path / f"{split}-0.tar", members)
        return f"wds/{tmp_path}"
    if request.param == "hfds":
        pytest.importorskip("datasets", reason="pip install 'repmlp[hub]'")
    for split, count in counts.items():
        for name in ("0", "1"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                picture(next(seeds)).save(tmp_path / split / name / f"{i}.png")
    return f"{'folder:' if request.param == 'folder' else 'hfds/'}{tmp_path}"


@pytest.mark.parametrize("in_memory", ["auto", "no"])
def test_three_splits_mean_choose_on_val_and_test_on_test(three, in_memory, tmp_path_factory):
    data = load_data(three, tmp_path_factory.mktemp("root"), in_memory=in_memory)
    assert (len(data.train), len(data.val), len(data.test)) == (6, 4, 2)
    train, validation = data.train_and_val(0.1, seed=0)
    assert (len(train), validation[0], len(validation[1])) == (6, data.val, 4)
    assert data.train_and_val(0.0, seed=0)[1] is None
    with pytest.raises(ValueError, match="has a validation split, so val_draw='at-random' has nothing to draw"):
        data.train_and_val(0.1, 0, "at-random")


def test_two_splits_are_drawn_from(folders):
    data = load_data(f"folder:{folders}")
    train, validation = data.train_and_val(0.34, seed=0)
    assert data.val is None
    assert validation[0] is data.train
    assert sorted(data.train.labels[validation[1]]) == [0, 1]
    train, validation = data.train_and_val(0.34, 5, "at-random")
    assert (train, validation[1]) == draw_train_val(6, 0.34, 5)


def test_a_split_of_other_classes_is_refused_whichever_it_is(folders):
    (folders / "test" / "wolf").mkdir(parents=True)
    picture().save(folders / "test" / "wolf" / "0.png")
    with pytest.raises(ValueError, match=r"the classes of \S+train and \S+test differ: cat, dog only in .*wolf only"):
        load_data(f"folder:{folders}")


# What is ignored


def test_files_that_are_ignored_are_counted_by_reason(folders):
    for name in ("notes.txt", "a.heic", "b.heic", "no_suffix"):
        (folders / "train" / "cat" / name).write_bytes(b"x")
    (folders / "train" / "labels.csv").write_text("x")
    (folders / "val" / "dog" / "._0.png").write_bytes(b"what a Mac leaves on a shared disk")
    for folder in ("train/.ipynb_checkpoints", "train/cat/.thumbnails"):
        (folders / folder).mkdir()
        picture().save(folders / folder / "0.png")
    with pytest.warns(UserWarning, match="ignored in the data set: files outside") as warned:
        data = load_data(f"folder:{folders}")
    assert data.ignored == (
        "files outside of the class folders: 1",
        "files that end in .heic: 2",
        "files that end in .txt: 1",
        "files without a suffix: 1",
        "hidden files and folders: 3",
    )
    assert str(warned[0].message) == f"ignored in the data set: {'; '.join(data.ignored)}"
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (6, 6)


@pytest.mark.parametrize("suffix", [".jfif", ".gif", ".JPG", ".jpeg", ".webp"])
def test_image_files_of_many_suffixes_are_seen(folders, suffix):
    format = {".gif": "GIF", ".webp": "WEBP"}.get(suffix, "JPEG")
    (folders / "train" / "cat" / f"x{suffix}").write_bytes(encoded(picture(0), format))
    assert len(load_data(f"folder:{folders}").train) == 7


def test_a_second_validation_folder_is_reported(folders):
    (folders / "validation").mkdir()
    with pytest.warns(UserWarning, match=r"ignored in the data set: the folder validation, since there is val"):
        load_data(f"folder:{folders}")


def test_nothing_is_said_of_a_folder_that_holds_nothing_else(folders):
    load_data(f"folder:{folders}")
    assert load_data(f"folder:{folders}").ignored == ()  # nor of the files that this package has written


# Class names


def test_numbers_name_classes_up_to_the_highest():
    assert class_names_of("x", [np.array([2, 0]), np.array([1])]) == ("0", "1", "2")


@pytest.mark.parametrize(
    ("train", "test", "names", "message"),
    [
        ([0], [5], None, "has the labels 5, its classes are 0 to 0"),
        ([0, -1], [0], None, "has the labels -1"),
        ([0], [1], ["a"], "has the labels 1, its classes are 0 to 0"),
        (list(range(1, 9)), [0], ["a"], "has the labels 1, 2, 3, 4, 5 and 3 more"),
        ([10**18], [0], None, "has the label 1000000000000000000: labels are class indices, less than 1000000"),
        ([0], [10**18], None, "has the labels 1000000000000000000"),
    ],
)
def test_labels_that_are_not_classes(train, test, names, message):
    with pytest.raises(ValueError, match=message):
        class_names_of("x", [np.array(train), np.array(test)], names)


def test_a_subset_of_the_training_images_is_drawn_by_class_and_keeps_clear_of_validation():
    data = load_data("digits")
    everything, validation = data.train_and_val(0.1, seed=1)
    subset, same_validation = data.train_and_val(0.1, seed=1, train_images=100)
    assert len(subset) == 100
    assert set(subset) < set(everything)
    assert same_validation[1] == validation[1]
    assert set(np.bincount(data.train.labels[subset])) <= {9, 10, 11}  # ten classes of about equal size
    assert (
        data.train_and_val(0.1, seed=1, train_images=100)[0]
        == subset
        != data.train_and_val(0.1, 2, train_images=100)[0]
    )
    assert data.train_and_val(0.1, seed=1, train_images=len(everything))[0] == everything
    for wrong in (0, -1, len(everything) + 1):
        with pytest.raises(ValueError, match=f"train_images={wrong} of {len(everything)} images"):
            data.train_and_val(0.1, seed=1, train_images=wrong)
