"""RepMLPNet: the paper's figures, its forms, and other image sizes."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import repmlp
from compare import assert_close, assert_same
from repmlp.layers import ConvNorm, RepMLPv2
from repmlp.models import RepMLPNet
from repmlp.models.repmlpnet import FFN
from weights import randomize

# name: parameters in millions and multiply-adds in thousand millions, as printed
PRINTED = {
    "repmlpnet_t224": (38.3, 2.8),
    "repmlpnet_b224": (68.2, 6.7),
    "repmlpnet_t256": (58.7, 4.2),
    "repmlpnet_b256": (96.5, 9.6),
    "repmlpnet_d256": (86.9, 8.6),
    "repmlpnet_l256": (117.7, 11.5),
}
SMALL = {
    "num_classes": 5,
    "channels": (8, 12, 16),
    "depths": (1, 2, 1),
    "share_sets": (2, 3, 4),
    "partition_sizes": ((8, 6), (4, 6), (4, 3)),
}
SIZE = (64, 48)  # feature maps 16x12, 8x6, 4x3: P = 4, 2, 1


def small(**kwargs) -> RepMLPNet:
    return timm.create_model("repmlpnet_t224", **{**SMALL, **kwargs})


def images(*size: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, *(size or SIZE), dtype=dtype)


@pytest.fixture(params=["training form", "deploy form"])
def model(request) -> RepMLPNet:
    model = randomize(small())
    return repmlp.reparameterize(model, inplace=True) if request.param == "deploy form" else model


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


# The paper's figures


@pytest.mark.parametrize("name", PRINTED)
def test_parameters_and_macs_are_the_printed_ones(name):
    """Printed with one decimal, some rounded and some cut."""
    model = timm.create_model(name, deploy=True, device="meta").eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *model.default_cfg["input_size"], device="meta"))
    params, macs = PRINTED[name]
    assert -0.05 <= sum(p.numel() for p in model.parameters()) / 1e6 - params < 0.1
    assert -0.05 <= counter.get_total_flops() / 2e9 - macs < 0.1


@pytest.mark.parametrize(
    "name", [name if name == "repmlpnet_t224" else pytest.param(name, marks=pytest.mark.slow) for name in PRINTED]
)
def test_built_in_deploy_form_and_converted_are_one(name):
    converted = repmlp.reparameterize(timm.create_model(name, device="meta"), inplace=True)
    built = timm.create_model(name, deploy=True, device="meta")
    built.load_state_dict(converted.state_dict(), strict=True)
    assert norms(built) == norms(converted)
    assert repmlp.is_reparameterized(built)
    assert repmlp.is_reparameterized(converted)


@pytest.mark.parametrize("name", PRINTED)
def test_the_input_size_is_the_smallest_that_fits(name):
    model = timm.create_model(name, device="meta")
    cfg = model.default_cfg
    H, W = cfg["input_size"][1:]
    assert not cfg["fixed_input_size"]
    assert cfg["min_input_size"] == cfg["input_size"]  # it takes multiples of this size, and no smaller one
    with pytest.raises(ValueError, match="is not a multiple of partition"):
        model(torch.empty(1, 3, H // 2, W // 2, device="meta"))
    assert model(torch.empty(1, 3, 2 * H, W, device="meta")).shape == (1, 1000)
    for stage, info in zip(model.stages, model.feature_info, strict=True):  # P = 1 at this size
        assert stage[2].block.partition_size == (H // info["reduction"], W // info["reduction"])


# The two forms


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("size", [(64, 48), (128, 96), (64, 144)])
def test_both_forms_compute_the_same(dtype, tolerance, size):
    model = randomize(small(dtype=dtype))
    fast = repmlp.reparameterize(model)
    x = images(*size, dtype=dtype)
    with torch.no_grad():
        assert_close(fast(x), model(x), tolerance)
        assert_close(fast.forward_features(x), model.forward_features(x), tolerance)


def test_no_bn_is_left_but_those_that_cannot_go():
    fast = repmlp.reparameterize(small())
    units = [name for name, module in fast.named_modules() if hasattr(module, "ffn")]
    assert len(units) == 4
    assert sorted(norms(fast)) == sorted(["norm", *(f"{unit}.norm" for unit in units)])


def test_a_report_lists_embeddings_blocks_and_ffns():
    model = randomize(small())
    report = repmlp.verify(model, repmlp.reparameterize(model), images())
    assert report, report
    assert [row.name for row in report.blocks] == [
        *("stages.0.0", "stages.0.2.block", "stages.0.2.ffn"),
        *("stages.1.0", "stages.1.2.block", "stages.1.2.ffn", "stages.1.3.block", "stages.1.3.ffn"),
        *("stages.2.0", "stages.2.2.block", "stages.2.2.ffn"),
    ]


def test_converted_weights_load_into_a_network_built_in_deploy_form():
    fast = repmlp.reparameterize(randomize(small()))
    built = small(deploy=True).eval()
    built.load_state_dict(fast.state_dict(), strict=True)
    x = images()
    with torch.no_grad():
        assert_same(built(x), fast(x))


def test_converting_twice_changes_nothing():
    fast = repmlp.reparameterize(randomize(small()))
    again = repmlp.reparameterize(fast)
    assert again.state_dict().keys() == fast.state_dict().keys()
    for name, tensor in again.state_dict().items():
        assert_same(tensor, fast.state_dict()[name])


def test_ffn_is_its_definition():
    ffn = randomize(FFN(3, 2, dtype=torch.float64))
    x = images(4, 5, dtype=torch.float64)

    def batch_norm(x, norm):
        scale = norm.weight / (norm.running_var + 1e-5).sqrt()
        return (x - norm.running_mean) * scale + norm.bias

    with torch.no_grad():
        y = batch_norm(x.movedim(1, -1), ffn.norm)  # (N, H, W, C): a 1x1 conv is a product over the last axis
        y = batch_norm(y @ ffn.fc1.conv.weight[:, :, 0, 0].T, ffn.fc1.bn)
        y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
        y = batch_norm(y @ ffn.fc2.conv.weight[:, :, 0, 0].T, ffn.fc2.bn).movedim(-1, 1)
        assert_close(ffn(x), y, 1e-12)
        ffn.reparameterize()
        assert_close(ffn(x), y, 1e-12)
    assert not norms(ffn)


def test_a_unit_adds_the_block_then_the_ffn():
    model = randomize(small(dtype=torch.float64))
    unit, x = model.stages[1][2], torch.randn(2, 12, 8, 6, dtype=torch.float64)
    with torch.no_grad():
        y = x + unit.block(unit.norm(x))
        assert_close(unit(x), y + unit.ffn(y), 1e-14)


def test_half_precision_stays_half():
    fast = repmlp.reparameterize(small(dtype=torch.bfloat16))
    assert {p.dtype for p in fast.parameters()} == {torch.bfloat16}
    assert fast(images(dtype=torch.bfloat16)).dtype == torch.bfloat16


# Other image sizes


def test_padding_serves_every_size():
    model = randomize(small(pad=True, dtype=torch.float64))
    fast = repmlp.reparameterize(model)
    x = images(70, 101, dtype=torch.float64)
    with torch.no_grad():
        assert [tuple(y.shape[2:]) for y in model.forward_intermediates(x, intermediates_only=True)] == [
            (17, 25),
            (8, 12),
            (4, 6),
        ]
        assert_close(fast(x), model(x), 1e-10)


def test_padding_changes_nothing_where_the_partition_divides():
    model, padded = randomize(small()), small(pad=True).eval()
    padded.load_state_dict(model.state_dict())
    x = images()
    with torch.no_grad():
        assert_same(padded(x), model(x))


def test_img_size_is_checked_and_no_more():
    assert small(img_size=(128, 96)).state_dict().keys() == small().state_dict().keys()
    assert small(img_size=(65, 50))(images(65, 50)).shape == (2, 5)  # a conv of stride 4 drops what is left over
    assert small(img_size=(70, 101), pad=True)(images(70, 101)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"img_size 64x80 gives stage 0 .* 16x20, .* partition 8x6: .* of 64x48"):
        small(img_size=(64, 80))
    with pytest.raises(ValueError, match="stage 0 a feature map of 0x0"):
        small(img_size=3)
    with pytest.raises(ValueError, match="is not a multiple of partition 8x6: pass pad=True"):
        small()(images(64, 80))


def test_a_timm_size_request_reaches_the_report():
    model = randomize(small(img_size=SIZE))
    assert repmlp.verify(model, repmlp.reparameterize(model))


def test_one_entry_per_stage():
    with pytest.raises(ValueError, match="one entry per stage"):
        small(depths=(1, 2))


# What timm's contract (test_contract.py) leaves to the network


def test_classifier(model):
    x = images()
    assert model.num_features == model.head_hidden_size == 16
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, 16, 4, 3)
        pooled = model.forward_head(features, pre_logits=True)
        assert_close(pooled, features.mean((2, 3)), 1e-6)
        assert_same(model.get_classifier()(pooled), model(x))

        model.reset_classifier(0)
        assert_same(model(x), pooled)
        model.reset_classifier(0, "")
        assert_same(model(x), features)
        model.reset_classifier(7, "avg")
        assert model(x).shape == (2, 7)
        assert model.num_classes == 7


def test_intermediates(model):
    x = images()
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert [tuple(y.shape[1:]) for y in maps] == [(8, 16, 12), (12, 8, 6), (16, 4, 3)]
        assert_same(last, model.forward_features(x))
        assert_same(model.norm(maps[-1]), last)
        assert_same(model.forward_intermediates(x, 1, norm=True, intermediates_only=True)[0], last)
        (middle,) = model.forward_intermediates(x, [1], stop_early=True, intermediates_only=True)
        assert_same(middle, maps[1])


@pytest.mark.parametrize("trace", [torch.jit.script, torch.fx.symbolic_trace])
def test_traced_code_computes_the_same(model, trace):
    traced = trace(model)
    with torch.no_grad():
        for x in (images(), images(128, 48)):
            assert_same(traced(x), model(x))


def test_checkpointing_changes_neither_outputs_nor_gradients():
    model = randomize(small(dtype=torch.float64, drop_path_rate=0.2)).train()
    saving = copy.deepcopy(model)
    saving.set_grad_checkpointing()
    x = images(dtype=torch.float64)
    outputs = []
    for m in (model, saving):
        torch.manual_seed(1)
        y = m(x)
        y.square().sum().backward()
        outputs.append(y.detach())
    assert_same(*outputs)
    for p, q in zip(model.parameters(), saving.parameters(), strict=True):
        assert_close(q.grad, p.grad, 1e-12)


def test_stochastic_depth_grows_with_depth():
    model = small(drop_path_rate=0.3)
    rates = [getattr(m.drop_path, "drop_prob", 0.0) for m in model.modules() if hasattr(m, "drop_path")]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    x = images()
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert_same(model(x), model(x))


def test_every_convertible_part_is_one_of_three_kinds():
    assert {type(m) for _, m in repmlp.conversion.iter_reparameterizable(small())} == {ConvNorm, RepMLPv2, FFN}
