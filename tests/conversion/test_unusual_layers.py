"""Unusual layers in convertible blocks: each block is converted exactly, or refused with nothing changed."""

import torch
from timm.layers import BatchNormAct2d, StdConv2d
from timm.models.byobnet import MobileOneBlock
from timm.models.levit import ConvNorm as LevitConvNorm
from timm.utils.model import freeze_batch_norm_2d
from torch import nn

import repmlp
from repmlp.layers import ConvNorm, GlobalPerceptron, GroupedLinear
from repmlp.layers.sync_norm import convert_sync_batchnorm
from repmlp.models.repmlpnet import FFN
from situations import block, branch, net, refused, right
from weights import randomize

# Batch norms


@right
def test_norms_with_another_eps_and_momentum():
    model = net()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eps, m.momentum = 0.3, None
    return model


@right
def test_norms_without_affine():
    model = net()
    model[0].bn = nn.BatchNorm2d(4, affine=False)
    model[1].partition_perceptron.bn = nn.BatchNorm1d(24, affine=False)
    model[1].global_perceptron.bn = nn.BatchNorm2d(4, affine=False)
    branch(model).bn = nn.BatchNorm2d(4, affine=False)
    return model


@right
def test_synchronized_norms():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(ConvNorm(4, 4), block()))
    assert type(model[0].bn) is nn.SyncBatchNorm
    return model


@right
def test_norms_synchronized_on_a_cpu():
    model = net()
    for module in (model[0], branch(model)):
        convert_sync_batchnorm(module, processes=2, device=torch.device("cpu"))
    return model


@right
def test_norms_that_timm_froze():
    model = nn.Sequential(ConvNorm(4, 4), block(), MobileOneBlock(4, 6), LevitConvNorm(6, 4))
    return freeze_batch_norm_2d(randomize(model.double()))


@right
def test_a_norm_subclass_without_a_forward_of_its_own():
    class Named(nn.BatchNorm2d):
        name = "mine"

    model = net()
    model[0].bn, branch(model).bn, model[3].bn = Named(4), Named(4), Named(4)
    return model


@refused(r"cannot convert 0\.bn \(Absolute\): it is a Absolute, which is not known to compute what its parameters say")
def test_a_norm_subclass_with_a_forward_of_its_own():
    class Absolute(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).abs()

    model = net()
    model[0].bn = Absolute(4)
    return model


@refused(r"cannot convert 1\.local_perceptron\.branches\.1x3\.bn \(GroupNorm\)")
def test_group_norm():
    model = net()
    branch(model).bn = nn.GroupNorm(2, 4)
    return model


@refused(r"cannot convert 3\.bn \(GroupNorm\)")
def test_group_norm_in_a_block_of_timm():
    model = net()
    model[3].bn = nn.GroupNorm(2, 4)
    return model


@refused(r"cannot convert 0\.bn \(InstanceNorm2d\)")
def test_instance_norm_with_running_statistics():
    model = net()
    model[0].bn = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    return model


@refused(r"cannot convert 0 \(ConvNorm\): .*keeps no running statistics")
def test_a_norm_without_running_statistics():
    model = net()
    model[0].bn = nn.BatchNorm2d(4, track_running_stats=False)
    return model


@right
def test_a_norm_of_timm_without_activation():
    model = net()
    model[0].bn = BatchNormAct2d(4, apply_act=False)
    return model


@refused(r"cannot convert 0\.bn \(BatchNormAct2d\): it has an activation")
def test_a_norm_with_an_activation():
    model = net()
    model[0].bn = BatchNormAct2d(4)
    return model


@refused(r"cannot convert 2\.identity \(BatchNormAct2d\): it has an activation")
def test_a_norm_with_an_activation_in_a_block_of_timm():
    model = net()
    model[2].identity = BatchNormAct2d(4)
    return model


# Layers with other attributes, and other layers


@right
def test_a_conv_before_a_norm_with_any_attributes():
    model = net()
    model[0].conv = nn.Conv2d(4, 4, 3, padding=2, dilation=2, padding_mode="circular", groups=2, bias=True)
    return model


@right
def test_a_conv_with_another_stride():
    model = nn.Sequential(ConvNorm(4, 4), nn.Identity())
    model[0].conv.stride = (2, 1)
    return model


@refused(r"cannot convert 1 \(RepMLP\): .*branch 1x3 has padding_mode='circular'")
def test_a_branch_that_pads_around():
    model = net()
    branch(model).conv = nn.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=2, padding_mode="circular", bias=False)
    return model


@refused(r"cannot convert 1 \(RepMLP\): .*branch 1x3 has padding=\(0, 2\)")
def test_a_branch_with_dilation():
    model = net()
    branch(model).conv.padding, branch(model).conv.dilation = (0, 2), (1, 2)
    return model


@refused(r"cannot convert 2\.conv_kxk\.0\.conv \(Conv2d\): it pads with 'circular'")
def test_a_conv_of_timm_that_pads_around():
    model = net()
    model[2].conv_kxk[0].conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", bias=False)
    return model


@refused(r"cannot convert 3\.linear \(Conv2d\): it pads with 'reflect'")
def test_a_conv_of_timm_that_reflects():
    model = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU(), LevitConvNorm(4, 4, 3, padding=1))
    model[3].linear = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False)
    return model


@refused(r"cannot convert 0 \(FFN\): .*conv of fc1 has padding=\(1, 1\)")
def test_padding_after_the_norm_of_an_ffn():
    model = nn.Sequential(FFN(4))
    model[0].fc1.conv.padding = (1, 1)
    return model


@right
def test_a_stride_in_an_ffn():
    model = nn.Sequential(FFN(4))
    model[0].fc1.conv.stride = (2, 1)
    return model


@refused(r"cannot convert 0\.conv \(StdConv2d\)")
def test_a_conv_that_computes_its_weight():
    model = net()
    model[0].conv = StdConv2d(4, 4, 3, padding=1)
    return model


@refused(r"cannot convert 2\.conv_kxk\.0\.conv \(StdConv2d\)")
def test_a_conv_of_timm_that_computes_its_weight():
    model = net()
    model[2].conv_kxk[0].conv = StdConv2d(4, 4, 3, padding=1)
    return model


@refused(r"cannot convert 1\.global_perceptron \(Doubled\)")
def test_a_part_of_another_class():
    class Doubled(GlobalPerceptron):
        def forward(self, x):
            return 2 * super().forward(x)

    model = net()
    model[1].global_perceptron = Doubled(4, (4, 6), (2, 3))
    return model


@refused(r"cannot convert 2\.drop_path \(Noise\): it is a Noise, which MobileOneBlock is not built of")
def test_a_part_of_a_block_of_timm_of_another_class():
    class Noise(nn.Module):
        def forward(self, x):
            return x + 1

    model = net()
    model[2].drop_path = Noise()
    return model


@refused(r"cannot convert 0 \(ConvNorm\)")
def test_a_norm_that_was_taken_out():
    model = net()
    model[0].bn = nn.Identity()
    return model


@refused(r"cannot convert 1\.partition_perceptron\.fc3 \(TokenMixingGroupedLinear\)")
def test_convs_injected_beside_fc3_before_its_norm():
    model = nn.Sequential(nn.Identity(), repmlp.layers.RepMLPv2(4, (2, 3), (1,), share_sets=2))
    model[1].partition_perceptron.fc3 = GroupedLinear(12, 12, 2)
    return repmlp.inject_locality(model, layers="1.partition_perceptron.fc3", grid=(2, 3), kernel_sizes=(1,))


@refused(r"cannot convert 0 \(Activated\): it overrides forward, but inherits its conversion from ConvNorm")
def test_a_subclass_with_another_forward():
    class Activated(ConvNorm):
        def forward(self, x):
            return self.bn(self.conv(x).relu())

    return nn.Sequential(Activated(4, 4))


@right
def test_a_subclass_with_a_forward_and_a_conversion():
    class Activated(ConvNorm):
        def forward(self, x):
            return super().forward(x).relu()

        def reparameterize(self):
            super().reparameterize()

    return nn.Sequential(Activated(4, 4))


@right
def test_a_subclass_with_neither():
    class Named(ConvNorm):
        name = "mine"

    return nn.Sequential(Named(4, 4))


@right
def test_an_fc3_with_a_bias():
    model = net()
    model[1].partition_perceptron.fc3 = GroupedLinear(24, 24, 2)
    return model
