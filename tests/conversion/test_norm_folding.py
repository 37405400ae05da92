"""fold_norms: what it folds, what it leaves alone, and that outputs never change."""

import copy
from contextlib import contextmanager
from types import MethodType

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, StdConv2d
from timm.layers.conv2d_same import Conv2dSame
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import repmlp
from compare import assert_close, assert_same
from repmlp.conversion.norm_folding import _pairs_by_export, _pairs_by_fx, foldable_norms, meta_copy
from weights import randomize

IMAGES = (2, 4, 6, 5)  # (N, C, H, W)
TOKENS = (2, 4, 4)  # (N, L, C), as many tokens as channels


class Net(nn.Module):
    """Modules by name, and what forward does with them."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.run(self, x)


class PickyConv(nn.Conv2d):
    """A conv that never adds its bias."""

    def forward(self, x):
        return F.conv2d(x, self.weight, None, self.stride, self.padding)


class ScaledNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def chain(**modules):
    def run(self, x):
        for name in modules:
            x = getattr(self, name)(x)
        return x

    return Net(run, **modules)


def pair(run, bias=False):
    return Net(run, conv=conv(bias=bias), bn=norm())


def conv(*args, **kwargs):
    return nn.Conv2d(*(args or (4, 4, 3)), **{"bias": False, **kwargs})


def norm(*args, **kwargs):
    return nn.BatchNorm2d(*(args or (4,)), **kwargs)


def hooked(module):
    module.register_forward_hook(lambda module, args, output: output * 1.5)
    return module


def watched(module):
    module.register_state_dict_post_hook(lambda *args: None)
    return module


def own_forward(module):
    module.forward = MethodType(lambda self, x: F.relu(nn.BatchNorm2d.forward(self, x)), module)
    return module


def pruned(module):
    prune.random_unstructured(module, "weight", amount=0.5)
    return module


def pruned_for_good(module):
    prune.remove(pruned(module), "weight")
    return module


def tied(view=False):
    one, two = conv(), conv()
    two.weight = nn.Parameter(one.weight.data[:]) if view else one.weight
    return chain(conv1=one, conv2=two, bn=norm())


def two_names():
    model = pair(lambda m, x: m.bn(m.conv(x)))
    model.alias = model.bn
    return model


def two_norms():
    return Net(lambda m, x: m.bn1(m.conv(x)) + m.bn2(m.conv(2 * x)), conv=conv(), bn1=norm(), bn2=norm())


#: A model with what must fold in it, norm by norm; each with its input.
FOLDED = {
    "conv": (lambda: chain(conv=conv(), bn=norm()), IMAGES),
    "conv with a bias": (lambda: chain(conv=conv(bias=True), bn=norm()), IMAGES),
    "strided, dilated, grouped": (lambda: chain(conv=conv(4, 6, 3, 2, 2, 2, 2), bn=norm(6)), IMAGES),
    "padding by name": (lambda: chain(conv=conv(4, 4, 3, padding="same"), bn=norm()), IMAGES),
    "reflected padding": (lambda: chain(conv=conv(4, 4, 3, padding=1, padding_mode="reflect"), bn=norm()), IMAGES),
    "timm's conv with TensorFlow's padding": (lambda: chain(conv=Conv2dSame(4, 4, 3, 2), bn=norm()), IMAGES),
    "linear": (lambda: chain(fc=nn.Linear(4, 3), bn=nn.BatchNorm1d(3)), (5, 4)),
    "1-D": (lambda: chain(conv=nn.Conv1d(4, 3, 2), bn=nn.BatchNorm1d(3)), (2, 4, 5)),
    "3-D": (lambda: chain(conv=nn.Conv3d(4, 3, 2), bn=nn.BatchNorm3d(3)), (2, 4, 3, 2, 5)),
    "with its activation": (lambda: chain(conv=conv(), bn=BatchNormAct2d(4, act_layer=nn.GELU)), IMAGES),
    "with no activation": (lambda: chain(conv=conv(), bn=BatchNormAct2d(4, apply_act=False)), IMAGES),
    "with dropout": (lambda: chain(conv=conv(), bn=BatchNormAct2d(4, drop_layer=nn.Dropout)), IMAGES),
    "no affine": (lambda: chain(conv=conv(), bn=norm(4, affine=False)), IMAGES),
    "synchronized": (lambda: chain(conv=conv(), bn=nn.SyncBatchNorm(4, eps=0.1)), IMAGES),
    "frozen": (lambda: timm.utils.model.freeze_batch_norm_2d(chain(conv=conv(), bn=norm())), IMAGES),
    "frozen, with its activation": (
        lambda: timm.utils.model.freeze_batch_norm_2d(chain(conv=conv(), bn=BatchNormAct2d(4))),
        IMAGES,
    ),
    "the norm has two names": (two_names, IMAGES),
    "called as a function": (lambda: pair(lambda m, x: m.bn(F.conv2d(x, m.conv.weight, m.conv.bias))), IMAGES),
    "another reader after the norm": (lambda: pair(lambda m, x: (y := m.bn(m.conv(x))) + y.mean()), IMAGES),
    "a pruned weight made permanent": (lambda: chain(conv=pruned_for_good(conv()), bn=norm()), IMAGES),
    "untied": (lambda: chain(conv1=conv(), conv2=conv(), bn=norm()), IMAGES),
}

#: A model in which nothing may fold: the nearest one that folds stands above.
LEFT_ALONE = {
    "another reader of the conv": (lambda: pair(lambda m, x: (y := m.conv(x)) + m.bn(y)), IMAGES),
    "the conv's output is an output": (lambda: pair(lambda m, x: (y := m.conv(x), m.bn(y))), IMAGES),
    "a view of the conv's output is read": (lambda: pair(lambda m, x: (y := m.conv(x))[:, :1] + m.bn(y)), IMAGES),
    "the conv is called twice": (lambda: pair(lambda m, x: m.bn(m.conv(x)).mean() + m.conv(x)), IMAGES),
    "the conv is called twice, with two norms": (two_norms, IMAGES),
    "the norm is called twice": (lambda: pair(lambda m, x: m.bn(m.conv(x)) + m.bn(x[..., 2:, 2:])), IMAGES),
    "called twice, and read": (lambda: pair(lambda m, x: m.bn(m.conv(x)) + m.conv(x) + m.conv.weight.mean()), IMAGES),
    "the weight is read": (lambda: pair(lambda m, x: m.bn(m.conv(x)) + m.conv.weight.mean()), IMAGES),
    "the bias is read": (lambda: pair(lambda m, x: m.bn(m.conv(x)) + m.conv.bias.mean(), bias=True), IMAGES),
    "the norm's statistics are read": (lambda: pair(lambda m, x: m.bn(m.conv(x)) + m.bn.running_mean.mean()), IMAGES),
    "tied weights": (tied, IMAGES),
    "weights that are views of one": (lambda: tied(view=True), IMAGES),
    "a weight that the layer computes": (lambda: chain(conv=StdConv2d(4, 4, 3), bn=norm()), IMAGES),
    "a parametrized weight": (lambda: chain(conv=parametrizations.weight_norm(conv()), bn=norm()), IMAGES),
    "another bias": (lambda: pair(lambda m, x: m.bn(F.conv2d(x, m.conv.weight, m.conv.bias * 2)), bias=True), IMAGES),
    "a conv that takes no bias": (lambda: chain(conv=PickyConv(4, 4, 3, bias=False), bn=norm()), IMAGES),
    "a transposed conv": (lambda: chain(conv=nn.ConvTranspose2d(4, 4, 3), bn=norm()), IMAGES),
    "a conv after the norm": (lambda: chain(bn=norm(), conv=conv()), IMAGES),
    "an activation between": (lambda: chain(conv=conv(), act=nn.ReLU(), bn=norm()), IMAGES),
    "the batch's statistics": (lambda: chain(conv=conv(), bn=norm(4, track_running_stats=False)), IMAGES),
    "a norm of another class": (lambda: chain(conv=conv(), bn=ScaledNorm(4)), IMAGES),
    "a norm with a forward of its own": (lambda: chain(conv=conv(), bn=own_forward(norm())), IMAGES),
    "a hook on the conv": (lambda: chain(conv=hooked(conv()), bn=norm()), IMAGES),
    "a hook on the norm": (lambda: chain(conv=conv(), bn=hooked(norm())), IMAGES),
    "a state-dict hook on the norm": (lambda: chain(conv=conv(), bn=watched(norm())), IMAGES),
    "channels on the other axis": (lambda: chain(fc=nn.Linear(4, 4), bn=nn.BatchNorm1d(4)), TOKENS),
    "no norm": (lambda: chain(conv=conv(), act=nn.ReLU()), IMAGES),
}


def is_norm(module):
    return "BatchNorm" in type(module).__name__


def norms(model):
    return [name for name, module in model.named_modules() if is_norm(module)]


def build(make, shape):
    with set_default_dtype(torch.float64):
        return randomize(make()), torch.randn(shape)


@contextmanager
def set_default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


def outputs(model, x):
    y = model(x)
    return y if isinstance(y, tuple | list) else [y]


@pytest.mark.parametrize("case", FOLDED)
def test_folds(case):
    model, x = build(*FOLDED[case])
    before = copy.deepcopy(model.state_dict())
    folded = repmlp.fold_norms(model, x)
    assert norms(model)
    assert not norms(folded)
    assert type(folded) is type(model)
    assert_close(folded(x), model(x).detach(), 1e-12)
    for name, tensor in model.state_dict().items():
        assert_same(tensor, before[name])


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_leaves_alone(case):
    model, x = build(*LEFT_ALONE[case])
    folded = repmlp.fold_norms(model, x)
    assert folded is not model
    assert norms(folded) == norms(model)
    assert folded.state_dict().keys() == model.state_dict().keys()
    for a, b in zip(outputs(folded, x), outputs(model, x), strict=True):
        assert_close(a, b.detach(), 1e-12)


@pytest.mark.parametrize("case", [case for case in FOLDED if FOLDED[case][1] == IMAGES])
def test_both_ways_to_read_a_graph_never_fold_more_than_one_of_them_may(case):
    model, x = build(*FOLDED[case])
    exported = dict(_pairs_by_export(meta_copy(model), (x.to("meta"),)))
    assert dict(_pairs_by_fx(meta_copy(model))).items() <= exported.items()


@pytest.mark.parametrize("case", [case for case in LEFT_ALONE if case != "a norm of another class"])
def test_the_second_way_to_read_a_graph_leaves_the_same_alone(case, monkeypatch):
    def fail(*args):
        raise RuntimeError("cannot export")

    monkeypatch.setattr("repmlp.conversion.norm_folding._pairs_by_export", fail)
    model, x = build(*LEFT_ALONE[case])
    assert not foldable_norms(model, x)


def test_a_model_that_only_fx_can_trace_is_folded(monkeypatch):
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: 1 / 0)
    model, x = build(lambda: chain(conv=conv(), bn=BatchNormAct2d(4)), IMAGES)
    folded = repmlp.fold_norms(model, x)
    assert not norms(folded)
    assert_close(folded(x), model(x).detach(), 1e-12)


def test_a_model_that_cannot_be_traced_is_an_error_and_stays_as_it_was():
    model = Net(lambda m, x: m.bn(m.conv(x)) if x.sum().item() > 0 else x, conv=conv(), bn=norm())
    with pytest.raises(ValueError, match=r"cannot read the graph of Net, so no norm was folded. torch.export: "):
        repmlp.fold_norms(model, torch.ones(IMAGES), inplace=True)
    assert norms(model)
    assert model.training


def test_a_forward_that_a_copy_would_share_is_refused():
    model = chain(conv=conv(), bn=norm())
    model.bn.forward = lambda x: x
    with pytest.raises(ValueError, match="bn"):
        repmlp.fold_norms(model, torch.ones(IMAGES))


def test_inputs_of_a_model_that_states_no_size_are_asked_for():
    with pytest.raises(ValueError, match=r"Net does not state its input size: pass inputs"):
        repmlp.fold_norms(chain(conv=conv(), bn=norm()))


def test_in_place_gives_the_same_weights_as_a_copy():
    model, x = build(lambda: chain(conv=conv(), bn=norm()), IMAGES)
    copied = repmlp.fold_norms(model, x)
    assert repmlp.fold_norms(model.train(), x, inplace=True) is model
    assert not any(module.training for module in model.modules())
    for a, b in zip(model.state_dict().values(), copied.state_dict().values(), strict=True):
        assert_same(a, b)


def test_a_second_time_changes_nothing():
    model, x = build(lambda: chain(conv=conv(), bn=BatchNormAct2d(4)), IMAGES)
    once = repmlp.fold_norms(model, x)
    twice = repmlp.fold_norms(once, x)
    for a, b in zip(twice.state_dict().values(), once.state_dict().values(), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_keep_their_dtype_and_are_rounded_once(dtype):
    model = randomize(chain(conv=conv(), bn=norm()).to(dtype))
    x = torch.randn(IMAGES, dtype=dtype)
    folded, exact = repmlp.fold_norms(model, x), repmlp.fold_norms(copy.deepcopy(model).double(), x.double())
    assert {name: tensor.dtype for name, tensor in folded.state_dict().items()} == {
        "conv.weight": dtype,
        "conv.bias": dtype,
    }
    for name, tensor in folded.state_dict().items():
        assert_same(tensor, exact.state_dict()[name].to(dtype))


def test_keyword_free_calls_with_several_inputs():
    model = Net(lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=norm())
    model.__class__ = type("Two", (Net,), {"forward": lambda self, x, scale: self.run(self, x) * scale})
    model = randomize(model.double())
    x, scale = torch.randn(IMAGES, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    folded = repmlp.fold_norms(model, (x, scale))
    assert not norms(folded)
    assert_close(folded(x, scale), model(x, scale).detach(), 1e-12)


def test_frozen_weights_stay_frozen():
    model = chain(conv=conv(), bn=norm()).requires_grad_(False)
    folded = repmlp.fold_norms(model, torch.ones(IMAGES))
    assert [p.requires_grad for p in folded.parameters()] == [False, False]
    model = chain(conv=conv(), bn=norm())
    folded = repmlp.fold_norms(model, torch.ones(IMAGES))
    assert [p.requires_grad for p in folded.parameters()] == [True, True]


def test_no_memory_is_needed_to_read_the_graph():
    model = chain(conv=conv(), bn=norm()).to("meta")
    assert foldable_norms(model, torch.empty(IMAGES, device="meta")) == {"bn": "conv"}


def test_a_fold_gone_wrong_is_found():
    model, x = build(lambda: chain(conv=conv(), bn=norm()), IMAGES)
    folded = repmlp.fold_norms(model, x)
    assert repmlp.verify(model, folded, x)
    with torch.no_grad():
        folded.conv.bias[0].mul_(-1)
    assert not repmlp.verify(model, folded, x)


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet"])
def test_networks_of_timm_keep_their_methods(name):
    model = randomize(timm.create_model(name, num_classes=5).double())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    folded = repmlp.fold_norms(model)
    assert type(folded) is type(model)
    assert not norms(folded)
    assert_close(folded(x), model(x).detach(), 1e-12)
    assert_close(folded.forward_features(x), model.forward_features(x).detach(), 1e-12)
    for ours, theirs in zip(folded.forward_intermediates(x)[1], model.forward_intermediates(x)[1], strict=True):
        assert_close(ours, theirs.detach(), 1e-12)
    folded.double().reset_classifier(7)
    assert folded.double()(x).shape == (1, 7)


def test_feature_maps_of_a_backbone():
    model = randomize(timm.create_model("test_resnet", features_only=True).double())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    folded = repmlp.fold_norms(model, x)
    assert not norms(folded)
    for ours, theirs in zip(folded(x), model(x), strict=True):
        assert_close(ours, theirs.detach(), 1e-12)


class Staged(nn.Sequential):
    """Two conv-norm-ReLUs, whose intermediate maps are the outputs of some of its modules."""

    def __init__(self, *shown):
        super().__init__(*(m for c in (4, 8) for m in (nn.Conv2d(c, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))))
        self.shown = shown

    def forward_intermediates(self, x):
        maps = []
        for i, module in enumerate(self):
            x = module(x)
            maps += [x] if i in self.shown else []
        return x, maps


@pytest.mark.parametrize(
    ("shown", "folded"),
    [((0, 5), {"4": "3"}), ((3,), {"1": "0"}), ((2, 5), {"1": "0", "4": "3"}), ((), {"1": "0", "4": "3"})],
)
@torch.no_grad()
def test_a_norm_stays_whose_layer_gives_an_intermediate_map(shown, folded):
    model, x = randomize(Staged(*shown)).double(), torch.randn(IMAGES, dtype=torch.float64)
    assert foldable_norms(model, x) == folded
    (ours, our_maps), (theirs, their_maps) = (m.forward_intermediates(x) for m in (repmlp.fold_norms(model, x), model))
    for a, b in zip([ours, *our_maps], [theirs, *their_maps], strict=True):
        assert_close(a, b, 1e-12)


@pytest.mark.parametrize("key", ["weight", "bias", "running_mean", "running_var"])
def test_a_norm_whose_tensors_forward_also_reads_stays(key):
    model = randomize(
        Net(
            lambda net, x: net.bn(net.conv(x)) * getattr(net.bn, key).mean(),
            conv=nn.Conv2d(4, 4, 1),
            bn=nn.BatchNorm2d(4),
        )
    )
    x = torch.randn(IMAGES)
    assert foldable_norms(model, x) == {}
    assert_same(repmlp.fold_norms(model, x)(x), model(x))
