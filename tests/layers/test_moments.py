"""A training step from moments, against the same step from branches: outputs, gradients, running statistics."""

import copy
import itertools

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize, prune

import reference
from compare import assert_close, assert_same
from repmlp import RepMLP
from repmlp.layers import add_fake_quant_hooks
from tiny import BLOCK as EXAMPLE
from weights import randomize


@st.composite
def configs(draw):
    """Arguments of any block that is allowed, with small sizes."""

    def one_of(*choices):
        return draw(st.sampled_from(choices))

    h, w, groups = one_of(1, 2, 3, 4), one_of(1, 2, 3, 5), one_of(1, 2, 3)
    kernels = [(kh, kw) for kh in range(1, h + 1, 2) for kw in range(1, w + 1, 2)]
    rows, cols = one_of((1, 1), (1, 2), (2, 1), (2, 2))
    pad = one_of(False, True)
    return {
        "in_channels": groups * one_of(1, 2),
        "out_channels": groups * one_of(1, 2),
        "feature_size": (rows * h - pad * one_of(*range(h)), cols * w - pad * one_of(*range(w))),
        "partition_size": (h, w),
        "kernel_sizes": one_of(*itertools.chain(*(itertools.combinations(kernels, n) for n in range(4)))),
        "groups": groups,
        "pad": pad,
        "global_perceptron": one_of(True, False),
    }


def block_and_input(config=EXAMPLE, N=5, dtype=torch.float64, **more):
    """A block in training mode whose BNs are far from fresh, and an input for it."""
    block = randomize(RepMLP(**{**config, **more}, dtype=dtype)).train()
    return block, torch.randn(N, block.in_channels, *block.feature_size, dtype=dtype)


def step(block, x, batch_statistics):
    """Output, gradients and buffers after one step of a copy of the block."""
    block, x = copy.deepcopy(block), x.clone().requires_grad_()
    block.batch_statistics = batch_statistics
    y = block(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    gradients = [x.grad, *(p.grad for p in block.parameters())]
    return y.detach(), torch.cat([g.flatten() for g in gradients]), block.state_dict()


def which(block, x, batch_statistics):
    """The way that a step on the partition map ``x`` goes."""
    block = copy.deepcopy(block)
    block.batch_statistics = batch_statistics
    return "moments" if block._should_use_moments(x) else "branches"


# What it computes


@given(configs())
@example(EXAMPLE)
def test_outputs_gradients_and_running_statistics_equal_the_branches(config):
    block, x = block_and_input(config)
    y, gradients, state = step(block, x, "moments")
    expected, expected_gradients, expected_state = step(block, x, "branches")
    assert_close(y, expected, 1e-10)
    assert_close(gradients, expected_gradients, 1e-10)
    assert list(state) == list(expected_state)
    for name, tensor in state.items():
        assert_close(tensor, expected_state[name], 1e-12)


@given(configs())
@example(EXAMPLE)
def test_a_step_equals_loops(config):
    block, x = block_and_input(config, N=3)
    state = reference.numpy_state(block)
    expected = reference.repmlp(x.numpy(), state, config["partition_size"], config["groups"], training=True)
    y, _, after = step(block, x, "moments")
    assert_close(y, expected, 1e-9)
    for name in (name for name in state if "running" in name):
        assert_close(after[name], state[name], 1e-11)


def test_every_parameter_has_its_own_right_gradient():
    block, x = block_and_input()
    blocks = {}
    for way in ("moments", "branches"):
        blocks[way] = copy.deepcopy(block)
        blocks[way].batch_statistics = way
        blocks[way](x).square().sum().backward()
    theirs = dict(blocks["branches"].named_parameters())
    for name, parameter in blocks["moments"].named_parameters():
        assert parameter.grad.any(), name
        assert_close(parameter.grad, theirs[name].grad, 1e-9)


def test_an_input_in_another_layout():
    for feature_size in ((6, 12), (3, 4)):  # with one partition the map is a view of the input
        block, x = block_and_input(feature_size=feature_size, global_perceptron=False)
        expected, _, _ = step(block, x, "branches")
        for same in (x.to(memory_format=torch.channels_last), x.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)):
            assert_close(step(block, same, "moments")[0], expected, 1e-12)


def test_two_steps_of_training_in_float32():
    block, x = block_and_input(dtype=torch.float32, N=16)
    ends = []
    for way in ("moments", "branches"):
        trained = copy.deepcopy(block)
        trained.batch_statistics = way
        optimizer = torch.optim.SGD(trained.parameters(), 1e-3, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            trained(x).square().mean().backward()
            optimizer.step()
        ends.append(trained)
    for a, b in zip(ends[0].state_dict().values(), ends[1].state_dict().values(), strict=True):
        assert_close(a, b, 1e-4)
    assert_close(ends[0].eval()(x), ends[1].eval()(x).detach(), 1e-4)


@pytest.mark.parametrize(("mean", "std"), [(100.0, 0.1), (0.0, 1e-6), (1e4, 1e3), (5.0, 0.0)])
def test_a_badly_scaled_input(mean, std):
    block, x = block_and_input(N=64, global_perceptron=False)
    x = (x * std + mean).float()
    expected, _, _ = step(block, x.double(), "branches")
    y, gradients, state = step(block.float(), x, "moments")
    theirs, _, _ = step(block, x, "branches")
    assert gradients.isfinite().all()
    assert all((tensor >= 0).all() for name, tensor in state.items() if "running_var" in name)
    error = (y - expected).abs().max()
    assert error <= 1e-3 * expected.abs().max() or error <= 2 * (theirs - expected).abs().max()


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_bfloat16_and_under_autocast(dtype, autocast):
    block, x = block_and_input(N=32, global_perceptron=False)
    expected, _, state = step(block, x, "branches")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, gradients, after = step(block.to(dtype), x.to(dtype), "moments")
        theirs, _, _ = step(block, x.to(dtype), "branches")
    assert y.dtype == theirs.dtype
    assert gradients.isfinite().all()
    assert_close(y, expected, 5e-2 if y.dtype == torch.bfloat16 else 1e-5)
    for name, tensor in after.items():  # under autocast too they are computed in float32
        assert_close(tensor, state[name], 2e-2 if dtype == torch.bfloat16 else 1e-5)


def saved_maps(block, x, batch_statistics):
    """How many tensors as large as the partition map a step keeps for its backward pass."""
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().nbytes() >= x.nbytes:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes twice
        return tensor

    block.batch_statistics = batch_statistics
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(x)
    return len(kept)


def test_one_map_is_kept_for_the_backward_pass_however_many_branches_there_are():
    for kernel_sizes in ((1,), (1, 3), (1, 3, (1, 3))):
        block, x = block_and_input(N=64, out_channels=4, kernel_sizes=kernel_sizes, global_perceptron=False)
        assert saved_maps(block, x, "moments") == 1
        assert saved_maps(block, x, "branches") == 3 + len(
            kernel_sizes
        )  # its input in two layouts, and what each BN gets


# Which way is taken


def test_auto_takes_moments_where_they_pay():
    block = RepMLP(8, 8, 32, 8, (1, 3, 5, 7), 2)
    few, many = torch.zeros(16, 8, 8, 8), torch.zeros(2048, 8, 8, 8)
    assert (which(block, few, "auto"), which(block, many, "auto")) == ("branches", "moments")
    assert (which(block, few, "moments"), which(block, many, "branches")) == ("moments", "branches")


def test_auto_takes_the_branches_where_the_rule_was_not_measured():
    block = RepMLP(8, 8, 32, 8, (1, 3, 5, 7), 2, device="meta")
    many = torch.zeros(2048, 8, 8, 8, device="meta")
    assert (which(block, many, "auto"), which(block, many, "moments")) == ("branches", "moments")


def test_a_block_with_no_local_perceptron_takes_moments_only_if_told_to():
    block = RepMLP(8, 8, 32, 8, (), 2)
    many = torch.zeros(4096, 8, 8, 8)
    assert (which(block, many, "auto"), which(block, many, "moments")) == ("branches", "moments")


def test_a_block_goes_by_the_dtype_that_autocast_gives_its_convs():
    block = RepMLP(16, 16, 32, 8, (1, 3, 5, 7), 2)
    x = torch.randn(2048, 16, 8, 8)
    assert which(block, x, "auto") == "moments"
    assert which(block, x.bfloat16(), "auto") == "branches"
    with torch.autocast("cpu", torch.bfloat16):
        assert which(block, x, "auto") == "branches"
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert which(block, x, "auto") == "moments"


def test_auto_is_the_default_and_no_part_of_the_state():
    block = RepMLP(**EXAMPLE)
    assert block.batch_statistics == "auto"
    assert list(block.state_dict()) == list(RepMLP(**EXAMPLE, batch_statistics="moments").state_dict())


def test_eval_mode_and_deploy_form_are_what_they_were():
    block, x = block_and_input()
    for same in (block.eval(), copy.deepcopy(block)):
        if same is not block:
            same.reparameterize()
            same.train()
        expected, _, _ = step(same, x, "branches")
        assert_same(step(same, x, "moments")[0], expected)


def test_a_way_that_does_not_exist_is_an_error():
    message = "unknown batch_statistics 'sums': use auto, branches, moments"
    with pytest.raises(ValueError, match=message):
        RepMLP(**EXAMPLE, batch_statistics="sums")
    block, x = block_and_input()
    block.batch_statistics = "sums"
    with pytest.raises(ValueError, match=message):
        block(x)


def test_one_row_is_the_error_of_batch_norm():
    block, x = block_and_input(feature_size=(3, 4), N=1, global_reduction=1, batch_statistics="moments")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        block(x)


def test_synchronized_statistics_need_the_branches():
    block, _ = block_and_input()
    x = torch.zeros(5, 4, 3, 4)
    assert which(block, x, "moments") == "moments"
    assert which(nn.SyncBatchNorm.convert_sync_batchnorm(block), x, "moments") == "branches"


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def first_branch(block):
    return block.local_perceptron.branches["1x1"]


CHANGES = {
    "a frozen norm": lambda block: first_branch(block).bn.eval(),
    "a norm with a cumulative average": lambda block: setattr(block.partition_perceptron.bn, "momentum", None),
    "a norm without running statistics": lambda block: setattr(
        first_branch(block), "bn", nn.BatchNorm2d(6, track_running_stats=False, dtype=torch.float64)
    ),
    "a norm without weights": lambda block: setattr(
        first_branch(block), "bn", nn.BatchNorm2d(6, affine=False, dtype=torch.float64)
    ),
    "a pruned conv": lambda block: prune.l1_unstructured(first_branch(block).conv, "weight", 0.5),
    "a parametrized FC3": lambda block: parametrize.register_parametrization(
        block.partition_perceptron.fc3, "weight", Half()
    ),
    "simulated int8": lambda block: add_fake_quant_hooks(block, bits=4),
    "a hook": lambda block: first_branch(block).register_forward_hook(lambda module, args, output: 2 * output),
    "a hook on gradients": lambda block: first_branch(block).register_full_backward_hook(
        lambda module, inputs, outputs: tuple(2 * gradient for gradient in inputs)
    ),
    "a hook before gradients": lambda block: first_branch(block).register_full_backward_pre_hook(
        lambda module, outputs: tuple(2 * gradient for gradient in outputs)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_only_the_branches_compute_is_left_to_them(change):
    outputs = []
    for way in ("moments", "branches"):
        torch.manual_seed(0)
        block, x = block_and_input(batch_statistics=way)
        CHANGES[change](block)
        y = block(x.requires_grad_())
        y.square().sum().backward()
        outputs.append(torch.cat([y.flatten(), x.grad.flatten()]))
    assert_same(*outputs)


# What PyTorch does to modules


def test_torchscript_and_fx_run_the_branches():
    block, x = block_and_input()
    expected, _, _ = step(block, x, "branches")
    block.batch_statistics = "moments"
    assert_close(torch.jit.script(copy.deepcopy(block))(x).detach(), expected.detach(), 1e-12)
    traced = torch.fx.symbolic_trace(copy.deepcopy(block))
    assert_same(traced(x), expected)
    in_eval_mode = torch.fx.symbolic_trace(block.eval())
    assert [node.name for node in traced.graph.nodes] == [node.name for node in in_eval_mode.graph.nodes]


@pytest.mark.parametrize("batch_statistics", ["auto", "moments"])
def test_export_of_a_training_step_for_any_batch_runs_the_branches(batch_statistics):
    block, x = block_and_input(global_perceptron=False)
    expected, _, _ = step(block, x[:3], "branches")
    block.batch_statistics = batch_statistics
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(block, (x,), dynamic_shapes={"x": {0: batch}}).module()
    assert_close(exported(x[:3]), expected, 1e-12)
    assert sum("conv2d" in str(node.target) for node in exported.graph.nodes) == 3


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by PyTorch 2.9 itself
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_takes_moments_in_one_graph(dynamic):
    block, x = block_and_input(kernel_sizes=(3,), global_perceptron=False, batch_statistics="moments")
    expected, gradients, state = step(block, x, "moments")
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    x.requires_grad_()
    y = compiled(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    assert_close(y, expected, 1e-12)
    assert_close(torch.cat([t.grad.flatten() for t in (x, *block.parameters())]), gradients, 1e-12)
    for name, tensor in block.state_dict().items():
        assert_close(tensor, state[name], 1e-12)


def test_meta_device():
    block = RepMLP(**EXAMPLE, batch_statistics="moments", device="meta")
    assert block(torch.empty(5, 4, 6, 12, device="meta")).shape == (5, 6, 6, 12)


def test_checkpointing_gives_the_same_gradients():
    block, x = block_and_input(batch_statistics="moments")
    _, gradients, _ = step(block, x, "moments")
    x.requires_grad_()
    y = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    assert_close(torch.cat([t.grad.flatten() for t in (x, *block.parameters())]), gradients, 1e-12)
