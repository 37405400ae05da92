"""timm's contract for every named RepMLPNet, with small partitions on small images."""

import copy

import pytest
import timm
import torch

import repmlp  # noqa: F401  (registers the networks)
from compare import assert_close
from weights import randomize

NAMES = ("repmlpnet_t224", "repmlpnet_b224", "repmlpnet_t256", "repmlpnet_b256", "repmlpnet_d256", "repmlpnet_l256")
SMALL = {"partition_sizes": (4, 2, 1, 1), "kernel_sizes": (1,), "depths": (1, 1, 2, 1), "num_classes": 5}
pytestmark = pytest.mark.parametrize("name", NAMES)


def create(name, **kwargs):
    return timm.create_model(name, **{**SMALL, **kwargs})


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 32)


@pytest.mark.parametrize("deploy", [False, True])
def test_backward_gives_every_parameter_a_gradient(name, deploy, images):
    model = create(name, deploy=deploy)
    model(images).square().sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_classifier_can_be_removed_and_put_back(name, images):
    model = create(name).eval()
    model.reset_classifier(0)
    assert model(images).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    assert model(images).shape == (2, model.num_features, 2, 1)
    model.reset_classifier(7, "avg")
    assert model(images).shape == (2, 7)
    assert model.get_classifier().out_features == 7


def test_features_and_intermediates_are_what_feature_info_states(name, images):
    torch.manual_seed(1)
    model = create(name).eval()
    torch.manual_seed(1)  # the same weights
    pyramid = create(name, features_only=True, out_indices=(0, 2, 3)).eval()
    maps = pyramid(images)
    last, intermediates = model.forward_intermediates(images, indices=[0, 2, 3])
    for a, b, channels, reduction in zip(
        maps, intermediates, pyramid.feature_info.channels(), pyramid.feature_info.reduction(), strict=True
    ):
        assert a.shape == (2, channels, 64 // reduction, 32 // reduction)
        assert torch.equal(a, b)
    assert_close(model.forward_head(last), model(images), 1e-6)


def test_checkpointing_changes_neither_outputs_nor_gradients(name, images):
    model = create(name)
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    for m in (model, other):
        m(images).square().sum().backward()
    assert torch.equal(model(images), other(images))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("trace", [torch.jit.script, torch.fx.symbolic_trace])
@pytest.mark.parametrize("deploy", [False, True])
def test_traced_code_computes_the_same(name, trace, deploy, images):
    model = randomize(create(name, deploy=deploy))
    assert_close(trace(model)(images), model(images).detach(), 1e-6)


def test_channels_last_computes_the_same(name, images):
    model = randomize(create(name))
    expected = model(images).detach()
    last = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    assert_close(last, expected, 1e-4)


def test_it_is_built_on_the_device_and_in_the_dtype_that_are_asked_for(name):
    model = create(name, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


def test_group_matcher_puts_every_parameter_into_a_group(name):
    from timm.models import group_parameters

    model = create(name)
    grouped = [key for keys in group_parameters(model, model.group_matcher()).values() for key in keys]
    assert sorted(grouped) == sorted(key for key, _ in model.named_parameters())
