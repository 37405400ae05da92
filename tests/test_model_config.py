"""config.json: whatever it holds, it gives the network that it describes or an error that names file and key."""

import copy
import json
from contextlib import suppress

import pytest
import timm
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import repmlp
from repmlp.model_config import FORMAT
from weights import randomize

ARGS = {"img_size": 8, "channels": [4], "partition_size": 4, "kernel_sizes": [1, 3], "num_classes": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = randomize(timm.create_model("repmlp_cifar", **ARGS))
    return repmlp.save_model(model, tmp_path_factory.mktemp("models") / "m", label_names=["a", "b", "c"])


@pytest.fixture(scope="module")
def config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def logits(folder):
    return repmlp.load_model(folder)(torch.ones(1, 3, 8, 8))


def put(config, path, value):
    """A copy with the value at a dotted path; ``...`` deletes it."""
    config = copy.deepcopy(config)
    *parents, key = path.split(".")
    part = config
    for parent in parents:
        part = part[parent]
    part.pop(key, None) if value is ... else part.update({key: value})
    return config


CONTRADICTIONS = {
    "architecture": ([], ["repmlp_cifar"], 5, {}, ""),
    "num_classes": (True, 4, "3", -1, 3.0, 10**30, [3]),
    "label_names": (["a"], ["a", "b", "c", "d"], "abc", [1, 2, 3], {"0": "a", "1": "b", "2": "c"}, []),
    "model_args": (5, [], "x", {"img_size": "big"}, {"checkpoint_path": "x.pth"}, {"pretrained": True}, {"colour": 1}),
    "model_args.num_classes": (4, True, "3", -1),
    "model_args.img_size": (16, [8], [8, 8, 8], -8, 0, 10**6, "8", 1.5, {}),
    "model_args.in_chans": (1, 0, "3"),
    "model_args.channels": ([8], [10**9], [4, 4], 4, "4", [], [-4]),
    "model_args.checkpoint_path": ("weights.pth",),
    "model_args.pretrained_cfg": ({},),
    "pretrained_cfg": ([], 5, "x"),
    "pretrained_cfg.num_classes": (True, 4, "3"),
    "pretrained_cfg.input_size": ([3, 16, 16], [1, 8, 8], [3, 8], 8, "3x8x8", [3, 8, -8], [3, 8, 8.5]),
    "pretrained_cfg.mean": ("0.5", [0.5, 0.5], [], ["a", "b", "c"], 0.5, [True, True, True], [10**400] * 3),
    "pretrained_cfg.std": ([0.0, 0.5, 0.5], [-1, 1, 1], [[1], [1], [1]]),
    "pretrained_cfg.crop_pct": (0, "1", -1, [1]),
    "pretrained_cfg.crop_mode": ("middle", [], 1),
    "pretrained_cfg.interpolation": ("nicely", 3, []),
    "locality": (5, "x", [5], {}, [{"layers": "head"}], [{"no": 1}]),
    "repmlp_format": ("1", True, -1, [1]),
}


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, values in CONTRADICTIONS.items() for value in values]
)
def test_a_config_that_lies_is_refused_by_name(folder, tmp_path, config, path, value):
    bad = copy_with(folder, tmp_path, json.dumps(put(config, path, value)))
    with pytest.raises(ValueError, match=r"config\.json"):
        repmlp.load_model(bad)


def copy_with(folder, tmp_path, text):
    """The model folder with another config.json."""
    new = tmp_path / "m"
    new.mkdir(exist_ok=True)
    if not (new / "model.safetensors").exists():
        (new / "model.safetensors").hardlink_to(folder / "model.safetensors")
    (new / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return new


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("repmlp_format", ...),
        ("repmlp_format", FORMAT),
        ("num_classes", ...),
        ("label_names", ...),
        ("label_names", None),
        ("pretrained_cfg.label_names", ["x", "y", "z"]),
        ("pretrained_cfg.input_size", ...),
        ("pretrained_cfg.mean", [0.5]),
        ("pretrained_cfg.interpolation", "random"),
        ("pretrained_cfg.crop_pct", 1),
        ("model_args.img_size", [8, 8]),
        ("something_else", {"of": "somebody"}),
    ],
)
def test_a_config_that_does_not_lie_loads(folder, tmp_path, config, logits, path, value):
    model = repmlp.load_model(copy_with(folder, tmp_path, json.dumps(put(config, path, value))))
    assert torch.equal(model(torch.ones(1, 3, 8, 8)), logits)


def test_a_newer_format_is_refused_as_such(folder, tmp_path, config):
    assert config["repmlp_format"] == FORMAT
    newer = copy_with(folder, tmp_path, json.dumps(put(config, "repmlp_format", FORMAT + 1)))
    with pytest.raises(ValueError, match=f"has format {FORMAT + 1}, written by a newer version of repmlp"):
        repmlp.load_model(newer)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"architecture": ' + "[" * 200_000 + "]" * 200_000 + "}",
        '{"a": ' * 200_000,
        "1" * 10_000,
        '{"architecture": "repmlp_cifar", "pretrained_cfg": {"mean": [Infinity]}}',
        '{"architecture": "repmlp_cifar", "pretrained_cfg": {"mean": [1e999]}}',
        "\ufeff{}",
        b"\xff\xfe{}",
        "",
        "null",
    ],
    ids=range(10),
)
def test_text_that_attacks(folder, tmp_path, text):
    with pytest.raises(ValueError, match=r"config\.json"):
        repmlp.load_model(copy_with(folder, tmp_path, text))


JSON = st.recursive(
    st.none() | st.booleans() | st.sampled_from([0, 1, -1, 3, 7, 10**30]) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def places(value):
    """Every object or list in a value, with each of its keys."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


@given(st.data())
def test_any_change_of_a_config_gives_the_network_or_a_named_error(folder, tmp_path_factory, config, logits, data):
    changed = copy.deepcopy(config)
    for _ in range(data.draw(st.integers(1, 2))):
        part, key = data.draw(st.sampled_from(list(places(changed))))
        part[key] = data.draw(JSON)
    given_to = copy_with(folder, tmp_path_factory.mktemp("m"), json.dumps(changed))
    with suppress(ValueError):
        model = repmlp.load_model(given_to)
        assert torch.equal(model(torch.ones(1, 3, 8, 8)), logits)
        timm.data.create_transform(**timm.data.resolve_data_config(model=model))  # it can be used


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"\xef\xbb\xbf{}")
def test_any_bytes_give_a_named_error(folder, tmp_path_factory, text):
    with pytest.raises(ValueError, match=r"config\.json"):
        repmlp.load_model(copy_with(folder, tmp_path_factory.mktemp("m"), text))
