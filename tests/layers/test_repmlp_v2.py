"""The v2 block against explicit loops, and its two forms against each other."""

import copy
from itertools import product

import numpy as np
import pytest
import torch

from compare import assert_close, assert_same
from repmlp import official
from repmlp.layers import RepMLPv2
from weights import randomize

# channels, share-sets, partition, kernels, feature size, pad
CASES = {
    "one partition": (8, 4, (4, 5), (1, 3), (4, 5), False),
    "many partitions": (8, 4, (4, 5), (1, 3), (8, 15), False),
    "all share": (8, 1, (5, 3), (1, 3), (10, 6), False),
    "none share": (8, 8, (3, 4), (3,), (6, 4), False),
    "two share": (12, 6, (3, 5), (1, (3, 5)), (6, 10), False),
    "no local perceptron": (8, 2, (3, 2), (), (6, 6), False),
    "padded": (8, 4, (4, 5), (1, 3), (7, 11), True),
    "padded, smaller than a partition": (4, 2, (4, 5), (1, 3), (3, 2), True),
}
case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def build(case, dtype=torch.float64, **kwargs) -> tuple[RepMLPv2, torch.Tensor]:
    """A block with random BNs in eval mode, and an input for it."""
    channels, share_sets, partition, kernels, size, pad = case
    block = RepMLPv2(channels, partition, kernels, share_sets, pad=pad, dtype=dtype, **kwargs)
    return randomize(block), torch.randn(3, channels, *size, dtype=dtype)


def reference(x, block: RepMLPv2, training: bool = False) -> np.ndarray:
    """The block's definition, one channel of one partition at a time; channel c is in share-set c % S."""
    x = x.numpy()
    s = {name: tensor.detach().numpy() for name, tensor in block.state_dict().items()}
    (N, C, H, W), (h, w), S = x.shape, block.partition_size, block.share_sets
    rows, cols = -(-H // h), -(-W // w)
    padded = np.zeros((N, C, rows * h, cols * w))
    padded[:, :, :H, :W] = x

    def batch_norm(y, name):
        for share in range(S):
            values = y[:, share::S]  # all channels of a share-set, all partitions, all pixels
            mean, var = s[f"{name}.running_mean"][share], s[f"{name}.running_var"][share]
            if training:
                mean, var = values.mean(), values.var()
            values[...] = (values - mean) / np.sqrt(var + 1e-5) * s[f"{name}.weight"][share] + s[f"{name}.bias"][share]
        return y

    fc3 = np.zeros_like(padded)
    convs = {name: np.zeros_like(padded) for name in s if "local" in name and name.endswith("conv.weight")}
    for n, c, i, j in product(range(N), range(C), range(rows), range(cols)):
        place = (n, c, slice(i * h, (i + 1) * h), slice(j * w, (j + 1) * w))
        patch = padded[place]
        fc3[place] = (s["partition_perceptron.fc3.weight"][c % S] @ patch.reshape(h * w)).reshape(h, w)
        for name, y in convs.items():
            kernel = s[name][c % S, 0]
            kh, kw = kernel.shape
            around = np.pad(patch, ((kh // 2, kh // 2), (kw // 2, kw // 2)))
            for a, b in product(range(h), range(w)):
                y[place][a, b] = (around[a : a + kh, b : b + kw] * kernel).sum()
    y = batch_norm(fc3, "partition_perceptron.bn")
    for name, branch in convs.items():
        y = y + batch_norm(branch, name.replace(".conv.weight", ".bn"))

    gate = x.mean((2, 3))  # (N, C)
    gate = np.maximum(gate @ s["global_perceptron.fc1.weight"].T + s["global_perceptron.fc1.bias"], 0)
    gate = 1 / (1 + np.exp(-(gate @ s["global_perceptron.fc2.weight"].T + s["global_perceptron.fc2.bias"])))
    return y[:, :, :H, :W] * gate[:, :, None, None]


@case
def test_the_block_is_its_definition(case):
    block, x = build(case)
    with torch.no_grad():
        assert_close(block(x), reference(x, block), 1e-12)


@case
def test_in_training_bn_takes_the_statistics_of_a_share_set(case):
    block, x = build(case)
    expected = reference(x, block, training=True)
    with torch.no_grad():
        assert_close(block.train()(x), expected, 1e-12)


@case
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_both_forms_compute_the_same(case, dtype, tolerance):
    block, x = build(case, dtype)
    with torch.no_grad():
        expected = block(x)
        block.reparameterize()
        assert_close(block(x), expected, tolerance)


def test_deploy_form_is_three_fcs():
    block, _ = build(CASES["many partitions"])
    block.reparameterize()
    assert {name: tuple(p.shape) for name, p in block.named_parameters()} == {
        "global_perceptron.fc1.weight": (2, 8),
        "global_perceptron.fc1.bias": (2,),
        "global_perceptron.fc2.weight": (8, 2),
        "global_perceptron.fc2.bias": (8,),
        "partition_perceptron.fc3.weight": (4, 20, 20),
        "partition_perceptron.fc3.bias": (80,),
    }
    assert not list(block.buffers())


@case
def test_a_converted_block_loads_into_one_built_in_deploy_form(case):
    block, x = build(case)
    block.reparameterize()
    built, _ = build(case, deploy=True)
    built.load_state_dict(block.state_dict(), strict=True)
    with torch.no_grad():
        assert_same(built(x), block(x))


def test_converting_twice_changes_nothing():
    block, _ = build(CASES["many partitions"])
    block.reparameterize()
    before = copy.deepcopy(block.state_dict())
    block.reparameterize()
    assert before.keys() == block.state_dict().keys()
    for name, tensor in block.state_dict().items():
        assert_same(tensor, before[name])


@case
def test_equivalent_fc3_is_what_the_merge_writes(case):
    block, _ = build(case)
    weight, bias = block.equivalent_fc3()
    (weight.square().sum() + bias.square().sum()).backward()
    merged = [p for name, p in block.named_parameters() if not name.startswith("global_perceptron")]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in merged)
    block.reparameterize()
    assert_close(block.partition_perceptron.fc3.weight, weight.detach(), 1e-14)
    assert_close(block.partition_perceptron.fc3.bias, bias.detach(), 1e-14)


def test_one_block_serves_every_multiple_of_its_partition():
    block, _ = build(CASES["many partitions"])
    for size in ((4, 5), (4, 10), (12, 5)):
        x = torch.randn(2, 8, *size, dtype=torch.float64)
        with torch.no_grad():
            assert_close(block(x), reference(x, block), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    block, x = build(CASES["many partitions"], dtype)
    block.reparameterize()
    assert all(p.dtype == dtype for p in block.parameters())
    with torch.no_grad():
        assert block(x).dtype == dtype


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("trace", [torch.jit.script, torch.fx.symbolic_trace])
def test_traced_code_computes_the_same(trace, deploy):
    block, _ = build(CASES["padded"], deploy=deploy)
    traced = trace(block)
    with torch.no_grad():
        for size in ((7, 11), (4, 5), (9, 4)):  # neither the batch nor the feature size is written into the code
            x = torch.randn(2, 8, *size, dtype=torch.float64)
            assert_same(traced(x), block(x))
            assert_same(traced(x[:1]), block(x[:1]))


@pytest.mark.parametrize("deploy", [False, True])
def test_export_with_a_dynamic_batch(deploy):
    block, x = build(CASES["padded"], deploy=deploy)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(block, (x,), dynamic_shapes={"x": {0: batch}}).module()
    for rows in (x, x[:1], torch.cat([x, x])):
        assert_close(exported(rows), block(rows).detach(), 1e-14)


@pytest.mark.parametrize("deploy", [False, True])
def test_memory_format_and_meta_device(deploy):
    block, x = build(CASES["many partitions"], deploy=deploy)
    with torch.no_grad():
        assert_close(block(x.to(memory_format=torch.channels_last)), block(x), 1e-14)
    block = RepMLPv2(8, (4, 5), share_sets=4, deploy=deploy, device="meta")
    block.reparameterize()
    assert block(x.float().to("meta")).shape == x.shape
    assert all(p.is_meta for p in block.parameters())


@pytest.mark.parametrize("deploy", [False, True])
def test_official_names_of_a_block(deploy):
    block, _ = build(CASES["many partitions"], deploy=deploy)
    names = official.state_dict(block)
    assert names["gp.fc1.weight"].shape == (2, 8, 1, 1)
    assert names["fc3.weight"].shape == (80, 20, 1, 1)
    other, _ = build(CASES["many partitions"], deploy=deploy)
    official.load(other, names)
    for name, tensor in other.state_dict().items():
        assert_same(tensor, block.state_dict()[name])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"share_sets": 3}, "3 share-sets do not divide 8 channels"),
        ({"share_sets": 0}, "0 share-sets do not divide"),
        ({"kernel_sizes": (1, 5)}, "kernel 5x5 is larger than the 4x5 map"),
        ({"kernel_sizes": (2,)}, "kernel 2x2 is even"),
        ({"global_reduction": 3}, "global_reduction 3 does not divide the 8 features"),
        ({"partition_size": (0, 5)}, "partition 0x5 must be positive"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RepMLPv2(**{"channels": 8, "partition_size": (4, 5), "share_sets": 4, **kwargs})


def test_inputs_that_do_not_fit_are_refused():
    block = RepMLPv2(8, (4, 5), share_sets=4)
    with pytest.raises(ValueError, match=r"shape \[2, 4, 4, 5\], but was built for \(N, 8, H, W\)"):
        block(torch.zeros(2, 4, 4, 5))
    with pytest.raises(ValueError, match="feature size 6x5 is not a multiple of partition 4x5: pass pad=True"):
        block(torch.zeros(2, 8, 6, 5))
