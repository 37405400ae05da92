"""Ordinary situations in which a conversion could go wrong: each is exactly right, or refused with nothing changed."""

import copy
import functools
import types
import warnings

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, StdConv2d
from timm.models.byobnet import MobileOneBlock
from timm.models.levit import ConvNorm as LevitConvNorm
from timm.utils.model import freeze_batch_norm_2d
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import repmlp
from compare import assert_close, assert_same
from repmlp import RepMLP, reparameterize
from repmlp.layers import ConvNorm, GlobalPerceptron, GroupedLinear, add_fake_quant_hooks
from repmlp.layers.sync_norm import convert_sync_batchnorm
from repmlp.models.repmlpnet import FFN
from weights import randomize

RIGHT, REFUSED = {}, {}


def right(function):
    """A model that converts; what the function returns computes the same in both forms."""
    RIGHT[function.__name__] = function
    return function


def refused(message):
    """A model that is refused with a message that names the module."""

    def register(function):
        REFUSED[function.__name__] = function, message
        return function

    return register


def block(**kwargs):
    return RepMLP(4, 4, (4, 6), (2, 3), ((1, 1), (1, 3)), groups=2, **kwargs)


def net():
    """Our blocks, one of timm's that changes itself and one that is replaced, and a layer that stays."""
    return nn.Sequential(ConvNorm(4, 4, 3), block(), MobileOneBlock(4, 4, 3), LevitConvNorm(4, 4), nn.Conv2d(4, 4, 1))


def changed(change):
    """The network after a change: of a layer in place, or of what is returned instead of the network."""
    model = net()
    return change(model) or model


def branch(model, name="1x3"):
    return model[1].local_perceptron.branches[name]


# Batch norms


@right
def norms_with_another_eps_and_momentum():
    model = net()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eps, m.momentum = 0.3, None
    return model


@right
def norms_without_affine():
    model = net()
    model[0].bn = nn.BatchNorm2d(4, affine=False)
    model[1].partition_perceptron.bn = nn.BatchNorm1d(24, affine=False)
    model[1].global_perceptron.bn = nn.BatchNorm2d(4, affine=False)
    branch(model).bn = nn.BatchNorm2d(4, affine=False)
    return model


@right
def synchronized_norms():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(ConvNorm(4, 4), block()))
    assert type(model[0].bn) is nn.SyncBatchNorm
    return model


@right
def norms_synchronized_on_a_cpu():
    model = net()
    for module in (model[0], branch(model)):
        convert_sync_batchnorm(module, processes=2, device=torch.device("cpu"))
    return model


@right
def norms_that_timm_froze():
    model = nn.Sequential(ConvNorm(4, 4), block(), MobileOneBlock(4, 6), LevitConvNorm(6, 4))
    return freeze_batch_norm_2d(randomize(model.double()))


@right
def a_norm_subclass_without_a_forward_of_its_own():
    class Named(nn.BatchNorm2d):
        name = "mine"

    model = net()
    model[0].bn, branch(model).bn, model[3].bn = Named(4), Named(4), Named(4)
    return model


@refused(r"cannot convert 0\.bn \(Absolute\): it is a Absolute, which is not known to compute what its parameters say")
def a_norm_subclass_with_a_forward_of_its_own():
    class Absolute(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).abs()

    model = net()
    model[0].bn = Absolute(4)
    return model


@refused(r"cannot convert 1\.local_perceptron\.branches\.1x3\.bn \(GroupNorm\)")
def group_norm():
    model = net()
    branch(model).bn = nn.GroupNorm(2, 4)
    return model


@refused(r"cannot convert 3\.bn \(GroupNorm\)")
def group_norm_in_a_block_of_timm():
    model = net()
    model[3].bn = nn.GroupNorm(2, 4)
    return model


@refused(r"cannot convert 0\.bn \(InstanceNorm2d\)")
def instance_norm_with_running_statistics():
    model = net()
    model[0].bn = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    return model


@refused(r"cannot convert 0 \(ConvNorm\): .*keeps no running statistics")
def a_norm_without_running_statistics():
    model = net()
    model[0].bn = nn.BatchNorm2d(4, track_running_stats=False)
    return model


@right
def a_norm_of_timm_without_activation():
    model = net()
    model[0].bn = BatchNormAct2d(4, apply_act=False)
    return model


@refused(r"cannot convert 0\.bn \(BatchNormAct2d\): it has an activation")
def a_norm_with_an_activation():
    model = net()
    model[0].bn = BatchNormAct2d(4)
    return model


@refused(r"cannot convert 2\.identity \(BatchNormAct2d\): it has an activation")
def a_norm_with_an_activation_in_a_block_of_timm():
    model = net()
    model[2].identity = BatchNormAct2d(4)
    return model


# Layers with other attributes, and other layers


@right
def a_conv_before_a_norm_with_any_attributes():
    model = net()
    model[0].conv = nn.Conv2d(4, 4, 3, padding=2, dilation=2, padding_mode="circular", groups=2, bias=True)
    return model


@right
def a_conv_with_another_stride():
    model = nn.Sequential(ConvNorm(4, 4), nn.Identity())
    model[0].conv.stride = (2, 1)
    return model


@refused(r"cannot convert 1 \(RepMLP\): .*branch 1x3 has padding_mode='circular'")
def a_branch_that_pads_around():
    model = net()
    branch(model).conv = nn.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=2, padding_mode="circular", bias=False)
    return model


@refused(r"cannot convert 1 \(RepMLP\): .*branch 1x3 has padding=\(0, 2\)")
def a_branch_with_dilation():
    model = net()
    branch(model).conv.padding, branch(model).conv.dilation = (0, 2), (1, 2)
    return model


@refused(r"cannot convert 2\.conv_kxk\.0\.conv \(Conv2d\): it pads with 'circular'")
def a_conv_of_timm_that_pads_around():
    model = net()
    model[2].conv_kxk[0].conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", bias=False)
    return model


@refused(r"cannot convert 3\.linear \(Conv2d\): it pads with 'reflect'")
def a_conv_of_timm_that_reflects():
    model = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU(), LevitConvNorm(4, 4, 3, padding=1))
    model[3].linear = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False)
    return model


@refused(r"cannot convert 0 \(FFN\): .*conv of fc1 has padding=\(1, 1\)")
def padding_after_the_norm_of_an_ffn():
    model = nn.Sequential(FFN(4))
    model[0].fc1.conv.padding = (1, 1)
    return model


@right
def a_stride_in_an_ffn():
    model = nn.Sequential(FFN(4))
    model[0].fc1.conv.stride = (2, 1)
    return model


@refused(r"cannot convert 0\.conv \(StdConv2d\)")
def a_conv_that_computes_its_weight():
    model = net()
    model[0].conv = StdConv2d(4, 4, 3, padding=1)
    return model


@refused(r"cannot convert 2\.conv_kxk\.0\.conv \(StdConv2d\)")
def a_conv_of_timm_that_computes_its_weight():
    model = net()
    model[2].conv_kxk[0].conv = StdConv2d(4, 4, 3, padding=1)
    return model


@refused(r"cannot convert 1\.global_perceptron \(Doubled\)")
def a_part_of_another_class():
    class Doubled(GlobalPerceptron):
        def forward(self, x):
            return 2 * super().forward(x)

    model = net()
    model[1].global_perceptron = Doubled(4, (4, 6), (2, 3))
    return model


@refused(r"cannot convert 2\.drop_path \(Noise\): it is a Noise, which MobileOneBlock is not built of")
def a_part_of_a_block_of_timm_of_another_class():
    class Noise(nn.Module):
        def forward(self, x):
            return x + 1

    model = net()
    model[2].drop_path = Noise()
    return model


@refused(r"cannot convert 0 \(ConvNorm\)")
def a_norm_that_was_taken_out():
    model = net()
    model[0].bn = nn.Identity()
    return model


@refused(r"cannot convert 1\.partition_perceptron\.fc3 \(TokenMixingGroupedLinear\)")
def convs_injected_beside_fc3_before_its_norm():
    model = nn.Sequential(nn.Identity(), repmlp.layers.RepMLPv2(4, (2, 3), (1,), share_sets=2))
    model[1].partition_perceptron.fc3 = GroupedLinear(12, 12, 2)
    return repmlp.inject_locality(model, layers="1.partition_perceptron.fc3", grid=(2, 3), kernel_sizes=(1,))


@refused(r"cannot convert 0 \(Activated\): it overrides forward, but inherits its conversion from ConvNorm")
def a_subclass_with_another_forward():
    class Activated(ConvNorm):
        def forward(self, x):
            return self.bn(self.conv(x).relu())

    return nn.Sequential(Activated(4, 4))


@right
def a_subclass_with_a_forward_and_a_conversion():
    class Activated(ConvNorm):
        def forward(self, x):
            return super().forward(x).relu()

        def reparameterize(self):
            super().reparameterize()

    return nn.Sequential(Activated(4, 4))


@right
def a_subclass_with_neither():
    class Named(ConvNorm):
        name = "mine"

    return nn.Sequential(Named(4, 4))


@right
def an_fc3_with_a_bias():
    model = net()
    model[1].partition_perceptron.fc3 = GroupedLinear(24, 24, 2)
    return model


# Weights that are computed


COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "householder": lambda m: parametrizations.orthogonal(m, orthogonal_map="householder"),
    "older_spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda m: prune.l1_unstructured(m, "weight", 0.4),
    "parametrized_by_the_user": lambda m: parametrize.register_parametrization(m, "weight", nn.Tanh()),
}


def older_weight_norm(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(module)


def computed(make):
    def build():
        model = net()
        model[4].requires_grad_(False)
        for module in (model[0].conv, model[1].global_perceptron.fc1, model[2].conv_kxk[0].conv, model[3].linear):
            make(module)
        return model

    return build


for name, make in {**COMPUTED, "older_weight_norm": older_weight_norm}.items():
    RIGHT[f"weights_that_are_{name}"] = computed(make)


@right
def a_computed_weight_in_fc3():
    model = net()
    prune.random_unstructured(model[1].partition_perceptron.fc3, "weight", 0.5)
    parametrizations.weight_norm(branch(model).conv)
    return model


@refused(r"cannot convert 0\.conv \(Conv2d\): it has a weight that is not a parameter")
def a_weight_that_is_no_parameter():
    model = net()
    weight = model[0].conv.weight.detach().clone()
    del model[0].conv.weight
    model[0].conv.weight = weight
    return model


# Hooks


@right
def hooks_on_blocks_that_stay_and_on_other_layers():
    model = net()
    for module in (model, model[0], model[1], model[2], model[4], model[2].act):
        module.register_forward_hook(lambda module, args, output: 2 * output)
        module.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return model


@right
def the_hooks_of_simulated_int8():
    model = randomize(net())
    add_fake_quant_hooks(model)
    return model


@refused(r"cannot convert 0\.conv \(Conv2d\): it has a forward hook")
def a_hook_on_a_layer_that_is_rewritten():
    model = net()
    model[0].conv.register_forward_hook(lambda module, args, output: 2 * output)
    return model


@refused(r"cannot convert 1\.local_perceptron\.branches\.1x1\.bn \(BatchNorm2d\): it has a forward hook")
def a_pre_hook_on_a_layer_that_is_removed():
    model = net()
    branch(model, "1x1").bn.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return model


@refused(r"cannot convert 1\.partition_perceptron \(PartitionPerceptron\): it has a forward hook")
def a_hook_on_a_part_that_changes():
    model = net()
    model[1].partition_perceptron.register_forward_hook(lambda module, args, output: 2 * output)
    return model


@refused(r"cannot convert 2\.conv_scale\.bn \(BatchNormAct2d\): it has a forward hook")
def a_hook_inside_a_block_of_timm():
    model = net()
    model[2].conv_scale.bn.register_forward_hook(lambda module, args, output: 2 * output)
    return model


@refused(r"cannot convert 3 \(ConvNorm\): it has a forward hook, and is replaced")
def a_hook_on_a_block_that_is_replaced():
    model = net()
    model[3].register_forward_hook(lambda module, args, output: 2 * output)
    return model


# A forward that was assigned


@refused(r"4 \(Conv2d\) has had its forward replaced by a function that is not bound to it")
def a_closure_on_any_module():
    model = net()
    forward = model[4].forward
    model[4].forward = lambda x: 2 * forward(x)
    return model


@refused(r"4 \(Conv2d\) has had its forward replaced by a function")
def a_partial_on_any_module():
    model = net()
    model[4].forward = functools.partial(type(model[4]).forward, model[4])
    return model


@refused(r"4 \(Conv2d\) has had its forward replaced by a function")
def a_method_of_another_module():
    model = net()
    model[4].forward = model[0].forward
    return model


@right
def a_method_of_the_same_module():
    model = net()
    model[4].forward = types.MethodType(lambda self, x: 2 * nn.Conv2d.forward(self, x), model[4])
    return model


@refused(r"cannot convert 0\.conv \(Conv2d\): it has a forward of its own")
def a_method_on_a_layer_that_is_rewritten():
    model = net()
    model[0].conv.forward = types.MethodType(lambda self, x: 2 * nn.Conv2d.forward(self, x), model[0].conv)
    return model


@refused(r"cannot convert 1 \(RepMLP\): it has a forward of its own")
def a_method_on_a_block():
    model = net()
    model[1].forward = types.MethodType(lambda self, x: 2 * RepMLP.forward(self, x), model[1])
    return model


# Shared layers and weights


@right
def one_conv_in_two_blocks():
    model = nn.Sequential(ConvNorm(4, 4, 3), ConvNorm(4, 4, 3), nn.Conv2d(4, 4, 1))
    model[1].conv = model[0].conv
    return model


@right
def one_weight_in_two_blocks_and_a_layer_that_stays():
    model = nn.Sequential(ConvNorm(4, 4, 1), ConvNorm(4, 4, 1), nn.Conv2d(4, 4, 1), LevitConvNorm(4, 4))
    model[1].conv.weight = model[2].weight = model[3].linear.weight = model[0].conv.weight
    return model


@right
def views_of_one_tensor():
    model = nn.Sequential(ConvNorm(4, 4, 1), block(), nn.Conv2d(4, 4, 1))
    flat = torch.randn(2000, dtype=torch.float64)
    model[0].conv.weight = nn.Parameter(flat[:16].view(4, 4, 1, 1))
    model[2].weight = nn.Parameter(flat[8:24].view(4, 4, 1, 1))
    fc3 = model[1].partition_perceptron.fc3
    fc3.weight = nn.Parameter(flat[: fc3.weight.numel()].view_as(fc3.weight))
    model[1].global_perceptron.fc1.weight = nn.Parameter(flat[: 16 * 16].view(16, 16))
    return model


@right
def one_norm_in_two_blocks_and_after_a_conv():
    model = nn.Sequential(ConvNorm(4, 4), ConvNorm(4, 4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model[0].bn = model[1].bn = model[3]
    return model


@right
def one_block_under_two_names():
    ours, theirs = block(), MobileOneBlock(4, 4)
    return nn.Sequential(ours, theirs, LevitConvNorm(4, 4), ours, theirs)


@right
def one_replaced_block_under_two_names():
    theirs = LevitConvNorm(4, 4)
    return nn.Sequential(theirs, nn.ReLU(), theirs)


@right
def a_part_of_a_block_that_is_used_elsewhere_too():
    class Both(nn.Module):
        def __init__(self, first):
            super().__init__()
            whole = RepMLP(4, 4, (2, 3), (2, 3), (1,), groups=2)
            part = whole.partition_perceptron
            for name, module in [("part", part), ("whole", whole)] if first else [("whole", whole), ("part", part)]:
                self.add_module(name, module)

        def forward(self, x):
            x = x[:, :, :2, :3]
            return self.whole(x) + self.part(x)

    return Both(True)


@right
def a_layer_of_a_block_that_is_used_elsewhere_too():
    ours = ConvNorm(4, 4, 3)
    return nn.Sequential(ours, nn.ReLU(), ours.conv, nn.ReLU(), ours.bn)


@right
def branches_that_share_a_conv():
    model = nn.Sequential(MobileOneBlock(4, 4, 3, num_conv_branches=2), MobileOneBlock(4, 4, 3))
    model[0].conv_kxk[1].conv = model[0].conv_kxk[0].conv
    model[1].conv_kxk[0].conv = model[0].conv_kxk[0].conv
    return model


@right
def convs_of_one_ffn_that_share_their_weight():
    model = nn.Sequential(FFN(4, 1))
    model[0].fc2.conv = model[0].fc1.conv
    return model


# Wrappers


@refused(r"the model \(AveragedModel\) wraps a model: pass the model itself, its attribute module")
def averaged_weights():
    return torch.optim.swa_utils.AveragedModel(net())


@refused(r"the model \(ModelEmaV3\) wraps a model: pass the model itself, its attribute module")
def moving_average_of_timm():
    return timm.utils.ModelEmaV3(net())


@refused(r"the model \(DataParallel\) wraps a model: pass the model itself, its attribute module")
def data_parallel():
    return nn.DataParallel(net())


@refused(r"1 \(OptimizedModule\) wraps a model: pass the model itself, its attribute _orig_mod")
def a_compiled_part():
    return nn.Sequential(ConvNorm(4, 4), torch.compile(block()))


# Blocks that are converted in part, and memory formats


@right
def a_block_of_which_fc3_is_converted():
    model = net()
    model[1].partition_perceptron.reparameterize()
    return model


@right
def a_block_of_which_the_branches_are_converted():
    model = net()
    model[1].local_perceptron.reparameterize()
    model[1].global_perceptron.reparameterize()
    return model


@right
def a_block_of_which_one_branch_is_converted():
    model = net()
    branch(model).reparameterize()
    return model


@right
def an_ffn_of_which_a_conv_is_converted():
    model = nn.Sequential(FFN(4))
    model[0].fc1.reparameterize()
    return model


@right
def channels_last():
    return net().to(memory_format=torch.channels_last)


@right
def weights_that_are_expanded():
    model = net()
    model[0].conv.weight = nn.Parameter(torch.randn(1, 4, 3, 3, dtype=torch.float64).expand(4, 4, 3, 3))
    return model


# The test


def pictured(model):
    """All that a conversion could change of a model."""
    modules = [
        (name, type(m), m.training, {key: id(value) for key, value in vars(m).items() if not key.startswith("_")})
        for name, m in model.named_modules()
    ]
    hooks = [[dict(m._forward_hooks), dict(m._forward_pre_hooks)] for m in model.modules()]
    tensors = {name: (id(t), t.requires_grad) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    return modules, hooks, tensors


def built(make):
    torch.manual_seed(0)
    model = make().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


@pytest.mark.parametrize("name", RIGHT)
def test_right(name):
    model, x = built(RIGHT[name]), torch.randn(3, 4, 4, 6, dtype=torch.float64)
    expected = model(x).detach()
    before = pictured(model)
    weights = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    deployed = reparameterize(model)
    assert_close(deployed(x), expected, 1e-12)
    assert pictured(model) == before
    for t, was in zip((*model.parameters(), *model.buffers()), weights, strict=True):
        assert_same(t, was)
    assert_same(model(x), expected)
    assert repmlp.is_reparameterized(deployed)
    assert_same(reparameterize(deployed)(x), deployed(x))
    assert reparameterize(model, inplace=True) is model
    assert_same(model(x), deployed(x))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, inplace):
    make, message = REFUSED[name]
    model = built(make)
    model.train()
    before = pictured(model)
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        reparameterize(model, inplace=inplace)
    assert pictured(model) == before
    for key, t in model.state_dict().items():
        assert_same(t, weights[key])
