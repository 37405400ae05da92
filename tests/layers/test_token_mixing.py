"""An FC over tokens with convs beside it: against loops, merged and not; and what it is before and after."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import reference
from compare import assert_close, assert_same
from repmlp.layers import GroupedLinear, TokenMixing
from repmlp.layers.token_mixing import attach_local_perceptron_, build_local_perceptron
from weights import randomize

H, W, T = 3, 4, 12
#: The FC, the maps into and out of each group of it, and whether there is a class token.
CASES = {
    "one map": (lambda: nn.Linear(T, T), 1, 1, False),
    "into two maps": (lambda: nn.Linear(T, 2 * T), 1, 2, False),
    "out of three maps": (lambda: nn.Linear(3 * T, T), 3, 1, False),
    "with a class token": (lambda: nn.Linear(T + 1, T + 1), 1, 1, True),
    "into two maps with a class token": (lambda: nn.Linear(T + 1, 2 * T + 1), 1, 2, True),
    "tokens before channels": (lambda: nn.Conv1d(T, T, 1), 1, 1, False),
    "tokens before channels, into two maps": (lambda: nn.Conv1d(T, 2 * T, 1), 1, 2, False),
    "tokens before channels, with a class token": (lambda: nn.Conv1d(T + 1, T + 1, 1), 1, 1, True),
    "an FC for each of three channels": (lambda: GroupedLinear(3 * T, 3 * T, 3), 1, 1, False),
    "an FC for each of three channels, into two maps": (lambda: GroupedLinear(3 * T, 6 * T, 3), 1, 2, False),
    "an FC for each of three channels, out of two maps": (lambda: GroupedLinear(6 * T, 3 * T, 3), 2, 1, False),
    "an FC for each of three channels, tokens first": (lambda: nn.Conv1d(3 * T, 6 * T, 1, groups=3), 1, 2, False),
}
KERNELS = (1, 3, (1, 3))


def inject(fc, class_token=False, grid=(H, W), kernel_sizes=KERNELS):
    attach_local_perceptron_(fc, build_local_perceptron(fc, grid, kernel_sizes, class_token), grid, class_token)
    return fc


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def fc(case):
    return case[0]().double()


@pytest.fixture
def layer(fc, case):
    return randomize(inject(fc, case[3]))


@pytest.fixture
def x(fc):
    if isinstance(fc, GroupedLinear):
        return torch.randn(4, fc.in_features, dtype=torch.float64)
    if isinstance(fc, nn.Conv1d):
        return torch.randn(4, fc.in_channels, 5, dtype=torch.float64)
    return torch.randn(4, 5, fc.in_features, dtype=torch.float64)


def loops(x, state, case, training=False):
    """``FC(x) + sum_K BN(conv_K(x))`` of a layer with this state dict, from its definition."""
    build, I, O, class_token = case
    fc, first = build(), int(class_token)
    groups = getattr(fc, "groups", 1)
    x = x.numpy() if x.dim() < 3 or isinstance(fc, nn.Linear) else x.numpy().swapaxes(1, 2)  # tokens last
    rows = x.reshape(-1, x.shape[-1])  # (M, first + g*I*T): a row is what one channel of one image holds
    weight = state["weight"].reshape(groups, first + O * T, first + I * T)
    y = reference.grouped_linear(rows, weight, state["bias"])
    maps = rows[:, first:].reshape(-1, groups * I, H, W)  # token t lies at row t // W, column t % W
    for key in [key for key in state if key.endswith(".conv.weight")]:
        branch = reference.conv(maps, state[key], groups)
        branch = reference.batch_norm(branch, state, key.replace(".conv.weight", ".bn"), training)
        y[:, first:] += branch.reshape(len(rows), groups * O * T)
    y = y.reshape(*x.shape[:-1], -1)
    return torch.tensor(y.swapaxes(1, 2) if isinstance(fc, nn.Conv1d) else y)


# What it computes


def test_it_is_the_fc_and_the_convs_beside_it(layer, x, case):
    assert_close(layer(x), loops(x, reference.numpy_state(layer), case), 1e-12)


def test_in_training_its_norms_take_the_statistics_of_all_channels_and_images(layer, x, case):
    state = reference.numpy_state(layer)
    assert_close(layer.train()(x), loops(x, state, case, training=True), 1e-12)
    for name, buffer in layer.named_buffers():
        if "running" in name:
            assert_close(buffer, state[name], 1e-12)


def test_merged_it_computes_the_same(layer, x, case):
    expected = loops(x, reference.numpy_state(layer), case)
    fc_alone = layer.fc_type.forward(layer, x)
    assert (fc_alone - expected).abs().max() > 0.1 * expected.abs().max()  # the convs are no trifle
    layer.reparameterize()
    assert_close(layer(x), expected, 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_both_forms_follow_the_dtype_of_the_fc(case, x, dtype, tolerance):
    layer = randomize(inject(case[0]().to(dtype), case[3]))
    before, x = layer(x.to(dtype)), x.to(dtype)
    layer.reparameterize()
    after = layer(x)
    assert {t.dtype for t in (before, after, *layer.parameters())} == {dtype}
    assert_close(after, before.detach().double(), tolerance)


@pytest.mark.parametrize("shape", [(T,), (4, T), (2, 3, 5, T)])
def test_an_fc_takes_any_number_of_leading_axes(shape):
    layer = randomize(inject(nn.Linear(T, T).double()))
    x = torch.randn(shape, dtype=torch.float64)
    expected = loops(x.reshape(-1, T), reference.numpy_state(layer), CASES["one map"]).reshape(shape)
    assert_close(layer(x), expected, 1e-12)
    layer.reparameterize()
    assert_close(layer(x), expected, 1e-12)


def test_tokens_are_in_row_major_order():
    """With a kernel that takes the pixel above, token t = y*W + x draws on t - W, and the first row on none."""
    fc = nn.Linear(T, T)
    nn.init.zeros_(fc.weight)
    inject(fc, kernel_sizes=(3,)).eval()
    branch = fc.local_perceptron.branches["3x3"]
    with torch.no_grad():
        branch.conv.weight.copy_(torch.tensor([[[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]]))
        branch.bn.weight.fill_((1 + branch.bn.eps) ** 0.5)  # fresh statistics: the norm does nothing
    above = torch.zeros(T, T)
    for t in range(W, T):
        above[t, t - W] = 1
    for form in ("training", "merged"):
        assert_close(fc(torch.eye(T)).T - fc.bias[:, None].detach(), above, 1e-6)
        if form == "training":
            fc.reparameterize()
    assert_close(fc.weight, above, 1e-6)


# What it is before and after


def test_it_starts_as_the_fc_that_it_was(fc, case, x):
    expected = fc(x)
    layer = inject(fc, case[3])
    assert_same(layer.train()(x), expected)
    assert_same(layer.eval()(x), expected)
    layer.reparameterize()
    assert_same(layer(x), expected)


def test_merged_it_is_the_plain_layer_that_it_was(fc, case):
    plain = copy.deepcopy(fc)
    weight, bias = fc.weight, fc.bias
    layer = randomize(inject(fc, case[3]))
    assert layer is fc
    assert isinstance(layer, TokenMixing)
    assert isinstance(layer, type(plain))
    assert list(layer.state_dict())[:2] == ["weight", "bias"]
    assert all(name.startswith("local_perceptron.") for name in list(layer.state_dict())[2:])
    layer.reparameterize()
    assert type(layer) is type(plain)
    assert layer.state_dict().keys() == plain.state_dict().keys()
    assert vars(layer).keys() == {*vars(plain), "deploy", "locality_merged"}
    assert list(layer.modules()) == [layer]
    assert layer.weight is weight
    assert layer.bias is bias
    assert repr(layer) == repr(plain)


@pytest.mark.parametrize(("grid", "kernel_sizes"), [((1, 6), (1, (1, 3))), ((6, 1), ((5, 1),)), ((1, 1), (1,))])
def test_tokens_may_stand_in_one_row_or_column(grid, kernel_sizes):
    tokens = grid[0] * grid[1]
    layer = randomize(inject(nn.Linear(tokens, tokens).double(), grid=grid, kernel_sizes=kernel_sizes))
    x = torch.randn(3, 4, tokens, dtype=torch.float64)
    expected = layer(x).detach()
    layer.reparameterize()
    assert_close(layer(x).detach(), expected, 1e-12)


def test_it_can_be_given_convs_again():
    layer = randomize(inject(nn.Linear(T, T).double()))
    layer.reparameterize()
    x = torch.randn(2, T, dtype=torch.float64)
    expected = layer(x)
    inject(layer)
    assert not layer.deploy
    assert_same(layer(x), expected)


def test_a_copy_is_independent(layer, x):
    expected = layer(x)
    copied = copy.deepcopy(layer)
    copied.reparameterize()
    assert_same(layer(x), expected)
    assert isinstance(layer, TokenMixing)
    assert not isinstance(copied, TokenMixing)


def test_it_keeps_the_mode_of_the_fc():
    assert inject(nn.Linear(T, T)).local_perceptron.training
    assert not any(m.training for m in inject(nn.Linear(T, T).eval()).modules())


def test_it_says_what_it_is():
    assert "12, out_features=12, bias=True, grid=3x4, class_token=False" in repr(inject(nn.Linear(T, T)))


# How it learns


def test_every_parameter_gets_a_gradient_from_the_first_step_on(fc, case, x):
    layer = inject(fc, case[3]).train()
    layer(x).square().sum().backward()
    assert [name for name, parameter in layer.named_parameters() if parameter.grad is None] == []


def test_the_convs_learn_although_they_start_behind_a_zero(fc, case, x):
    layer = inject(fc, case[3]).train()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    branches = layer.local_perceptron.branches
    kernel, target = branches["3x3"].conv.weight.detach().clone(), torch.randn_like(fc(x))
    for norms_moved, kernel_moved in ((True, False), (True, True)):  # the first gradient is that of the norm's weight
        (layer(x) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert (branches["3x3"].bn.weight != 0).all() == norms_moved
        assert (branches["3x3"].conv.weight != kernel).any() == kernel_moved


# Where it lives


def test_it_is_made_on_the_device_and_in_the_dtype_of_the_fc():
    layer = inject(nn.Linear(T, 2 * T, device="meta", dtype=torch.bfloat16))
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}
    x = torch.empty(2, 5, T, device="meta", dtype=torch.bfloat16)
    assert layer(x).shape == (2, 5, 2 * T)
    layer.reparameterize()
    assert layer(x).shape == (2, 5, 2 * T)
    assert layer.weight.device.type == "meta"


def test_under_autocast_it_gives_what_the_fc_gives():
    layer = randomize(inject(nn.Linear(T, T)))
    x = torch.randn(4, 5, T)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert_close(y, layer(x).detach(), 5e-2)


# What it refuses


@pytest.mark.parametrize(
    ("fc", "arguments", "message"),
    [
        (
            nn.ReLU(),
            {},
            r"ReLU is not an FC over tokens: name layers of type nn\.Linear, nn\.Conv1d with",
        ),
        (nn.Bilinear(T, T, T), {}, "Bilinear is not an FC over tokens"),
        (nn.modules.linear.NonDynamicallyQuantizableLinear(T, T), {}, r"subclasses may compute something else"),
        (
            nn.Conv1d(T, T, 3, padding=1),
            {},
            "a Conv1d of kernel size 3 is not an FC over tokens: use one of",
        ),
        (
            nn.Linear(T, T, bias=False),
            {},
            "it has no bias, so the original network could not hold the bias",
        ),
        (nn.Linear(T, T), {"grid": (0, 4)}, "the grid 0x4 must be positive"),
        (
            nn.Linear(T, 20),
            {},
            r"20 outputs are not a multiple of the 12 tokens of a 3x4 grid.* width of 12 or 24",
        ),
        (nn.Linear(5, T), {}, r"5 inputs are not a multiple of the 12 tokens of a 3x4 grid.* width of 12 or 24 there"),
        (
            nn.Linear(T + 1, T + 1),
            {},
            "13 inputs are not a multiple .* grid: pass class_token=True if the first one",
        ),
        (nn.Linear(T, T), {"class_token": True}, "12 inputs are not a multiple of the 12 tokens .* and a class token"),
        (nn.Linear(1, T), {"class_token": True}, "1 inputs are not a multiple of the 12 tokens"),
        (nn.Linear(T, T), {"grid": (2, 3)}, "it maps 2 maps of the 2x3 grid to 2, and one side .* is a single map"),
        (nn.Linear(T, T), {"kernel_sizes": (5,)}, "kernel 5x5 is larger than the 3x4 map .*: use a smaller"),
        (nn.Linear(T, T), {"kernel_sizes": ((5, 1),)}, "kernel 5x1 is larger than the 3x4 map"),
        (nn.Linear(T, T), {"kernel_sizes": (2,)}, "kernel 2x2 is even"),
        (nn.Linear(T, T), {"kernel_sizes": (1, 1)}, "must name one or more kernels, each of them once"),
        (nn.Linear(T, T), {"kernel_sizes": ()}, "must name one or more kernels"),
        (GroupedLinear(26, 26, 2), {"class_token": True}, "an FC of 2 groups cannot have a class token"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(T, T)), {}, "ParametrizedLinear is not an FC over tokens"),
        (prune.random_unstructured(nn.Linear(T, T), "weight", 0.5), {}, "its weight is computed from others"),
    ],
)
def test_an_fc_that_does_not_fit_is_refused_and_stays(fc, arguments, message):
    kind, keys = type(fc), fc.state_dict().keys()
    with pytest.raises(ValueError, match=message):
        inject(fc, **arguments)
    assert type(fc) is kind
    assert fc.state_dict().keys() == keys


def test_convs_are_injected_once():
    with pytest.raises(ValueError, match="it has a Local Perceptron already: reparameterize the model first, or name"):
        inject(inject(nn.Linear(T, T)))


def test_a_weight_that_is_stored_transposed_is_refused():
    class Transposed(nn.Module):
        """``x @ W + b``, with W as (inputs, outputs)."""

        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.eye(T)), nn.Parameter(torch.zeros(T))

    with pytest.raises(ValueError, match="Transposed is not an FC over tokens"):
        inject(Transposed())


@pytest.mark.parametrize("training", [False, True])
def test_the_layer_runs_in_torchscript_and_under_fx(layer, x, training):
    layer.train(training)
    expected = copy.deepcopy(layer)(x)
    for traced in (torch.jit.script(copy.deepcopy(layer)), torch.fx.symbolic_trace(copy.deepcopy(layer))):
        assert_same(traced(x), expected)
        assert_same(traced(x[:1]), copy.deepcopy(layer)(x[:1]))  # no batch size is written into it


def test_a_batch_of_no_images(layer, x):
    assert layer.eval()(x[:0]).shape == (0, *layer(x).shape[1:])


def test_a_linear_layer_takes_any_leading_axes():
    layer = randomize(inject(nn.Linear(T, T).double()))
    x = torch.randn(2, 3, 5, T, dtype=torch.float64)
    expected = layer(x)
    assert_close(layer(x[1]), expected[1], 1e-12)
    assert_close(layer(x[1, 2]), expected[1, 2], 1e-12)
    assert_close(layer(x[1, 2, 3]), expected[1, 2, 3], 1e-12)
