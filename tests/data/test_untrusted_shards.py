"""Shards and info files that attack, or hold anything at all: read, or refused by name."""

import json
import tarfile
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pictures import encoded, picture, write_shard
from repmlp.data import load_data as load_any_data
from repmlp.data.shard_splits import read_splits
from repmlp.data.shards import index_shard

#: Image by image, as large ones are read; test_pixels.py has those that are kept in memory.
load_data = partial(load_any_data, in_memory="no")


def image_with(name, content):
    return [("0.png", encoded(picture())), (name, content)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("0.cls", b"1" + b"0" * 18, r"x\.tar/0\.cls has the label 10{18}: labels are class indices"),
        ("0.cls", b"1" + b"0" * 30, "labels are class indices"),
        ("0.cls", b"100000000", "labels are class indices"),
        ("0.cls", b"9" * 5000, r"x\.tar/0\.cls holds .*it needs the index of a class"),
        ("0.cls", b"-1", "has the label -1"),
        ("0.cls", b"1_0", r"0\.cls holds b'1_0': it needs the index of a class"),
        ("0.json", b'{"label": "1_0"}', "it needs the index of a class"),
        ("0.cls", b"", "it needs the index of a class"),
        ("0.cls", b"\xff\xfe", "it needs the index of a class"),
        ("0.json", b'{"label": Infinity}', r"x\.tar/0\.json holds .*it needs the index of a class"),
        ("0.json", b'{"label": NaN}', "it needs the index of a class"),
        ("0.json", b'{"label": 1e400}', "it needs the index of a class"),
        ("0.json", b'{"label": 1.5}', "it needs the index of a class"),
        ("0.json", b'{"label": true}', "it needs the index of a class"),
        ("0.json", b'{"label": [1]}', "it needs the index of a class"),
        ("0.json", b'{"label": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "it needs the index of a class"),
        ("0.json", b" " * (2**20 + 1), r"x\.tar/0\.json has 1048577 bytes, more than the 1048576 allowed"),
    ],
    ids=range(17),
)
def test_a_label_that_is_not_one_is_refused_by_its_member(tmp_path, name, content, message):
    write_shard(tmp_path / "x.tar", image_with(name, content))
    with pytest.raises(ValueError, match=message):
        index_shard(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("name", "content", "label"),
    [
        ("0.cls", b" 7\n", 7),
        ("0.cls", b"999999", 999999),
        ("0.json", b'{"label": 7.0}', 7),
        ("0.json", b'{"label": "7"}', 7),
    ],
)
def test_the_nearest_labels_that_are_ones(tmp_path, name, content, label):
    write_shard(tmp_path / "x.tar", image_with(name, content))
    assert index_shard(tmp_path / "x.tar")[0][3] == label


@pytest.mark.parametrize("name", ["0.png", "0.cls", "0.json"])
@pytest.mark.parametrize("sparse", [True, False])
def test_a_member_of_many_gigabytes_is_not_read(tmp_path, name, sparse):
    """A sparse member says that it has 50 GB and has none; an ordinary one of 50 GB is mostly a hole in the shard."""
    path, size = tmp_path / "x.tar", 50 * 2**30
    info = tarfile.TarInfo(name)
    if sparse:
        info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(size)}
        info.pax_headers |= {"GNU.sparse.map": f"{size},0", "GNU.sparse.name": name}
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(info)
        message = rf"x\.tar/{name} is stored as a sparse file"
    else:
        info.size = size
        path.write_bytes(info.tobuf())
        with path.open("ab") as file:
            file.truncate(512 + size + 1024)
        message = rf"x\.tar/{name} has {size} bytes, more than the"
    with pytest.raises(ValueError, match=message):
        index_shard(path)


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ('{"splits": []}', r"_info\.json has the splits \[\]: it needs a dict"),
        ('{"splits": {"train": 7}}', "has the split train 7: it needs a dict"),
        ('{"splits": {"train": {"filenames": "x.tar"}}}', "has the filenames of train x.tar: it needs a list of str"),
        ('{"splits": {"train": {"filenames": [7]}}}', "it needs a list of str"),
        ('{"splits": {"train": {"shard_lengths": ["7"]}}}', "has the shard_lengths of train .* list of int"),
        ('{"splits": {"train": {"alt_label": 7}}}', "has the alt_label of train 7: it needs a str"),
        ('{"class_names": {"cat": 0}}', "has the class_names .*: it needs a list of str"),
        ('{"class_names": [0, 1]}', "it needs a list of str"),
        ('{"splits": {"train": {"filenames": ["../x.tar"]}}}', r"has the shard \.\./x\.tar, which is outside"),
        ('{"splits": {"train": {"filenames": ["/x.tar"]}}}', r"has the shard /x\.tar, which is outside"),
        ('{"splits": {"train": {"filenames": ["C:\\\\x.tar"]}}}', "which is outside of its folder"),
        (nested(200_000), r"_info\.json cannot be read .*: correct it, or remove it"),
        ("\xff", r"_info\.json cannot be read"),
        ("7", r"_info\.json has no fields"),
    ],
    ids=range(14),
)
def test_an_info_file_that_attacks_is_refused_by_its_field(shards, info, message):
    (shards / "_info.json").write_text(info, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        load_data(f"wds/{shards}")


def test_an_info_file_that_nests_without_end_is_refused(shards):
    """YAML: 2^99 numbers in 100 lines."""
    bomb = ["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 99)), "class_names: *a98"]
    (shards / "info.yaml").write_text("\n".join(bomb))
    with pytest.raises(ValueError, match=r"has the class_names \[\[.*: it needs a list of str"):
        load_data(f"wds/{shards}")


def test_a_file_of_class_names_that_cannot_be_read(shards):
    (shards / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"classes\.txt cannot be read"):
        load_data(f"wds/{shards}")


FIELDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["splits", "class_names", "train", "val", "filenames", "shard_lengths"]), inner
        )
    ),
    max_leaves=8,
)


@given(st.binary(max_size=64) | FIELDS.map(lambda fields: json.dumps(fields).encode()))
def test_any_info_file_is_read_or_refused_by_name(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("shards")
    (folder / "info.json").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=str(folder)):
        read_splits(folder)


@given(st.binary(max_size=2048), st.integers(0, 2600), st.booleans())
def test_any_bytes_are_a_shard_or_refused_by_name(tmp_path_factory, content, at, whole):
    path = tmp_path_factory.mktemp("shards") / "x.tar"
    write_shard(path, image_with("0.cls", b"0"))
    bytes_of = path.read_bytes()
    path.write_bytes(content if whole else bytes_of[:at] + content + bytes_of[at + len(content) :])
    try:
        rows = {len(row) for row in index_shard(path)}
    except ValueError as error:
        rows = str(error)
    assert str(path) in rows if isinstance(rows, str) else rows <= {4}
