"""Checkpoint files of the authors' code, good and hostile."""

import os
import pickle
from argparse import Namespace

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3

import repmlp
from repmlp import official
from repmlp.official.checkpoint import build_for, identify_checkpoint, is_deploy, read_checkpoint
from weights import randomize
from wrapped import WRAPPERS, wrapped

SMALL = {
    "repmlp_resnet50_light": {"img_size": 64, "partition_size": 2, "kernel_sizes": [1]},
    "repmlpnet_t224": {
        "img_size": 32,
        "partition_sizes": [8, 4, 2, 1],
        "kernel_sizes": [1],
        "channels": [4, 8, 16, 32],
        "share_sets": [1, 4, 16, 32],
    },
}


class RunsCode:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.fixture
def weights():
    block = randomize(repmlp.RepMLP(4, 4, 8, 4, (1, 3), 2))
    return official.state_dict(block)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_wrappers_and_prefixes_are_taken_off(weights, wrapper, prefix, tmp_path):
    content = {prefix + name: tensor for name, tensor in weights.items()}
    torch.save({wrapper: content, "epoch": 3} if wrapper else content, tmp_path / "w.pth")
    assert same(read_checkpoint(tmp_path / "w.pth"), weights)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_that_were_saved_from_a_wrapper_are_read(weights, wrapper, tmp_path):
    block = repmlp.RepMLP(4, 4, 8, 4, (1, 3), 2)
    official.load(block, weights)
    with wrapped(wrapper, block) as outer:
        torch.save(outer.state_dict(), tmp_path / "w.pth")
    assert same(read_checkpoint(tmp_path / "w.pth"), block.state_dict())


def test_a_checkpoint_of_timms_training_script_gives_its_moving_average(tmp_path):
    model, arguments = torch.nn.Linear(2, 2), Namespace(model="repmlp_cifar", lr=0.1, crop=[0.5])
    ema = ModelEmaV3(model)
    with torch.no_grad():
        model.weight.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for average, expected in ((None, model), (ema, ema.module)):
        saver = CheckpointSaver(model, optimizer, arguments, model_ema=average, checkpoint_dir=str(tmp_path))
        saver.save_checkpoint(0)
        assert same(read_checkpoint(tmp_path / "last.pth.tar"), expected.state_dict())


def test_old_pickles_and_safetensors_are_read(weights, tmp_path):
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "w.safetensors")
    assert same(read_checkpoint(tmp_path / "old.pth"), weights)
    assert same(read_checkpoint(tmp_path / "w.safetensors"), weights)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, plain):
    proof = tmp_path / "proof"
    content = {"state_dict": RunsCode(proof)}
    if plain:
        (tmp_path / "evil.pth").write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth is refused: .* could run code .*(posix|nt|os)\.mkdir") as error:
        read_checkpoint(tmp_path / "evil.pth")
    assert "safe_globals" not in str(error.value)
    assert not proof.exists()
    with (tmp_path / "evil.pth").open("rb") as file:  # the file is dangerous indeed
        if plain:
            pickle.load(file)
        else:
            torch.load(file, weights_only=False)
    assert proof.exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a long text\nUnsupported global: GLOBAL x.y was not an allowed global by default. Allow it", "GLOBAL x.y"),
        ("one line\nanother", "one line"),
        ("", "UnpicklingError"),
    ],
)
def test_a_refusal_names_the_object_or_what_pytorch_says(tmp_path, monkeypatch, text, reason):
    def load(*args, **kwargs):
        raise pickle.UnpicklingError(text)

    (tmp_path / "w.pth").touch()
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(ValueError, match=rf"reading that could run code \(.*{reason}.*\)\. Ask its owner"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize("new", [True, False])
def test_a_truncated_file(weights, tmp_path, new):
    torch.save(weights, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    data = (tmp_path / "w.pth").read_bytes()
    for length in (0, 1, 50, len(data) // 2, len(data) - 10):
        (tmp_path / "w.pth").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"w\.pth is (damaged or not a checkpoint|refused)"):
            read_checkpoint(tmp_path / "w.pth")


def test_files_that_hold_no_state_dict(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="damaged or not a checkpoint"):
        read_checkpoint(tmp_path / "text.pth")
    for content, what in (([1, 2], "list"), ({"epoch": 3}, "entries epoch"), ({}, "entries")):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=f"holds no state dict .*{what}"):
            read_checkpoint(tmp_path / "x.pth")


def test_a_state_dict_is_told_by_its_keys(weights):
    deploy = official.state_dict(repmlp.reparameterize(block := repmlp.RepMLP(4, 4, 8, 4, (1, 3), 2)))
    assert identify_checkpoint(official.state_dict(block)) == "a RepMLP block (v1) in training form"
    assert identify_checkpoint(deploy) == "a RepMLP block (v1) in deploy form"
    assert identify_checkpoint({"conv1.weight": 0}) == "not the authors' weights (its first name is conv1.weight)"
    assert (is_deploy(weights), is_deploy(deploy)) == (False, True)


@pytest.mark.parametrize("arch", SMALL)
@pytest.mark.parametrize("deploy", [False, True])
def test_a_network_comes_back_through_a_file_in_either_form(arch, deploy, tmp_path):
    model = randomize(timm.create_model(arch, num_classes=7, **SMALL[arch])).double()
    model = repmlp.reparameterize(model) if deploy else model
    torch.save(official.state_dict(model), tmp_path / "w.pth")
    weights = read_checkpoint(tmp_path / "w.pth")
    assert identify_checkpoint(weights).endswith("in deploy form" if deploy else "in training form")
    again = build_for(arch, weights, **SMALL[arch]).double().eval()
    official.load(again, weights)
    x = torch.randn(2, 3, *[SMALL[arch]["img_size"]] * 2, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        assert (again(x) - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: repmlp.RepMLP(4, 4, 8, 4, (1, 3), 2),
        lambda: timm.create_model("repmlpnet_t224", **SMALL["repmlpnet_t224"]),
    ],
)
def test_a_model_in_a_wrapper_has_the_weights_of_the_model(make, wrapper):
    model, other = randomize(make()), make()
    weights = official.state_dict(model)
    with wrapped(wrapper, model) as outer:
        found = official.state_dict(outer)
        assert [entry.official for entry in official.entries(outer)] == list(found) == list(weights)
        assert all(torch.equal(found[name], weights[name]) for name in weights)
    with wrapped(wrapper, other) as outer:
        official.load(outer, weights)
        loaded = official.state_dict(outer)
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
