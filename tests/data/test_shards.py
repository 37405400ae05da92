"""wds/PATH: WebDataset shards, read by index."""

import json
import pickle
import tarfile
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pictures import encoded, picture, write_shard
from repmlp.data import Transformed, eval_transform
from repmlp.data import load_data as load_any_data
from repmlp.data import shards as module
from repmlp.data.sets import CACHE
from repmlp.data.shards import INDEX, index_shard

#: Image by image, as large ones are read; test_pixels.py has those that are kept in memory.
load_data = partial(load_any_data, in_memory="no")
COLOR = {"input_size": (3, 16, 20), "mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear", "crop_pct": 1.0}
#: Two workers on one core are slow, but right.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def indexed(monkeypatch):
    """Names of the shards that are indexed from here on."""
    names, index = [], module.index_shard

    def counted(path, label_key=""):
        names.append(path.name)
        return index(path, label_key)

    monkeypatch.setattr(module, "index_shard", counted)
    return names


def write_info(folder, **fields):
    stated = {
        "train": {"filenames": [f"train-{i:06d}.tar" for i in range(3)], "shard_lengths": [4, 4, 4]},
        "validation": {"filenames": ["val-000000.tar", "val-000001.tar"], "shard_lengths": [4, 4]},
    }
    (folder / "_info.json").write_text(json.dumps({"splits": stated, **fields}))


def rewrite(path, change):
    """A shard with other members: ``change`` of the list of (name, bytes)."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    write_shard(path, change(members))


def break_image(path, i):
    """Cut the i-th image of a shard in half."""

    def change(members):
        name, content = members[2 * i + 1]
        members[2 * i + 1] = (name, content[: len(content) // 2])
        return members

    rewrite(path, change)


def test_every_image_of_every_shard_with_its_label(shards):
    data = load_data(f"wds/{shards}")
    assert (len(data.train), len(data.test), data.class_names) == (12, 8, ("0", "1", "2"))
    for split, first in ((data.train, 0), (data.test, 12)):
        for i in range(len(split)):
            image, label = split[i]
            assert np.array_equal(image, picture(first + i))
            assert label == (first + i) % 3


def test_the_statistics_are_those_of_the_training_images(shards):
    data = load_data(f"wds/{shards}")
    pixels = np.stack([picture(i) for i in range(12)]) / 255
    assert data.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-4)
    assert data.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-4)


def test_workers_of_a_shuffling_loader_give_every_image_once(shards):
    data = load_data(f"wds/{shards}")
    data.train[0]  # in this process first, which workers are forked from
    loader = DataLoader(Transformed(data.train, eval_transform(COLOR)), batch_size=5, shuffle=True, num_workers=2)
    images = torch.cat([x for x, _ in loader])
    expected = torch.stack([eval_transform(COLOR)(picture(i)) for i in range(12)])
    same = (images[:, None] == expected[None]).flatten(2).all(2)  # (given, picture)
    assert torch.equal(same.sum(0), torch.ones(12, dtype=torch.long))


def test_a_data_set_can_be_sent_to_a_worker_that_is_not_forked(shards):
    data = load_data(f"wds/{shards}")
    data.train[5]
    copy = pickle.loads(pickle.dumps(data.train))
    assert np.array_equal(copy[5][0], picture(5))


# Which shards, and which classes


@pytest.mark.parametrize(
    "held_out", ["validation-{}.tar", "photos-test-{}.tar", "val/{}.tar", "train/val-{}.tar", "Test_{}.tar"]
)
def test_shards_are_told_apart_by_a_word_in_their_names(shards, held_out):
    (shards / held_out).parent.mkdir(exist_ok=True)
    for i in range(2):
        (shards / f"val-00000{i}.tar").rename(shards / held_out.format(i))
    (shards / "train").mkdir(exist_ok=True)
    for i in range(3):
        (shards / f"train-00000{i}.tar").rename(shards / "train" / f"{i}.tar")
    write_shard(shards / "extra.tar", [("0.cls", b"0"), ("0.png", encoded(picture()))])
    with pytest.warns(UserWarning, match="1 shards without the name of a split: extra.tar"):
        data = load_data(f"wds/{shards}")
    assert (len(data.train), len(data.test)) == (12, 8)
    assert np.array_equal(data.test[4][0], picture(16))


def test_of_two_sets_to_test_on_the_one_for_validation_is_used(shards):
    (shards / "val-000001.tar").rename(shards / "test-000000.tar")
    assert len(load_data(f"wds/{shards}").test) == 4


@pytest.mark.parametrize("name", ["_info.json", "info.yaml"])
def test_an_info_file_says_which_shards_and_classes_there_are(shards, name):
    write_info(shards, class_names=["ant", "bee", "cow", "dog"])
    (shards / "_info.json").rename(shards / name)
    for i in range(3):
        (shards / f"train-00000{i}.tar").rename(shards / f"{i}")
    info = json.loads((shards / name).read_text())
    info["splits"]["train"]["filenames"] = ["2", "0"]
    info["splits"]["train"]["shard_lengths"] = [4, 4]
    (shards / name).write_text(json.dumps(info))
    data = load_data(f"wds/{shards}")
    assert (len(data.train), len(data.test)) == (8, 8)
    assert data.class_names == ("ant", "bee", "cow", "dog")
    assert np.array_equal(data.train[0][0], picture(8))


@pytest.mark.parametrize("name", ["classes.txt", "classnames.txt"])
def test_class_names_from_a_text_file(shards, name):
    (shards / name).write_text("ant\nbumble bee\ncow\n")
    assert load_data(f"wds/{shards}").class_names == ("ant", "bumble bee", "cow")


def test_labels_without_a_class_are_named(shards):
    (shards / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(ValueError, match=r"has the labels 2, its classes are 0 to 1: state the names of all classes"):
        load_data(f"wds/{shards}")
    (shards / "classes.txt").unlink()
    rewrite(shards / "val-000001.tar", lambda members: [("0019.cls", b"7"), *members[:-2], members[-1]])
    with pytest.raises(ValueError, match=r"has the labels 7, its classes are 0 to 2"):
        load_data(f"wds/{shards}")


def test_a_shard_in_a_sub_folder_and_a_link_to_one_are_inside(shards):
    (shards / "sub").mkdir()
    (shards / "val-000001.tar").rename(shards / "sub" / "x.tar")
    (shards / "val-000001.tar").symlink_to(shards / "sub" / "x.tar")
    write_info(shards)
    assert len(load_data(f"wds/{shards}").test) == 8


# What is in a shard


def test_labels_from_json(tmp_path):
    members = [("a/0.png", b"x"), ("a/0.json", b'{"label": 4}'), ("a/1.JPG", b"xyz"), ("a/1.json", b'{"label": "5"}')]
    write_shard(tmp_path / "x.tar", members)
    assert [(name, size, label) for name, _, size, label in index_shard(tmp_path / "x.tar")] == [
        ("a/0.png", 1, 4),
        ("a/1.JPG", 3, 5),
    ]


@pytest.mark.parametrize("first", ["cls", "json"])
def test_a_label_in_cls_goes_before_one_in_json(tmp_path, first):
    labels = {"cls": ("0.cls", b"1\n"), "json": ("0.json", b'{"label": 2}')}
    write_shard(tmp_path / "x.tar", [labels.pop(first), *labels.values(), ("0.png", b"x")])
    assert [row[3] for row in index_shard(tmp_path / "x.tar")] == [1]


def test_an_info_file_may_name_the_field_of_the_label(shards):
    for shard in ("train-000000.tar", "val-000000.tar"):
        metas = [(f"{i}.json", json.dumps({"label": 9, "coarse": i - 1}).encode()) for i in range(4)]
        write_shard(shards / shard, [*metas, *((f"{i}.png", encoded(picture(i))) for i in range(4)), ("0.cls", b"9")])
    split = {"shard_lengths": [4], "alt_label": "coarse"}
    splits = {part: {**split, "filenames": [f"{part}-000000.tar"]} for part in ("train", "val")}
    (shards / "info.json").write_text(json.dumps({"splits": splits}))
    data = load_data(f"wds/{shards}")
    assert [data.train[i][1] for i in range(3)] == [0, 1, 2]
    assert len(data.train) == 3  # a negative label: not in this split
    assert np.array_equal(data.train[0][0], picture(1))


def test_other_files_of_a_sample_are_not_its_image(tmp_path):
    members = [("0.seg.png", b"mask"), ("0.webp", b"webp"), ("0.jpg", b"jpg!!"), ("0.txt", b"a cat"), ("0.cls", b"0")]
    write_shard(tmp_path / "x.tar", [*members, ("._0.jpg", b"junk"), ("README", b"hello")])
    assert [row[0] for row in index_shard(tmp_path / "x.tar")] == ["0.jpg"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("0.png", b"x")], r"x\.tar lacks KEY\.cls, or KEY\.json with label for 1 keys: 0"),
        (
            [("0.png", b"x"), ("0.json", b'{"caption": "a cat"}')],
            r"lacks KEY\.cls, or KEY\.json with label for 1 keys: 0",
        ),
        ([("a/0.cls", b"0"), ("b/0.png", b"x"), ("b/0.cls", b"0")], r"lacks KEY with \.jpg.* for 1 keys: a/0"),
        ([("0.png", b"x"), ("0.cls", b"cat")], r"x\.tar/0\.cls holds b'cat': it needs the index of a class"),
        ([("0.png", b"x"), ("0.json", b"[1]")], r"x\.tar/0\.json holds b'\[1\]': it needs the index of a class"),
        ([("0.png", b"x"), ("0.json", b"{")], r"x\.tar/0\.json holds b'{': it needs the index of a class"),
        ([("0.png", b"x"), ("0.cls", b"1"), ("0.png", b"y")], r"x\.tar holds 0\.png twice"),
    ],
)
def test_images_and_labels_that_do_not_belong_together(tmp_path, members, message):
    write_shard(tmp_path / "x.tar", members)
    with pytest.raises(ValueError, match=message):
        index_shard(tmp_path / "x.tar")


def test_a_shard_that_is_cut_off_anywhere_is_found(shards):
    path = shards / "train-000001.tar"
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # where the end mark begins
    assert len(index_shard(path)) == 4
    for length in [*range(0, end, 512), 100, 700, end - 1, end, end + 100]:
        path.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=r"train-000001\.tar is cut off, or not a tar file .*: download or write it again"
        ):
            load_data(f"wds/{shards}")
    path.write_bytes(whole)
    _, offset, _, _ = index_shard(path)[2]
    path.write_bytes(whole[: offset - 512] + b"junk" * 128 + whole[offset:])  # where the header of an image was
    with pytest.raises(ValueError, match="is cut off, or not a tar file"):
        load_data(f"wds/{shards}")


# What cannot be used


def test_a_folder_without_shards(tmp_path, shards):
    with pytest.raises(FileNotFoundError, match=r"there is no folder \S+nowhere: wds/PATH needs one"):
        load_data(f"wds/{shards}/nowhere")
    for shard in shards.glob("val*"):
        shard.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"of 3 \.tar files .* val or validation or test in its name: name them val-"
    ):
        load_data(f"wds/{shards}")
    for shard in shards.glob("train*"):
        shard.rename(shard.with_name(shard.name.replace("train", "val")))
    with pytest.raises(FileNotFoundError, match=r"none has the word train in its name: name them train-000000\.tar"):
        load_data(f"wds/{shards}")


def test_an_empty_split(shards):
    for shard in shards.glob("val*"):
        write_shard(shard, [])
    with pytest.raises(ValueError, match=r"no images in the shards val-000000\.tar, val-000001\.tar of"):
        load_data(f"wds/{shards}")


def test_an_info_file_that_does_not_fit_the_shards(shards):
    write_info(shards)
    rewrite(shards / "train-000002.tar", lambda members: members[:-2])
    with pytest.raises(ValueError, match=r"train-000002\.tar holds 3 images, the info file states 4: download"):
        load_data(f"wds/{shards}")
    (shards / "train-000001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 shards of the info file are not in \S+: train-000001\.tar"):
        load_data(f"wds/{shards}")
    (shards / "_info.json").write_text(json.dumps({"splits": {"train": {}, "dev": {}}}))
    with pytest.raises(ValueError, match=r"has the splits train, dev: it needs train, and val or validation or test"):
        load_data(f"wds/{shards}")
    (shards / "_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"_info\.json cannot be read .*: correct it, or remove it"):
        load_data(f"wds/{shards}")
    (shards / "_info.json").write_text("[]")
    with pytest.raises(ValueError, match=r"_info\.json has no fields"):
        load_data(f"wds/{shards}")


# Images that cannot be read


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_stops_the_run_where_it_is_reached(shards, workers):
    break_image(shards / "val-000001.tar", 1)
    data = load_data(f"wds/{shards}")
    batches = iter(DataLoader(Transformed(data.test, eval_transform(COLOR)), batch_size=2, num_workers=workers))
    seen = []
    with pytest.raises(ValueError, match=r"val-000001\.tar/0017\.png is not an image .*bad_images='skip'"):
        seen.extend(labels.tolist() for _, labels in batches)
    assert seen == [[0, 1], [2, 0]]
    assert [labels.tolist() for _, labels in batches] == [[0, 1]]  # workers leave at once when all is taken


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_left_out_counted_and_named(shards, workers):
    break_image(shards / "train-000001.tar", 2)
    break_image(shards / "val-000001.tar", 1)
    with pytest.warns(UserWarning, match=r"2 of 20 images .* left out: \S+train-000001.tar/0006.png, \S+/0017.png$"):
        data = load_data(f"wds/{shards}", bad_images="skip")
    assert data.skipped == (f"{shards}/train-000001.tar/0006.png", f"{shards}/val-000001.tar/0017.png")
    assert len(data.train) == 11
    loader = DataLoader(Transformed(data.test, eval_transform(COLOR)), batch_size=3, num_workers=workers)
    assert [label for _, labels in loader for label in labels.tolist()] == [i % 3 for i in range(12, 20) if i != 17]


def test_a_shard_that_was_written_again_is_checked_again(shards):
    load_data(f"wds/{shards}", bad_images="skip")
    break_image(shards / "val-000001.tar", 1)
    with pytest.warns(UserWarning, match="1 of 20"):
        load_data(f"wds/{shards}", bad_images="skip")


# What is remembered


def test_a_shard_is_indexed_once(shards, indexed):
    load_data(f"wds/{shards}")
    assert sorted(indexed) == sorted(path.name for path in shards.glob("*.tar"))
    data = load_data(f"wds/{shards}")
    assert len(indexed) == 5
    assert np.array_equal(data.test[7][0], picture(19))


def test_only_a_shard_that_changed_is_indexed_again(shards, indexed):
    load_data(f"wds/{shards}")
    indexed.clear()
    rewrite(shards / "train-000001.tar", lambda members: members[2:])
    data = load_data(f"wds/{shards}")
    assert indexed == ["train-000001.tar"]
    assert len(data.train) == 11
    assert np.array_equal(data.train[4][0], picture(5))


def test_a_folder_that_cannot_be_written_is_indexed_again(shards, indexed):
    for name in (INDEX, CACHE):
        (shards / name).mkdir()  # in the way of the file, for root too
    first, second = load_data(f"wds/{shards}"), load_data(f"wds/{shards}")
    assert len(indexed) == 10
    assert second.mean == first.mean
    assert {path.suffix for path in shards.iterdir()} == {".tar", ".json"}  # nothing is left behind
