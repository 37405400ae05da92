"""Computed and shared weights, hooks, assigned forwards, wrappers: converted exactly, or refused with no change."""

import functools
import types
import warnings

import pytest
import timm
import torch
from timm.models.byobnet import MobileOneBlock
from timm.models.levit import ConvNorm as LevitConvNorm
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from repmlp import RepMLP
from repmlp.layers import ConvNorm, add_fake_quant_hooks
from repmlp.models.repmlpnet import FFN
from situations import block, branch, net, refused, right
from weights import randomize

# Weights that are computed


def older_weight_norm(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(module)


COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "householder": lambda m: parametrizations.orthogonal(m, orthogonal_map="householder"),
    "older_spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda m: prune.l1_unstructured(m, "weight", 0.4),
    "parametrized_by_the_user": lambda m: parametrize.register_parametrization(m, "weight", nn.Tanh()),
    "older_weight_norm": older_weight_norm,
}


@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
@right
def test_a_computed_weight(compute):
    model = net()
    model[4].requires_grad_(False)
    for module in (model[0].conv, model[1].global_perceptron.fc1, model[2].conv_kxk[0].conv, model[3].linear):
        compute(module)
    return model


@right
def test_a_computed_weight_in_fc3():
    model = net()
    prune.random_unstructured(model[1].partition_perceptron.fc3, "weight", 0.5)
    parametrizations.weight_norm(branch(model).conv)
    return model


@refused(r"cannot convert 0\.conv \(Conv2d\): it has a weight that is not a parameter")
def test_a_weight_that_is_no_parameter():
    model = net()
    weight = model[0].conv.weight.detach().clone()
    del model[0].conv.weight
    model[0].conv.weight = weight
    return model


# Hooks


@right
def test_hooks_on_blocks_that_stay_and_on_other_layers():
    model = net()
    for module in (model, model[0], model[1], model[2], model[4], model[2].act):
        module.register_forward_hook(lambda module, args, output: 2 * output)
        module.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return model


@right
def test_the_hooks_of_simulated_int8():
    model = randomize(net())
    add_fake_quant_hooks(model)
    return model


@refused(r"cannot convert 0\.conv \(Conv2d\): it has a forward hook")
def test_a_hook_on_a_layer_that_is_rewritten():
    model = net()
    model[0].conv.register_forward_hook(lambda module, args, output: 2 * output)
    return model


@refused(r"cannot convert 1\.local_perceptron\.branches\.1x1\.bn \(BatchNorm2d\): it has a forward hook")
def test_a_pre_hook_on_a_layer_that_is_removed():
    model = net()
    branch(model, "1x1").bn.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return model


@refused(r"cannot convert 1\.partition_perceptron \(PartitionPerceptron\): it has a forward hook")
def test_a_hook_on_a_part_that_changes():
    model = net()
    model[1].partition_perceptron.register_forward_hook(lambda module, args, output: 2 * output)
    return model


@refused(r"cannot convert 2\.conv_scale\.bn \(BatchNormAct2d\): it has a forward hook")
def test_a_hook_inside_a_block_of_timm():
    model = net()
    model[2].conv_scale.bn.register_forward_hook(lambda module, args, output: 2 * output)
    return model


@refused(r"cannot convert 3 \(ConvNorm\): it has a forward hook, and is replaced")
def test_a_hook_on_a_block_that_is_replaced():
    model = net()
    model[3].register_forward_hook(lambda module, args, output: 2 * output)
    return model


# A forward that was assigned


@refused(r"4 \(Conv2d\) has had its forward replaced by a function that is not bound to it")
def test_a_closure_on_any_module():
    model = net()
    forward = model[4].forward
    model[4].forward = lambda x: 2 * forward(x)
    return model


@refused(r"4 \(Conv2d\) has had its forward replaced by a function")
def test_a_partial_on_any_module():
    model = net()
    model[4].forward = functools.partial(type(model[4]).forward, model[4])
    return model


@refused(r"4 \(Conv2d\) has had its forward replaced by a function")
def test_a_method_of_another_module():
    model = net()
    model[4].forward = model[0].forward
    return model


@right
def test_a_method_of_the_same_module():
    model = net()
    model[4].forward = types.MethodType(lambda self, x: 2 * nn.Conv2d.forward(self, x), model[4])
    return model


@refused(r"cannot convert 0\.conv \(Conv2d\): it has a forward of its own")
def test_a_method_on_a_layer_that_is_rewritten():
    model = net()
    model[0].conv.forward = types.MethodType(lambda self, x: 2 * nn.Conv2d.forward(self, x), model[0].conv)
    return model


@refused(r"cannot convert 1 \(RepMLP\): it has a forward of its own")
def test_a_method_on_a_block():
    model = net()
    model[1].forward = types.MethodType(lambda self, x: 2 * RepMLP.forward(self, x), model[1])
    return model


# Shared layers and weights


@right
def test_one_conv_in_two_blocks():
    model = nn.Sequential(ConvNorm(4, 4, 3), ConvNorm(4, 4, 3), nn.Conv2d(4, 4, 1))
    model[1].conv = model[0].conv
    return model


@right
def test_one_weight_in_two_blocks_and_a_layer_that_stays():
    model = nn.Sequential(ConvNorm(4, 4, 1), ConvNorm(4, 4, 1), nn.Conv2d(4, 4, 1), LevitConvNorm(4, 4))
    model[1].conv.weight = model[2].weight = model[3].linear.weight = model[0].conv.weight
    return model


@right
def test_views_of_one_tensor():
    model = nn.Sequential(ConvNorm(4, 4, 1), block(), nn.Conv2d(4, 4, 1))
    flat = torch.randn(2000, dtype=torch.float64)
    model[0].conv.weight = nn.Parameter(flat[:16].view(4, 4, 1, 1))
    model[2].weight = nn.Parameter(flat[8:24].view(4, 4, 1, 1))
    fc3 = model[1].partition_perceptron.fc3
    fc3.weight = nn.Parameter(flat[: fc3.weight.numel()].view_as(fc3.weight))
    model[1].global_perceptron.fc1.weight = nn.Parameter(flat[: 16 * 16].view(16, 16))
    return model


@right
def test_one_norm_in_two_blocks_and_after_a_conv():
    model = nn.Sequential(ConvNorm(4, 4), ConvNorm(4, 4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model[0].bn = model[1].bn = model[3]
    return model


@right
def test_one_block_under_two_names():
    ours, theirs = block(), MobileOneBlock(4, 4)
    return nn.Sequential(ours, theirs, LevitConvNorm(4, 4), ours, theirs)


@right
def test_one_replaced_block_under_two_names():
    theirs = LevitConvNorm(4, 4)
    return nn.Sequential(theirs, nn.ReLU(), theirs)


@right
def test_a_part_of_a_block_that_is_used_elsewhere_too():
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
def test_a_layer_of_a_block_that_is_used_elsewhere_too():
    ours = ConvNorm(4, 4, 3)
    return nn.Sequential(ours, nn.ReLU(), ours.conv, nn.ReLU(), ours.bn)


@right
def test_branches_that_share_a_conv():
    model = nn.Sequential(MobileOneBlock(4, 4, 3, num_conv_branches=2), MobileOneBlock(4, 4, 3))
    model[0].conv_kxk[1].conv = model[0].conv_kxk[0].conv
    model[1].conv_kxk[0].conv = model[0].conv_kxk[0].conv
    return model


@right
def test_convs_of_one_ffn_that_share_their_weight():
    model = nn.Sequential(FFN(4, 1))
    model[0].fc2.conv = model[0].fc1.conv
    return model


# Wrappers


@refused(r"the model \(AveragedModel\) wraps a model: pass the model itself, its attribute module")
def test_averaged_weights():
    return torch.optim.swa_utils.AveragedModel(net())


@refused(r"the model \(ModelEmaV3\) wraps a model: pass the model itself, its attribute module")
def test_moving_average_of_timm():
    return timm.utils.ModelEmaV3(net())


@refused(r"the model \(DataParallel\) wraps a model: pass the model itself, its attribute module")
def test_data_parallel():
    return nn.DataParallel(net())


@refused(r"1 \(OptimizedModule\) wraps a model: pass the model itself, its attribute _orig_mod")
def test_a_compiled_part():
    return nn.Sequential(ConvNorm(4, 4), torch.compile(block()))


# Blocks that are converted in part, and memory formats


@right
def test_a_block_of_which_fc3_is_converted():
    model = net()
    model[1].partition_perceptron.reparameterize()
    return model


@right
def test_a_block_of_which_the_branches_are_converted():
    model = net()
    model[1].local_perceptron.reparameterize()
    model[1].global_perceptron.reparameterize()
    return model


@right
def test_a_block_of_which_one_branch_is_converted():
    model = net()
    branch(model).reparameterize()
    return model


@right
def test_an_ffn_of_which_a_conv_is_converted():
    model = nn.Sequential(FFN(4))
    model[0].fc1.reparameterize()
    return model


@right
def test_channels_last():
    return net().to(memory_format=torch.channels_last)


@right
def test_weights_that_are_expanded():
    model = net()
    model[0].conv.weight = nn.Parameter(torch.randn(1, 4, 3, 3, dtype=torch.float64).expand(4, 4, 3, 3))
    return model
