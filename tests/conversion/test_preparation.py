"""What a conversion does before it changes anything, and what it leaves alone."""

import copy
import warnings

import pytest
import torch
from timm.models.byobnet import MobileOneBlock
from timm.models.levit import ConvNorm as LevitConvNorm
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

from compare import assert_close, assert_same
from repmlp import RepMLP, is_reparameterized, reparameterize, verify
from repmlp.conversion import iter_reparameterizable, needs_reparameterize
from repmlp.conversion.converters import converter, dry_run
from repmlp.conversion.preparation import copied, make_permanent
from repmlp.layers import ConvNorm, RepMLPv2
from weights import randomize


def block():
    return RepMLP(4, 4, (4, 6), (2, 3), (1,), groups=2)


def net():
    return nn.Sequential(ConvNorm(4, 4, 3), block(), MobileOneBlock(4, 4, 3), LevitConvNorm(4, 4), nn.Conv2d(4, 4, 1))


# A dry run


def test_a_dry_run_changes_nothing_and_sees_what_a_conversion_would_touch():
    model = MobileOneBlock(4, 4, 3)
    model.attn = nn.Conv2d(4, 4, 1)
    before = copy.deepcopy(model.state_dict())
    run = dry_run(model)
    assert (run.error, run.faults, run.changes) == (None, {}, True)
    assert model in run.touched
    assert model.conv_kxk[0].conv in run.gone
    assert not {model.attn, model.act} & {*run.touched}
    assert model.state_dict().keys() == before.keys()
    for name, t in model.state_dict().items():
        assert_same(t, before[name])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_dry_run_sees_what_is_written_in_place_and_what_stays():
    model = block()
    run = dry_run(model)
    written = {name for name, t in model.named_parameters() if id(t) in run.written}
    assert written == {"global_perceptron.fc1.weight", "global_perceptron.fc1.bias", "partition_perceptron.fc3.weight"}
    assert model.global_perceptron.fc2 not in run.touched
    model.reparameterize()
    assert not dry_run(model).changes


class Merging(nn.Module):
    """A block of a user whose conversion looks at values."""

    def __init__(self, limit=1e9):
        super().__init__()
        self.a, self.b, self.limit = nn.Linear(4, 4), nn.Linear(4, 4), limit

    def forward(self, x):
        return self.a(x) if self.b is None else self.a(x) + self.b(x)

    def reparameterize(self):
        if self.b is None:
            return
        if self.a.weight.abs().max() > self.limit:
            raise RuntimeError("weights are too large")
        self.a.weight.data += self.b.weight
        self.a.bias.data += self.b.bias
        self.b = None


def test_a_converter_that_looks_at_values_is_tried_on_a_real_copy():
    model, x = nn.Sequential(Merging(), nn.ReLU()), torch.randn(3, 4)
    expected = model(x)
    assert needs_reparameterize(model)
    deployed = reparameterize(model)
    assert deployed[0].b is None
    assert_close(deployed(x), expected.detach(), 1e-6)
    assert not needs_reparameterize(deployed)


def test_a_converter_that_fails_is_refused_before_another_block_is_changed():
    model = nn.Sequential(Merging(), ConvNorm(4, 4), Merging(limit=0.0))
    before, weights = [*model.modules()], copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"cannot convert 2 \(Merging\): RuntimeError\('weights are too large'\)"):
        reparameterize(model, inplace=True)
    assert [*model.modules()] == before
    for name, t in model.state_dict().items():
        assert_same(t, weights[name])
    assert torch.get_default_dtype() == torch.float32


def test_what_a_users_block_only_reads_or_shares_keeps_its_weights():
    model = nn.Sequential(Merging(), nn.Linear(4, 4), Merging())
    model[1].weight = model[0].a.weight  # shared with a layer that stays
    model[2].b.weight = model[0].b.weight
    x = torch.randn(3, 4)
    expected = model(x).detach()
    kept = model[1].weight
    assert_close(reparameterize(model, inplace=True)(x), expected, 1e-6)
    assert model[1].weight is kept
    assert model[0].a.weight is not kept


def test_the_converter_of_a_module():
    assert [converter(m) for m in (ConvNorm(2, 2), LevitConvNorm(2, 2), nn.Conv2d(2, 2, 1))] == [
        "reparameterize",
        "fuse",
        None,
    ]


# Hooks on modules that go


def test_lost_backward_and_state_dict_hooks_are_warned_of():
    model = net()
    model[3].register_full_backward_hook(lambda *_: None)
    model[2].conv_scale.register_state_dict_post_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="the conversion removes") as caught:
        reparameterize(model)
    assert {str(warning.message) for warning in caught} == {
        "the conversion removes 2.conv_scale (ConvNormAct), and with it its state dict hook",
        "the conversion removes 3 (ConvNorm), and with it its backward hook",
    }


def test_hooks_on_modules_that_stay_are_kept_with_their_handles():
    model, calls = net(), []
    handles = [m.register_forward_hook(lambda *_: calls.append(1)) for m in (model[1], model[2], model[4])]
    model[1].register_full_backward_hook(lambda *_: calls.append(2))
    prune.identity(model[2].conv_scale.conv, "weight")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reparameterize(model, inplace=True)
    x = torch.randn(2, 4, 4, 6, requires_grad=True)
    model(x).sum().backward()
    assert calls == [1, 1, 1, 2]
    for handle in handles:
        handle.remove()
    model(x)
    assert calls == [1, 1, 1, 2]


# Frozen parameters


def test_frozen_parameters_stay_frozen_and_new_ones_inherit_it():
    model = net()
    assert all(parameter.requires_grad for parameter in reparameterize(model).parameters())
    assert not any(parameter.requires_grad for parameter in reparameterize(model.requires_grad_(False)).parameters())
    model.requires_grad_(True)
    model[0].conv.requires_grad_(False)
    deployed = reparameterize(model)
    frozen = [name for name, parameter in deployed.named_parameters() if not parameter.requires_grad]
    assert frozen == ["0.conv.weight", "0.conv.bias"]


def test_a_computed_weight_is_frozen_if_all_that_it_comes_from_is():
    for frozen in (True, False):
        conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 1)).requires_grad_(not frozen)
        weight = conv.weight.detach().clone()
        make_permanent(conv)
        assert type(conv) is nn.Conv2d
        assert_same(conv.weight.detach(), weight)
        assert conv.weight.requires_grad is not frozen


def test_to_make_a_copys_weights_permanent_leaves_the_original_as_it_is():
    conv = parametrizations.spectral_norm(nn.Conv2d(2, 2, 1)).eval()
    x = torch.randn(1, 2, 3, 3)
    expected = conv(x)
    make_permanent(copied(conv))
    assert_same(conv(x), expected)  # both have the same class, whose property the weight is


# Copies


def test_a_model_with_computed_weights_can_be_copied_after_a_step():
    model = randomize(net().double())
    prune.l1_unstructured(model[0].conv, "weight", 0.5)
    prune.l1_unstructured(model[4], "weight", 0.5)
    x = torch.randn(2, 4, 4, 6, dtype=torch.float64)
    model(x).sum().backward()
    assert_same(copied(model)(x).detach(), model(x).detach())
    assert verify(model, reparameterize(model), x)


def test_a_distributed_model_is_refused_with_what_to_pass():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(net())
        with pytest.raises(
            ValueError, match=r"the model \(DistributedDataParallel\) wraps a model: .* attribute module"
        ):
            reparameterize(model)
        assert is_reparameterized(reparameterize(model.module))
    finally:
        torch.distributed.destroy_process_group()


# Where a conversion runs


def test_a_default_device_and_dtype_and_autocast_change_nothing():
    model = randomize(net())
    expected = reparameterize(model).state_dict()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), torch.autocast("cpu"):
            actual = reparameterize(model).state_dict()
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    for name, t in actual.items():
        assert_same(t, expected[name])


def test_a_model_on_the_meta_device_converts():
    with torch.device("meta"):
        model = net()
    deployed = reparameterize(model)
    assert {t.device.type for t in deployed.parameters()} == {"meta"}
    assert deployed.state_dict().keys() == reparameterize(net()).state_dict().keys()


class Largest(TorchDispatchMode):
    """The largest tensor that is made, in bytes."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in args if isinstance(t, torch.Tensor)}
        if isinstance(out, torch.Tensor) and not out.is_meta and out.untyped_storage()._cdata not in known:
            self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return out


def test_our_blocks_convert_in_place_with_little_memory():
    model = RepMLPv2(1, (48, 48), (1, 3), global_reduction=1).eval()  # FC3 is one matrix of 21 MB
    with Largest() as largest:
        reparameterize(model, inplace=True)
    assert 0 < largest.bytes < 0.11 * sum(t.nbytes for t in model.parameters())


def test_blocks_are_found_once_under_all_their_names():
    ours = block()
    model = nn.Sequential(ours, nn.Sequential(ours))
    assert [name for name, _ in iter_reparameterizable(model)] == ["0", "1.0"]
    reparameterize(model, inplace=True)
    assert model[0] is model[1][0] is ours
