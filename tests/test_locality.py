"""Convs beside the token-mixing FCs of whole networks: injected, trained, merged, and gone."""

import copy

import pytest
import timm
import torch
from timm.layers import GatedMlp, SwiGLUPacked
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from torch import nn

import repmlp
from compare import assert_close, assert_same
from repmlp.layers import GroupedLinear, TokenMixing
from repmlp.locality import injected_locality
from weights import scramble

#: Arguments of timm's MlpMixer: 2 blocks, a grid of 3x4 tokens.
SMALL = {"num_classes": 5, "img_size": (12, 16), "patch_size": 4, "embed_dim": 16, "num_blocks": 2}
FAMILIES = {
    "ResMLP": {"mlp_ratio": 2, "block_layer": ResBlock, "norm_layer": Affine},
    "gMLP": {"mlp_ratio": 2, "block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp},
    "Mixer": {"mlp_ratio": (2.25, 2)},  # 36 = 3*12: three maps
    "gated Mixer": {"mlp_ratio": (1.5, 2), "mlp_layer": SwiGLUPacked},  # into 24 = 2*12, of which one gates the other
}
FCS = {"ResMLP": ["linear_tokens"], "gMLP": ["mlp_channels.gate.proj"], "Mixer": ["mlp_tokens.fc1", "mlp_tokens.fc2"]}
FCS["gated Mixer"] = FCS["Mixer"]


def small(family):
    return scramble(MlpMixer(**SMALL, **FAMILIES[family]).double())


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def plain(family):
    return small(family)


@pytest.fixture
def images():
    return torch.randn(3, 3, 12, 16, dtype=torch.float64)


def injected_layers(model):
    return [name for name, module in model.named_modules() if isinstance(module, TokenMixing)]


# What is injected, and what that changes


def test_every_token_mixing_fc_gets_a_local_perceptron(family, plain):
    model = repmlp.inject_locality(plain, (1, 3))
    assert model is plain
    assert injected_layers(model) == [f"blocks.{i}.{name}" for i in range(2) for name in FCS[family]]
    for name in injected_layers(model):
        layer = model.get_submodule(name)
        assert (layer.grid, layer.class_token) == ((3, 4), False)
        assert list(layer.local_perceptron.branches) == ["1x1", "3x3"]


@pytest.mark.parametrize("training", [False, True])
def test_nothing_changes_at_first(plain, images, training):
    plain.train(training)
    expected = plain(images)
    assert expected.std() > 0.1
    assert_same(repmlp.inject_locality(plain)(images), expected)


def test_the_parameters_that_were_there_stay(plain):
    before = dict(plain.named_parameters())
    after = dict(repmlp.inject_locality(plain).named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert all(".local_perceptron." in name for name in after.keys() - before.keys())


def test_weights_of_the_plain_model_load_by_name(family, plain, images):
    model = repmlp.inject_locality(MlpMixer(**SMALL, **FAMILIES[family]).double().eval())
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert all(".local_perceptron." in name for name in missing)
    assert_same(model(images), plain(images))


def test_a_training_step_reaches_every_parameter(plain, images):
    model = repmlp.inject_locality(plain).train()
    model(images).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


# The merge


def test_merged_it_is_the_plain_network_with_the_same_outputs(family, plain, images):
    original = copy.deepcopy(plain)
    model = scramble(repmlp.inject_locality(plain, (1, 3, (3, 1))), seed=1)
    expected = model(images).detach()
    without = copy.deepcopy(original)
    without.load_state_dict(model.state_dict(), strict=False)
    assert (without(images) - expected).abs().max() > 1e-2 * expected.abs().max()  # the convs are no trifle

    merged = repmlp.reparameterize(model)
    assert [(name, type(module)) for name, module in merged.named_modules()] == [
        (name, type(module)) for name, module in original.named_modules()
    ]
    fresh = MlpMixer(**SMALL, **FAMILIES[family]).double().eval()
    fresh.load_state_dict(merged.state_dict())  # strict
    for network in (merged, fresh):
        assert_close(network(images), expected, 1e-10)


def test_a_copy_is_merged_and_the_model_stays(plain, images):
    model = scramble(repmlp.inject_locality(plain), seed=1).train()
    before = copy.deepcopy(model.state_dict())
    merged = repmlp.reparameterize(model)
    assert not merged.training
    assert model.training
    assert injected_layers(model)
    assert injected_layers(merged) == []
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_merged_in_place(plain, images):
    model = scramble(repmlp.inject_locality(plain), seed=1)
    expected, weights = model(images).detach(), dict(model.named_parameters())
    assert repmlp.reparameterize(model, inplace=True) is model
    assert_close(model(images), expected, 1e-10)
    assert all(weights[name] is parameter for name, parameter in model.named_parameters())


def test_a_second_merge_changes_nothing(plain, images):
    merged = repmlp.reparameterize(scramble(repmlp.inject_locality(plain), seed=1))
    again = repmlp.reparameterize(merged)
    assert again is not merged
    assert_same(again(images), merged(images))
    assert repmlp.reparameterize(merged, inplace=True) is merged


def test_timms_own_function_merges_too(plain):
    model = scramble(repmlp.inject_locality(plain), seed=1)
    ours, theirs = (merge(model).state_dict() for merge in (repmlp.reparameterize, timm.utils.reparameterize_model))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_merged_model_can_be_given_convs_again(plain, images):
    model = scramble(repmlp.inject_locality(plain), seed=1)
    repmlp.reparameterize(model, inplace=True)
    expected = model(images)
    repmlp.inject_locality(model, (3,))
    assert not repmlp.is_reparameterized(model)
    assert_same(model(images), expected)
    scramble(model, seed=2)
    assert_close(repmlp.reparameterize(model)(images), model(images).detach(), 1e-10)


def test_it_is_known_what_is_merged(plain):
    assert not repmlp.is_reparameterized(plain)
    model = repmlp.inject_locality(plain)
    assert not repmlp.is_reparameterized(model)
    next(module for module in model.modules() if isinstance(module, TokenMixing)).reparameterize()
    assert not repmlp.is_reparameterized(model)  # the others are not
    repmlp.reparameterize(model, inplace=True)
    assert repmlp.is_reparameterized(model)
    assert repmlp.is_reparameterized(copy.deepcopy(model))


def test_a_deployed_block_that_was_given_convs_is_not_converted():
    block = repmlp.reparameterize(repmlp.layers.RepMLPv2(4, (4, 4), (1, 3), share_sets=2))
    name = next(name for name, module in block.named_modules() if isinstance(module, GroupedLinear))
    repmlp.inject_locality(block, layers=name, grid=4)
    assert not repmlp.is_reparameterized(block)
    x, expected = torch.randn(2, 4, 4, 4), scramble(block)
    assert_close(repmlp.reparameterize(block)(x), expected(x).detach(), 1e-4)
    assert repmlp.is_reparameterized(repmlp.reparameterize(block))


def test_verify_reports_each_layer_and_finds_a_changed_one(plain, images):
    model = scramble(repmlp.inject_locality(plain), seed=1)
    merged = repmlp.reparameterize(model)
    report = repmlp.verify(model, merged, images)
    assert report
    assert [row.name for row in report.blocks] == injected_layers(model)
    assert report.network.float64.relative < 1e-10
    name = injected_layers(model)[1]
    with torch.no_grad():
        merged.get_submodule(name).weight[3, 2] *= -1
    report = repmlp.verify(model, merged, images)
    assert not report
    assert report.worst_block.name == name


def test_the_merged_model_costs_what_the_plain_one_costs(plain):
    expected = repmlp.complexity(plain, (3, 12, 16))
    model = repmlp.inject_locality(plain)
    training = repmlp.complexity(model, (3, 12, 16))
    assert training.macs > expected.macs
    assert training.params > expected.params
    assert repmlp.complexity(repmlp.reparameterize(model), (3, 12, 16)) == expected


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
def test_other_dtypes(plain, dtype, tolerance):
    model = scramble(repmlp.inject_locality(plain.to(dtype)), seed=1)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert repmlp.verify(model, repmlp.reparameterize(model), torch.randn(3, 3, 12, 16, dtype=dtype), tolerance)


def test_on_the_meta_device(family):
    model = repmlp.inject_locality(MlpMixer(**SMALL, **FAMILIES[family], device="meta"))
    x = torch.empty(2, 3, 12, 16, device="meta")
    assert model(x).shape == repmlp.reparameterize(model)(x).shape == (2, 5)


# Networks that timm did not make


class OneTokenMore(nn.Module):
    """A network with a class token, whose tokens are mixed by an FC with a name of its own."""

    def __init__(self, mix=None):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.mixers = nn.ModuleList(mix or nn.Linear(13, 13) for _ in range(2))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)  # (N, 12, 6)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)  # (N, 13, 6)
        for mixer in self.mixers:
            x = x + mixer(x.transpose(1, 2)).transpose(1, 2)
        return self.head(x[:, 0])


NAMES = ["mixers.0", "mixers.1"]


def test_named_layers_and_a_class_token(images):
    model = scramble(OneTokenMore().double())
    expected, keys = model(images), model.state_dict().keys()
    repmlp.inject_locality(model, (1, 3), layers=NAMES, grid=(3, 4), class_token=True)
    assert_same(model(images), expected)
    scramble(model, seed=1)
    merged = repmlp.reparameterize(model)
    assert merged.state_dict().keys() == keys
    assert_close(merged(images), model(images).detach(), 1e-10)


def test_an_fc_with_two_names_is_one_fc(images):
    model = scramble(OneTokenMore(nn.Linear(13, 13)).double())
    assert model.mixers[0] is model.mixers[1]
    repmlp.inject_locality(model, layers=NAMES, grid=(3, 4), class_token=True)
    scramble(model, seed=1)
    expected = model(images).detach()
    for network in (model, repmlp.reparameterize(model)):
        assert network.mixers[0] is network.mixers[1]
        assert_close(network(images), expected, 1e-10)


def test_the_model_itself_and_layers_with_sizes_of_their_own():
    model = nn.Linear(6, 6)
    repmlp.inject_locality(model, layers=[""], grid=(2, 3), kernel_sizes=(1,))
    scramble(model)
    x = torch.randn(2, 6)
    expected = model(x).detach()
    merged = repmlp.reparameterize(model, inplace=True)
    assert merged is model
    assert type(model) is nn.Linear
    assert_close(model(x), expected, 1e-5)

    model = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 12))
    repmlp.inject_locality(model, (1,), layers="0", grid=(2, 3))
    repmlp.inject_locality(model, ((3, 1), 3), layers="1", grid=(3, 4))
    assert injected_locality(model) == [
        {"kernel_sizes": [[1, 1]], "layers": ["0"], "grid": [2, 3], "class_token": False},
        {"kernel_sizes": [[3, 1], [3, 3]], "layers": ["1"], "grid": [3, 4], "class_token": False},
    ]
    assert injected_locality(repmlp.reparameterize(model)) == []


# What is refused, and leaves the model as it was


def refused(model, message, **arguments):
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        repmlp.inject_locality(model, **arguments)
    assert [type(module) for module in model.modules()] == kinds


def test_a_network_without_token_mixing_fcs():
    model = timm.create_model("resnet10t", device="meta")
    refused(model, "nothing to inject into: this ResNet has no token-mixing FC of timm's ResMLP, gMLP or")
    refused(
        OneTokenMore(), r"nothing to inject into: this OneTokenMore .*; pass the names of its FCs as layers, and their"
    )


def test_a_mixer_whose_hidden_width_is_no_multiple_of_its_tokens():
    model = timm.create_model("mixer_b16_224", device="meta")
    refused(
        model, r"blocks\.0\.mlp_tokens\.fc1: 384 outputs are not a multiple of the 196 tokens of a 14x14 grid, so they"
    )
    refused(model, "build the network with a width of 196 or 392 there")


def test_a_grid_that_is_not_that_of_the_model():
    refused(small("ResMLP"), "the grid 4x3 does not match the model, whose patches form 3x4: omit grid", grid=(4, 3))
    refused(small("ResMLP"), "the grid 4x4 does not match the model", grid=4)
    refused(
        OneTokenMore(), r"mixers\.0: 13 inputs are not a multiple of the 16 tokens of a 4x4 grid", layers=NAMES, grid=4
    )
    refused(OneTokenMore(), "mixers.0: 13 inputs .*: pass class_token=True if the first", layers=NAMES, grid=(3, 4))
    refused(OneTokenMore(), r"the token grid of this OneTokenMore is not known: pass grid=\(H, W\)", layers=NAMES)
    repmlp.inject_locality(small("ResMLP"), grid=(3, 4))


def test_a_layer_that_is_not_there_or_is_no_fc_over_tokens():
    model = small("ResMLP")
    refused(
        model,
        r"this MlpMixer has no layer 'blocks\.0\.linear_token', did you mean blocks\.0\.linear_tokens",
        layers=["blocks.0.linear_token"],
    )
    refused(model, r"has no layer 'xyz': model\.named_modules\(\) lists its layers", layers=["xyz"])
    refused(model, r"^blocks\.0: ResBlock is not an FC over tokens", layers=["blocks.0"])
    refused(model, r"^stem\.proj: Conv2d is not an FC over tokens", layers=["blocks.0.linear_tokens", "stem.proj"])
    refused(model, "^head: 16 inputs are not a multiple of the 12 tokens", layers=["blocks.0.linear_tokens", "head"])
    refused(nn.ReLU(), "^the model: ReLU is not an FC over tokens", layers=[""], grid=2)


def test_kernels_that_do_not_fit():
    refused(small("gMLP"), "proj: kernel 2x2 is even", kernel_sizes=(2,))
    refused(small("gMLP"), "proj: kernel 5x5 is larger than the 3x4 map", kernel_sizes=(1, 5))
    refused(small("gMLP"), "must name one or more kernels", kernel_sizes=())
    for sizes in ("3", ("3",), 1.5, True, None, ((1, 3, 3),)):
        refused(small("gMLP"), r"kernel_sizes .* must be ints or pairs of ints \(kh, kw\)", kernel_sizes=sizes)
    repmlp.inject_locality(small("gMLP"), 3)
    repmlp.inject_locality(small("gMLP"), ((1, 3),))


def test_twice(family, plain):
    repmlp.inject_locality(plain)
    refused(plain, r"^blocks\.0\..*: it has a Local Perceptron already: reparameterize the model first")


def test_a_model_without_convs_has_nothing_to_convert():
    with pytest.raises(ValueError, match=r"nothing to convert: .* and what repmlp\.inject_locality was called on have"):
        repmlp.reparameterize(small("ResMLP"))


def test_a_network_with_injected_convs_is_traced_and_scripted_as_the_plain_one_is(plain, images):
    model = repmlp.inject_locality(plain, (1, 3)).eval()
    for traced in (torch.fx.symbolic_trace(model), torch.jit.script(model)):
        assert_same(traced(images), model(images))
        assert_same(traced(images[:1]), model(images[:1]))
    assert model(images[:0]).shape == (0, 5)


def test_one_kernel_size_may_be_a_number(plain):
    repmlp.inject_locality(plain, 3)
    assert {tuple(call["kernel_sizes"][0]) for call in injected_locality(plain)} == {(3, 3)}
