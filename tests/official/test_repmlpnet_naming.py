"""RepMLPNet under the authors' names: the golden logits, every key, and the authors' partly converted deploy form."""

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn

import repmlp
from compare import assert_close, assert_same
from repmlp import official
from repmlp.layers import RepMLPv2
from repmlp.models import RepMLPNet
from repmlp.official.repmlpnet_naming import unfolded
from weights import golden_state_dict, randomize, uniform

GOLDEN = Path(__file__).parents[1] / "golden"
KEYS = json.loads((GOLDEN / "RepMLPNet-T224.keys.json").read_text())
FORMS = pytest.mark.parametrize("form", ["train", "deploy"])


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module")
def golden() -> tuple[torch.Tensor, torch.Tensor, RepMLPNet]:
    """The input, the authors' logits for it, and our network with the authors' weights."""
    with safe_open(GOLDEN / "RepMLPNet-T224.safetensors", "pt") as file:
        shape, logits = json.loads(file.metadata()["input_shape"]), file.get_tensor("y")
    x = torch.from_numpy(uniform("input", 3 * 224 * 224)).reshape(shape)
    model = timm.create_model("repmlpnet_t224", dtype=torch.float64).eval()
    official.load(model, golden_state_dict(KEYS["train"]))
    return x, logits, model


@torch.no_grad()
def test_golden_logits_in_training_form(golden):
    x, logits, model = golden
    assert relative_error(model(x), logits) < 1e-9


@torch.no_grad()
def test_golden_logits_in_deploy_form(golden):
    x, logits, model = golden
    assert relative_error(repmlp.reparameterize(model)(x), logits) < 1e-9


@torch.no_grad()
def test_golden_logits_of_weights_in_the_authors_deploy_form(golden):
    x, logits, model = golden
    weights = official.state_dict(blocks_only(model))
    fast = timm.create_model("repmlpnet_t224", deploy=True, dtype=torch.float64).eval()
    official.load(fast, weights)
    assert relative_error(fast(x), logits) < 1e-9


@FORMS
def test_every_official_key_is_mapped(form):
    model = timm.create_model("repmlpnet_t224", deploy=form == "deploy", device="meta")
    assert {name: list(tensor.shape) for name, tensor in official.state_dict(model).items()} == KEYS[form]
    assert {entry.official: list(entry.shape) for entry in official.entries(model)} == KEYS[form]


@FORMS
def test_every_tensor_of_ours_is_mapped_once(form):
    model = unfolded(timm.create_model("repmlpnet_t224", deploy=form == "deploy", device="meta"))
    ours = [entry.ours for entry in official.entries(model)]
    assert sorted(ours) == sorted(model.state_dict())


def small(**kwargs) -> RepMLPNet:
    sizes = {"channels": (8, 12), "depths": (2, 1), "share_sets": (2, 3), "partition_sizes": ((8, 6), (4, 6))}
    return timm.create_model("repmlpnet_t224", **{"num_classes": 5, **sizes, **kwargs})


def blocks_only(model: RepMLPNet) -> RepMLPNet:
    """The authors' conversion: of the blocks, and of nothing else."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, RepMLPv2):
            module.reparameterize()
    return model


STATES = {"training form": lambda m: m, "blocks only": blocks_only, "deploy form": repmlp.reparameterize}


@pytest.mark.parametrize("state", STATES)
def test_there_and_back(state):
    """Bit for bit where names are all that changes; a fold more, and so a rounding, in deploy form."""
    model = STATES[state](randomize(small()))
    other = STATES[state](randomize(small(), seed=1))
    official.load(other, official.state_dict(model))
    for name, tensor in other.state_dict().items():
        if state == "deploy form" and tensor.is_floating_point():
            assert_close(tensor, model.state_dict()[name], 2e-7)
        else:
            assert_same(tensor, model.state_dict()[name])


@torch.no_grad()
def test_our_deploy_form_runs_as_the_authors_deploy_form():
    model = randomize(small(dtype=torch.float64))
    fast = repmlp.reparameterize(model)
    theirs = blocks_only(small(dtype=torch.float64)).eval()
    official.load(theirs, official.state_dict(fast))
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    assert_close(theirs(x), model(x), 1e-10)


@torch.no_grad()
def test_the_authors_deploy_form_loads_into_ours():
    model = randomize(small(dtype=torch.float64))
    fast = small(dtype=torch.float64, deploy=True).eval()
    official.load(fast, official.state_dict(blocks_only(model)))
    assert repmlp.is_reparameterized(fast)
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    assert_close(fast(x), model(x), 1e-10)


@torch.no_grad()
def test_unfolded_is_a_copy_that_computes_the_same():
    fast = repmlp.reparameterize(randomize(small(dtype=torch.float64)))
    before = copy.deepcopy(fast.state_dict())
    copied = unfolded(fast)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in copied.modules()) == 2 + 3 * (1 + 3) + 1
    x = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    assert_close(copied(x), fast(x), 1e-12)
    assert before.keys() == fast.state_dict().keys()
    for name, tensor in fast.state_dict().items():
        assert_same(tensor, before[name])


def test_nothing_to_unfold_is_no_copy():
    model = small()
    assert unfolded(model) is model
    model = blocks_only(model)
    assert unfolded(model) is model


def test_a_network_with_another_head():
    model = small(num_classes=0)
    names = official.state_dict(model)
    assert "head.weight" not in names
    assert names["head_norm.weight"].shape == (12,)


def test_weights_of_the_other_form_are_refused():
    training, fast = small(), small(deploy=True)
    with pytest.raises(ValueError, match=r"missing .*fc3_bn.* unexpected .*fc3.bias"):
        official.load(training, official.state_dict(fast))
    before = copy.deepcopy(fast.state_dict())
    with pytest.raises(ValueError, match=r"missing .*fc3.bias.* unexpected .*fc3_bn"):
        official.load(fast, official.state_dict(training))
    for name, tensor in fast.state_dict().items():
        assert_same(tensor, before[name])
