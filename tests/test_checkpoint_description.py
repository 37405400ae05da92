"""A model folder describes a network to timm, which has to build the same one from it; others are refused."""

import pytest
import timm
import torch
from timm.utils.model import freeze_batch_norm_2d
from torch.nn.utils import parametrizations

import repmlp
from repmlp.models.cifar import CifarNet
from weights import randomize

ARGS = {"img_size": 16, "channels": [4, 8], "partition_size": 4, "kernel_sizes": [1, [3, 1]], "in_chans": 1}


@pytest.fixture
def model():
    return randomize(timm.create_model("repmlp_cifar", **ARGS))


def with_eps(model):
    model.stages[0][0].bn.eps = 0.1


def with_another_activation(model):
    model.stages[0][1] = torch.nn.GELU()


def with_another_head(model):
    model.head.fc = torch.nn.Linear(model.head.fc.in_features, 7)


def with_a_computed_weight(model):
    parametrizations.weight_norm(model.head.fc)


def with_other_padding(model):
    model.stages[0][0].conv.padding_mode = "circular"


def with_one_more_activation(model):
    model.stages[0].append(torch.nn.Sigmoid())


REFUSED = {
    with_eps: r"eps of stages.0.0.bn is 0.1 in the model, but 1e-05 in the network that timm builds",
    with_another_activation: r"is GELU",
    with_another_head: r"head.fc.bias is of shape \[7\] in the model, but of shape \[10\]",
    with_a_computed_weight: r"head.fc.parametrizations.weight.original0 is of shape",
    with_other_padding: r"padding_mode of stages.0.0.conv is circular in the model, but zeros",
    with_one_more_activation: r"stages.0.\d+ is Sigmoid in the model, but missing",
}


@pytest.mark.parametrize("change", REFUSED)
def test_a_network_that_timm_would_rebuild_as_another_one_is_refused(model, tmp_path, change):
    change(model)
    with pytest.raises(ValueError, match=f"^this CifarNet cannot be saved as a model folder.*{REFUSED[change]}"):
        repmlp.save_model(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.reset_classifier(7),
        lambda model: timm.layers.convert_sync_batchnorm(model),
        lambda model: model.stages[0].train(),
        lambda model: model.requires_grad_(False),
    ],
)
def test_what_changes_nothing_that_is_rebuilt_may_differ(model, tmp_path, change):
    changed = change(model)
    model = changed if isinstance(changed, type(model)) else model
    model.eval()
    plain = repmlp.load_model(repmlp.save_model(model, tmp_path / "m"))
    assert all(torch.equal(t, plain.state_dict()[name]) for name, t in model.state_dict().items())


def test_saving_draws_no_random_numbers_though_the_network_reads_values_while_it_is_built(tmp_path, monkeypatch):
    build = CifarNet.__init__
    rates = []  # drop rates, say

    def build_from_values(self, *args, **kwargs):
        rates.append(torch.linspace(0, 1, 3).tolist())  # fails on the meta device
        build(self, *args, **kwargs)

    monkeypatch.setattr(CifarNet, "__init__", build_from_values)
    model = timm.create_model("repmlp_cifar", **ARGS)
    state = torch.get_rng_state()
    repmlp.save_model(model, tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), state)
    assert len(rates) == 2


def with_torchs_synchronized_norms(model):
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # whose forward leaves out the activation


def with_other_layer_norms(model):
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1.0
    return model


def with_other_pooling(model):
    for module in model.modules():
        if isinstance(module, torch.nn.AvgPool2d):
            module.count_include_pad = True
    return model


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "mobilenetv3_small_050",
            with_torchs_synchronized_norms,
            r"is a batch norm in the model, but a .* with an activation",
        ),
        ("convnext_atto", with_other_layer_norms, r"eps of .* is 1.0 in the model, but 1e-06"),
        ("poolformer_s12", with_other_pooling, r"count_include_pad of .* is True in the model, but False"),
    ],
)
def test_what_a_layer_does_without_weights_is_compared_too(name, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        repmlp.save_model(change(timm.create_model(name)), tmp_path / "m")


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050"])
def test_frozen_norms_are_those_that_timm_builds(name, tmp_path):
    model = freeze_batch_norm_2d(randomize(timm.create_model(name))).eval()
    loaded = repmlp.load_model(repmlp.save_model(model, tmp_path / "m"))
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    expected = model(x)
    assert (loaded(x) - expected).norm() < 1e-5 * expected.norm()  # timm's frozen norms round in another order


def test_drop_rates_that_the_config_does_not_name_may_differ(tmp_path):
    model = timm.create_model("test_resnet", drop_path_rate=0.1, drop_rate=0.1)
    assert repmlp.load_model(repmlp.save_model(model, tmp_path / "m"))
