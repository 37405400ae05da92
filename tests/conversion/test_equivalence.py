"""``verify`` tells two forms of a model apart, or proves that they are the same; and it touches neither."""

import copy
import json

import pytest
import timm
import torch
from torch import nn

import repmlp
from compare import assert_same
from repmlp.conversion import Deviation, example_inputs
from repmlp.conversion.rounding import LIMIT
from repmlp.layers import ConvNorm
from weights import randomize

SMALL = {"img_size": 16, "channels": (4, 8), "partition_size": 4, "kernel_sizes": (1, 3)}
BLOCKS = ["stages.0.2", "stages.0.6", "stages.1.3", "stages.1.7"]


def small_net(dtype=torch.float32, **kwargs):
    return randomize(timm.create_model("repmlp_cifar", **SMALL, **kwargs).to(dtype))


@pytest.fixture(scope="module")
def pair():
    model = small_net()
    return model, repmlp.reparameterize(model)


@pytest.fixture
def model(pair):
    return copy.deepcopy(pair[0])


@pytest.fixture
def deployed(pair):
    return copy.deepcopy(pair[1])


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_forms_are_equal_in_every_dtype(dtype):
    model = small_net(dtype)
    report = repmlp.verify(model, repmlp.reparameterize(model))
    assert report
    assert report.equal
    assert f"torch.{report.dtype}" == str(dtype)
    assert report.tolerance is None
    # the errors are those of rounding: of all arithmetic, and in float64 once, of the converted weights
    eps = torch.finfo(dtype).eps
    for row in (*report.blocks, report.network):
        assert row.native.relative < 16 * eps
        assert row.float64.relative < (16 * eps if dtype == torch.float64 else eps / 2)
        assert 0 < row.ratio < 2  # a conversion in float64 is one rounding


def test_two_forms_are_equal_on_given_inputs(model, deployed):
    report = repmlp.verify(model, deployed, torch.randn(5, 3, 16, 16))
    assert report
    assert (report.num_agree, report.num_images) == (5, 5)


def test_a_model_equals_itself_exactly(model):
    report = repmlp.verify(model, model)
    assert report
    assert {(e.maximum, e.relative) for row in report.blocks for e in (row.native, row.float64)} == {(0.0, 0.0)}
    assert {row.ratio for row in (*report.blocks, report.network)} == {0.0}


def test_a_root_that_is_a_block():
    block = randomize(repmlp.RepMLP(4, 6, (4, 6), (2, 3), (1,), groups=2))
    report = repmlp.verify(block, repmlp.reparameterize(block))
    assert report
    assert (report.blocks, report.worst_block, report.num_images) == ((), None, 0)
    assert report.network.name == "whole network"


def test_every_block_is_reported_in_order(model, deployed):
    names = [row.name for row in repmlp.verify(model, deployed).blocks]
    assert names == [name for name, _ in repmlp.conversion.iter_reparameterizable(model)]
    assert set(names) >= set(BLOCKS)


# What must not be called equal


@pytest.mark.parametrize("name", BLOCKS)
def test_one_flipped_sign_in_fc3_is_found_in_its_block(model, deployed, name):
    weight = deployed.get_submodule(name).partition_perceptron.fc3.weight
    middle = weight.abs().flatten().median()
    index = (weight.abs() - middle).abs().argmin()  # no large weight: one of middling size
    with torch.no_grad():
        weight.view(-1)[index] *= -1
    report = repmlp.verify(model, deployed, torch.rand(8, 3, 16, 16))
    assert not report
    assert report.worst_block.name == name
    assert [row.name for row in report.blocks if row.ratio > 2] == [name]  # inputs of its own: no error is passed on
    assert report.first_difference.name == name
    assert report.first_difference.tensor == f"{name}.partition_perceptron.fc3.weight"
    assert f"First difference in {name}, in tensor {name}.partition_perceptron.fc3.weight" in str(report)


def test_an_error_of_a_few_roundings_is_found(model, deployed):
    with torch.no_grad():
        for p in deployed.get_submodule("stages.0.6").partition_perceptron.parameters():
            p.mul_(1 + 4e-6)
    report = repmlp.verify(model, deployed)
    assert all(row.native.relative <= 1e-5 for row in report.blocks)
    assert not report


def test_a_forgotten_norm_is_found(model, deployed):
    model.get_submodule("stages.1.3").global_perceptron.bn.running_mean += 0.5  # after the conversion
    report = repmlp.verify(model, deployed)
    assert not report
    assert report.worst_block.name == "stages.1.3"


def test_a_dropped_norm_is_found():
    model = randomize(nn.Sequential(ConvNorm(3, 4), nn.ReLU(), ConvNorm(4, 4)))
    forgetful = copy.deepcopy(model)
    forgetful[2].bn = nn.Identity()
    report = repmlp.verify(model, forgetful, torch.randn(2, 3, 5, 5))
    assert not report
    assert report.first_difference.name == "2"
    assert len(report.blocks) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["first", "second", "both"])
def test_a_number_that_is_none_is_not_equal_to_anything(value, where):
    model = randomize(nn.Sequential(ConvNorm(3, 4), nn.Conv2d(4, 4, 1)))
    deployed = repmlp.reparameterize(model)
    models = {"first": [model], "second": [deployed], "both": [model, deployed]}[where]
    with torch.no_grad():
        for m in models:
            m[1].bias[0] = value
    report = repmlp.verify(model, deployed, torch.randn(2, 3, 4, 4))
    assert not report
    assert report.network.native.relative == report.network.float64.relative == float("inf")
    giver = "both models give" if where == "both" else f"the {where} model gives"
    assert f"{giver} NaN or infinity" in str(report)


def test_a_nan_inside_a_block_is_found(model, deployed):
    with torch.no_grad():
        deployed.get_submodule("stages.0.2").partition_perceptron.fc3.bias[3] = float("nan")
    report = repmlp.verify(model, deployed)
    assert not report
    assert report.worst_block.name == "stages.0.2"


def test_an_output_that_should_be_zero_is_not_equal():
    zero, one = nn.Linear(2, 2), nn.Linear(2, 2)
    nn.init.zeros_(zero.weight)
    nn.init.zeros_(zero.bias)
    assert not repmlp.verify(zero, one, torch.ones(1, 2))
    assert repmlp.verify(zero, copy.deepcopy(zero), torch.ones(1, 2))


def test_predictions_that_differ_are_counted():
    a = nn.Linear(3, 3, bias=False)
    b = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        a.weight.copy_(torch.eye(3))
        b.weight.copy_(torch.eye(3)[[0, 2, 1]])
    report = repmlp.verify(a, b, torch.eye(3)[[0, 0, 1, 2, 0]])
    assert (report.num_agree, report.num_images) == (3, 5)
    assert "3 of 5 top-1 predictions agree" in str(report)


def test_errors_are_what_they_say():
    a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        a.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        b.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.5]]))
    report = repmlp.verify(a, b, torch.ones(1, 2))  # (3, 4) against (3, 4.5)
    assert report.network.native == Deviation(maximum=0.5, relative=0.1)


# The verdict


def test_the_rounding_is_that_of_the_coarser_dtype(model, deployed):
    for a, b in ((model, deployed.bfloat16()), (copy.deepcopy(deployed).bfloat16(), model)):
        report = repmlp.verify(a, b)
        assert report
        assert report.dtype == "bfloat16"


@pytest.mark.parametrize("seed", [13, 19, 30, 61, 74, 106])
def test_one_model_in_bfloat16_is_equal_although_its_rounding_may_cancel_by_chance(seed):
    """Logits that hardly depend on the image: the rounding of each is one number, and near zero in one of ten."""
    torch.manual_seed(seed)
    model = small_net()
    deployed = repmlp.reparameterize(model).bfloat16()
    assert repmlp.verify(model, deployed)
    assert repmlp.verify(deployed, model)
    with torch.no_grad():
        deployed.head.fc.weight[3] *= 1.5
    assert not repmlp.verify(model, deployed)


def test_a_tolerance_can_be_given(model, deployed):
    assert not repmlp.verify(model, deployed, tolerance=1e-12)
    assert repmlp.verify(model, deployed, tolerance=1e-6)
    assert not repmlp.verify(model, deployed, tolerance=0.0)
    assert repmlp.verify(model, model, tolerance=0.0)


@pytest.mark.parametrize("tolerance", [-1e-9, float("nan")])
def test_a_tolerance_that_nothing_can_meet_is_refused(model, tolerance):
    with pytest.raises(ValueError, match=f"tolerance is {tolerance}, but has to be 0 or more"):
        repmlp.verify(model, model, tolerance=tolerance)


def test_the_report_as_text(model, deployed):
    report = repmlp.verify(model, deployed)
    header, *rows, verdict = str(report).splitlines()
    assert header.split("  ")[0] == "block"
    assert [row.split()[0] for row in rows] == [*(block.name for block in report.blocks), "whole"]
    assert len({len(line) for line in (header, *rows)}) == 1
    assert verdict == (
        f"equal within {LIMIT:g} times the effect of rounding the float32 weights once, 8 of 8 top-1 predictions agree"
    )


def test_the_report_as_a_dict_is_json(model, deployed):
    report = repmlp.verify(model, deployed)
    as_dict = json.loads(json.dumps(report.to_dict()))
    assert as_dict["equal"] is True
    assert as_dict["blocks"][0]["name"] == report.blocks[0].name
    assert as_dict["network"]["float64"]["relative"] == report.network.float64.relative
    assert as_dict["num_images"] == 8


# What it takes and what it leaves


def test_neither_model_is_changed(model, deployed):
    model.train()
    model.register_forward_hook(lambda *_: None)
    hooks = {name: len(m._forward_hooks) for name, m in model.named_modules()}
    before = copy.deepcopy([model.state_dict(), deployed.state_dict()])
    repmlp.verify(model, deployed)
    assert model.training
    assert not deployed.training
    assert {name: len(m._forward_hooks) for name, m in model.named_modules()} == hooks
    for m, state in zip((model, deployed), before, strict=True):
        assert {t.dtype for t in m.parameters()} == {torch.float32}
        assert all(p.requires_grad and p.grad is None for p in m.parameters())
        for name, tensor in m.state_dict().items():
            assert_same(tensor, state[name])


def test_a_model_in_training_mode_is_compared_in_eval_mode(model, deployed):
    assert repmlp.verify(model.train(), deployed.train())


def test_outputs_that_are_lists():
    model = randomize(timm.create_model("repmlp_cifar", **SMALL, features_only=True))
    deployed = repmlp.reparameterize(model)
    x = torch.randn(2, 3, 16, 16)
    report = repmlp.verify(model, deployed, x)
    assert report
    assert report.num_images == 0
    broken = copy.deepcopy(deployed)
    with torch.no_grad():
        next(broken.parameters()).mul_(1.01)
    assert not repmlp.verify(model, broken, x)


def test_a_model_behind_a_wrapper(model, deployed):
    report = repmlp.verify(nn.Sequential(model), deployed, torch.randn(2, 3, 16, 16))
    assert report
    assert report.blocks == ()


def test_outputs_of_different_shapes_are_an_error(model):
    with pytest.raises(ValueError, match=r"outputs differ in shape, \[4, 10\] and \[4, 7\]: not the same model"):
        repmlp.verify(model, small_net(num_classes=7))


def test_example_inputs_have_the_size_that_the_model_states():
    x = example_inputs(small_net(torch.float64, in_chans=1), batch_size=3)
    assert (x.shape, x.dtype) == ((3, 1, 16, 16), torch.float64)
    rectangular = timm.create_model("repmlp_cifar", **{**SMALL, "img_size": (16, 24)})
    assert example_inputs(rectangular).shape == (8, 3, 16, 24)
    assert example_inputs(rectangular, 1).shape == (1, 3, 16, 24)
    block = repmlp.RepMLP(4, 4, (4, 6), (2, 3), (1,))
    assert example_inputs(block).shape == (8, 4, 4, 6)
    assert_same(example_inputs(block), example_inputs(block))
    assert example_inputs(timm.create_model("repmlp_cifar", **SMALL, device="meta")).device.type == "meta"


def test_a_model_that_states_no_size_needs_inputs():
    model = nn.Sequential(ConvNorm(3, 4))
    with pytest.raises(ValueError, match="Conv2d does not state its input size"):  # it states its channels
        example_inputs(nn.Conv2d(3, 4, 1))
    with pytest.raises(
        ValueError, match=r"Sequential does not state its input size: pass inputs, a tensor \(N, C, H, W\)"
    ):
        repmlp.verify(model, model)
    assert repmlp.verify(model, repmlp.reparameterize(model), torch.randn(1, 3, 4, 4))


# Any signature


class Several(nn.Module):
    """Several inputs, one of them integers; outputs of several kinds."""

    def __init__(self):
        super().__init__()
        self.embedding, self.fc, self.block = nn.Embedding(5, 3), nn.Linear(3, 4), ConvNorm(3, 4)

    def forward(self, tokens, image, scale=1.0):
        x, y = self.fc(self.embedding(tokens)), self.block(image)
        return {"tokens": x * scale, "maps": [y, (y.mean((2, 3)), None)], "scale": scale}


@pytest.mark.parametrize("keywords", [False, True])
def test_several_inputs_and_nested_outputs(keywords):
    model = randomize(Several())
    tokens, image = torch.tensor([[0, 1], [4, 2]]), torch.randn(2, 3, 4, 4)
    inputs = {"image": image, "tokens": tokens, "scale": 2.0} if keywords else (tokens, image)
    deployed = repmlp.reparameterize(model)
    assert repmlp.verify(model, deployed, inputs)
    with torch.no_grad():
        deployed.embedding.weight[3] += 1  # a token that is not in the inputs
    report = repmlp.verify(model, deployed, inputs)
    assert report.network.float64.relative < 1e-7
    assert not report
    assert report.first_difference.name == "embedding"
    assert report.first_difference.tensor == "embedding.weight"


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_callable_is_compared_as_a_whole(model, deployed):
    x = torch.randn(4, 3, 16, 16)
    assert repmlp.verify(model, lambda x: [deployed(x).numpy()], x)  # as a session of an engine
    assert repmlp.verify(model, torch.jit.trace(deployed, x, check_trace=False), x)
    report = repmlp.verify(model, lambda x: deployed(x) * (1 + 1e-3), x)
    assert not report
    assert report.first_difference.name == "whole network"


def test_autocast_and_inference_mode_change_nothing(model, deployed):
    expected = repmlp.verify(model, deployed)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert repmlp.verify(model, deployed) == expected


@pytest.mark.parametrize("which", [0, 1])
def test_a_forward_that_a_copy_would_share_is_refused(model, deployed, which):
    """Else the copy would run the original, and any error in it would be found equal."""
    models = [model, deployed]
    head = models[which].head
    forward = head.forward
    head.forward = lambda x: forward(x)
    with pytest.raises(ValueError, match="head"):
        repmlp.verify(*models)
    del head.forward
    assert repmlp.verify(*models)


def test_zero_images_are_refused_and_one_is_enough(model, deployed):
    with pytest.raises(ValueError, match="inputs have zero images: pass one or more"):
        repmlp.verify(model, deployed, torch.zeros(0, 3, 16, 16))
    with pytest.raises(ValueError, match="cannot make -1 images"):
        example_inputs(model, -1)
    assert repmlp.verify(model, deployed, torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize("tolerance", [-1e-9, float("nan")])
def test_a_tolerance_is_zero_or_more(model, deployed, tolerance):
    with pytest.raises(ValueError, match="but has to be 0 or more"):
        repmlp.verify(model, deployed, tolerance=tolerance)
    assert repmlp.verify(model, deployed, tolerance=0.5)
    assert repmlp.verify(model, model, tolerance=0)


def test_models_that_rounding_changes_too_much_are_not_called_equal_as_a_whole():
    """Compared by module they are."""
    torch.manual_seed(0)
    model = randomize(nn.Sequential(ConvNorm(3, 4), nn.ReLU(), ConvNorm(4, 4)).bfloat16())
    with torch.no_grad():
        model[2].bn.running_mean *= 100
        model[2].bn.bias.copy_(100 * model[2].bn.running_mean * model[2].bn.weight / 10)
    deployed, x = repmlp.reparameterize(model), torch.randn(2, 3, 5, 5)
    assert repmlp.verify(model, deployed, x)
