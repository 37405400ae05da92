"""Whatever the metadata of an exported file is, reading it gives a model or a ValueError that names the key."""

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repmlp.deploy import ExportedModel, load_exported
from repmlp.deploy.metadata import parse_metadata

GOOD = {
    "architecture": "repmlp_cifar",
    "num_classes": 3,
    "label_names": ["a", "b", "c"],
    "input_size": [3, 8, 8],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 1],
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "input": "images",
    "output": "logits",
    "made_by": "repmlp 0.1.0",
}


def test_good_metadata_is_read():
    assert parse_metadata(json.dumps(GOOD)) == GOOD
    without_labels = {key: value for key, value in GOOD.items() if key != "label_names"}
    assert parse_metadata(json.dumps(without_labels)) == without_labels
    features = {**without_labels, "num_classes": 0, "output": ["stage1", "stage2"], "int8": {"engine": "onnxruntime"}}
    assert parse_metadata(json.dumps(features)) == features


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": [3, 8]}, r"its metadata: input_size is \[3, 8\], but must be \[channels, height, width\]"),
        ({"input_size": [3, 8, 0]}, "input_size"),
        ({"input_size": [3, 8, 8.5]}, "input_size"),
        ({"input_size": "3x8x8"}, "input_size"),
        ({"num_classes": True}, "its metadata: num_classes is True, but must be a count"),
        ({"num_classes": -1}, "num_classes"),
        ({"num_classes": 10**30}, "num_classes"),
        ({"mean": "gray"}, "its metadata: mean is 'gray', but must be a list of numbers"),
        ({"mean": [0.5]}, "mean in its metadata has 1 numbers for 3 channels"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean"),
        ({"std": [0.5, 0.5, 0]}, "std"),
        ({"crop_pct": 0}, "crop_pct"),
        ({"crop_pct": float("inf")}, "crop_pct"),
        ({"interpolation": None}, "interpolation"),
        ({"interpolation": "blurry"}, "interpolation is 'blurry', but must be the name of an interpolation"),
        ({"crop_mode": "left"}, "crop_mode is 'left', but must be one of center"),
        ({"output": []}, "output"),
        ({"label_names": ["a", "b"]}, "label_names has 2 names for 3 classes"),
        ({"label_names": ["a", "b", 3]}, "label_names"),
    ],
)
def test_a_wrong_value_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        parse_metadata(json.dumps({**GOOD, **change}))


@pytest.mark.parametrize("key", ["input_size", "num_classes", "output", "mean", "std", "interpolation", "crop_pct"])
def test_a_missing_key_is_named(key):
    with pytest.raises(ValueError, match=f"its metadata lacks {key}"):
        parse_metadata(json.dumps({k: v for k, v in GOOD.items() if k != key}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        ("[1, 2]", r"is not an object but \[1, 2\]"),
        ("null", "is not an object but None"),
        ('"' + "x" * 10_000 + '"', r"is not an object but 'x{59}\.\.\.$"),
    ],
)
def test_text_that_is_no_object(text, message):
    with pytest.raises(ValueError, match=message):
        parse_metadata(text)


def read(text):
    """The error, or the metadata."""
    try:
        return "", parse_metadata(text)
    except ValueError as error:
        return str(error), None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), VALUES, max_size=4))
def test_any_values_give_a_model_or_a_named_error(changes):
    error, metadata = read(json.dumps({**GOOD, **changes}))
    if metadata is None:
        assert any(key in error for key in (*changes, "label_names"))
        return
    model = ExportedModel(lambda x: [x], metadata, SimpleNamespace(name="onnx"))
    assert len(model.input_size) == 3
    assert repr(model)


@given(st.text())
def test_any_text_gives_metadata_or_an_error(text):
    error, metadata = read(text)
    assert metadata is not None or "its metadata" in error


def test_the_file_is_named(tmp_path):
    class Program(torch.nn.Module):
        def forward(self, x):
            return x + 1

    program = torch.export.export(Program(), (torch.zeros(2),))
    file = tmp_path / "a.pt2"
    torch.export.save(program, file, extra_files={"repmlp.json": "[]"})
    with pytest.raises(ValueError, match=r"a\.pt2 was not written by this package, or is damaged: its metadata is not"):
        load_exported(file)
    torch.export.save(program, file)
    with pytest.raises(ValueError, match=r"a\.pt2 does not say which images it takes"):
        load_exported(file)
