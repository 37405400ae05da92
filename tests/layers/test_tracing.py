"""Both forms of a block survive what PyTorch does to modules: scripting, tracing, export, copies, the meta device."""

import copy
import pickle

import pytest
import torch

from compare import assert_close, assert_same
from repmlp import RepMLP
from weights import randomize

VARIANTS = {
    "whole": {},
    "no local": {"kernel_sizes": ()},
    "no global": {"global_perceptron": False},
    "one partition": {"feature_size": (3, 4)},
    "padded": {"feature_size": (5, 10), "pad": True},
}


@pytest.fixture(params=VARIANTS)
def config(request):
    return {
        "in_channels": 4,
        "out_channels": 6,
        "feature_size": (6, 12),
        "partition_size": (3, 4),
        "kernel_sizes": (1, 3),
        "groups": 2,
        **VARIANTS[request.param],
    }


@pytest.fixture(params=["training form", "deploy form"])
def block(request, config):
    block = randomize(RepMLP(**config))
    if request.param == "deploy form":
        block.reparameterize()
    return block.eval()


@pytest.fixture
def x(block):
    return torch.randn(3, block.in_channels, *block.feature_size)


def test_torchscript(block, x):
    scripted = torch.jit.script(block)
    assert_same(scripted(x), block(x))
    assert scripted(x[:1]).shape == (1, 6, *block.feature_size)


def test_torchscript_in_training(block, x):
    expected = copy.deepcopy(block).train()(x)
    assert_close(torch.jit.script(block.train())(x).detach(), expected.detach(), 1e-6)  # convs in another memory format


def test_torchscript_checks_the_input(block):
    with pytest.raises(torch.jit.Error, match="got an input of shape"):
        torch.jit.script(block)(torch.zeros(1, 4, 3, 3))


def test_fx(block, x):
    traced = torch.fx.symbolic_trace(block)
    assert_same(traced(x), block(x))
    assert_same(traced(x[:1]), block(x[:1]))  # the batch size is not written into the graph


def test_export_with_a_dynamic_batch(block, x):
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(block, (x,), dynamic_shapes={"x": {0: batch}}).module()
    for rows in (x, x[:1], torch.cat([x, x])):
        assert_close(exported(rows), block(rows).detach(), 1e-6)


def test_meta_device(config, block, x):
    on_meta = copy.deepcopy(block).to("meta")
    y = on_meta(x.to("meta"))
    assert (y.shape, y.device.type) == ((3, 6, *block.feature_size), "meta")
    on_meta.reparameterize()
    built = RepMLP(**config, deploy=block.deploy, device="meta")
    assert {t.device.type for t in (*built.state_dict().values(), *on_meta.state_dict().values())} == {"meta"}
    assert {n: t.shape for n, t in built.state_dict().items()} == {n: t.shape for n, t in block.state_dict().items()}


def test_deepcopy_shares_nothing(block, x):
    expected = block(x)
    twin = copy.deepcopy(block)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert_same(block(x), expected)
    assert twin.deploy == block.deploy


def test_pickle(block, x):
    twin = pickle.loads(pickle.dumps(block))
    assert_same(twin(x), block(x))
    twin.reparameterize()
    assert_close(twin(x), block(x).detach(), 1e-5)


def test_repr_says_the_sizes_and_the_form(block):
    H, W = block.feature_size
    assert f"4, 6, feature={H}x{W}, partition=3x4, deploy={block.deploy}" in repr(block)
