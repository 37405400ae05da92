"""Classes matched by name: the label of an image is the index that the model has for its class."""

from dataclasses import replace

import pytest

from repmlp.data import load_data, match_labels


@pytest.fixture
def data(folders):
    """Three images of cats, then three of dogs, in each split."""
    (folders / "test").mkdir()
    for name in ("cat", "dog"):
        (folders / "test" / name).mkdir()
        (folders / "val" / name / "0.png").rename(folders / "test" / name / "0.png")
    return load_data(f"folder:{folders}")


def labels_of(data):
    return [[int(split[i][1]) for i in range(len(split))] for split in (data.train, data.val, data.test)]


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_the_same_names_in_another_order_are_matched(data, folders, in_memory):
    data = load_data(f"folder:{folders}", in_memory=in_memory)
    matched = match_labels(data, ["dog", "cat"])
    assert labels_of(data) == [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1], [0, 1]]
    assert labels_of(matched) == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0], [1, 0]]
    assert matched.class_names == ("dog", "cat")
    assert matched.train.labels.tolist() == labels_of(matched)[0]


@pytest.mark.parametrize("names", [["cat", "dog"], None, [], ["ant", "bee", "cow"]])
def test_what_is_left_as_it_is(data, names):
    """The same names in the same order; unknown names; another number of classes, which a new head is for."""
    assert match_labels(data, names) is data


@pytest.mark.parametrize(
    ("names", "differ"),
    [
        (["a_dog", "cat"], "dog in the data, a_dog in the model"),
        (["0", "1"], "cat, dog in the data, 0, 1 in the model"),
        (["Cat", "Dog"], "cat, dog in the data, Cat, Dog in the model"),
        (["cat", "cat"], "dog in the data,  in the model"),
    ],
)
def test_other_names_are_refused_unless_the_index_is_to_count(data, names, differ):
    with pytest.raises(ValueError, match=rf"differ \({differ}\): rename .* or pass labels='by-index'"):
        match_labels(data, names)
    assert match_labels(data, names, "by-index") is data


def test_names_that_occur_twice_cannot_be_matched(data):
    twice = replace(data, class_names=("crane", "crane"))
    assert match_labels(twice, ["crane", "crane"]) is twice
    three = replace(data, class_names=("crane", "cat", "crane"))
    with pytest.raises(ValueError, match="some occur twice"):
        match_labels(three, ["cat", "crane", "crane"])
