"""Another input size: FC1 and FC2 are re-initialized where P changed, everything else is copied."""

import pytest
import timm
import torch

import repmlp
from weights import randomize

ARGS = {"img_size": 16, "channels": [4, 8], "partition_size": 4, "kernel_sizes": [1, 3]}


@pytest.fixture
def model():
    return randomize(timm.create_model("repmlp_cifar", num_classes=7, **ARGS))


@pytest.mark.parametrize("deploy", [False, True])
def test_all_but_fc1_and_fc2_is_inherited(model, deploy):
    if deploy:
        model = repmlp.reparameterize(model)
    resized = repmlp.resize(model, (24, 32))
    assert resized.model(torch.randn(1, 3, 24, 32)).shape == (1, 7)
    assert repmlp.is_reparameterized(resized.model) == deploy
    assert {name.rsplit(".", 2)[-2] for name in resized.reinitialized} == {"fc1", "fc2"}
    assert f"re-initialized: {resized.reinitialized[0]}" in str(resized)
    old, new = model.state_dict(), resized.model.state_dict()
    assert set(resized.copied) | set(resized.reinitialized) == set(new)
    assert all(torch.equal(old[name], new[name]) for name in resized.copied)
    assert resized.dropped == ()


def test_the_same_number_of_partitions_inherits_everything(model):
    resized = repmlp.resize(model, (8, 32))
    assert resized.reinitialized == ()
    again = repmlp.resize(resized.model, 16)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again.model(x), model(x))


def test_a_global_perceptron_that_is_no_longer_there_is_named(model):
    resized = repmlp.resize(model, 8)  # stage 2 now has one partition only
    assert {name.partition(".global_perceptron.")[0] for name in resized.dropped} == {"stages.1.3", "stages.1.7"}
    assert "dropped: stages.1.3.global_perceptron.fc1.weight" in str(resized)


def test_the_global_reduction_may_change_with_it(model):
    resized = repmlp.resize(model, 32, global_reduction=4)
    assert resized.model.stages[0][2].global_perceptron.fc1.out_features == 4 * 64 // 4


def test_nothing_else_may_change(model):
    with pytest.raises(ValueError, match=r"would change from \[4, 3, 1, 1\] to \[6, 3, 1, 1\]"):
        repmlp.resize(model, 16, channels=[6, 8])
    with pytest.raises(ValueError, match=r"not made by timm\.create_model"):
        repmlp.resize(torch.nn.Linear(2, 2), 16)


def test_dtype_mode_and_the_old_model_stay(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    resized = repmlp.resize(model.double().train(), 32)
    assert resized.model.training
    assert next(resized.model.parameters()).dtype == torch.float64
    assert all(torch.equal(before[name].double(), tensor.double()) for name, tensor in model.state_dict().items())


def test_a_resized_model_can_be_saved_and_read(model, tmp_path):
    resized = repmlp.resize(model, 32).model.eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(repmlp.load_model(repmlp.save_model(resized, tmp_path / "m"))(x), resized(x))


def test_a_network_whose_convs_were_merged_is_the_plain_network():
    model = repmlp.inject_locality(timm.create_model("resmlp_6_32"))
    merged = repmlp.reparameterize(model)
    assert not repmlp.resize(merged, 32).reinitialized
    with pytest.raises(ValueError, match=r"linear_tokens.weight would change from \[64, 64\] to \[36, 36\]"):
        repmlp.resize(merged, 24)
