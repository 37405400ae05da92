"""Norms that are synchronized keep what they were; what they compute is tested with two processes."""

import pytest
import torch
from torch import nn

from repmlp.layers import convert_sync_batchnorm

CPU = torch.device("cpu")


def test_one_process_has_nothing_to_synchronize():
    model = nn.Sequential(nn.BatchNorm1d(3))
    assert convert_sync_batchnorm(model, 1, CPU) is model
    assert type(model[0]) is nn.BatchNorm1d


def test_a_synchronized_norm_keeps_what_it_was():
    shared = nn.BatchNorm1d(3, affine=False).double().eval()
    frozen = nn.BatchNorm2d(3, momentum=None).requires_grad_(False)
    model = nn.ModuleList([shared, shared, frozen])
    state = model.state_dict()
    model = convert_sync_batchnorm(model, 2, CPU)
    assert model[0] is model[1]
    assert all("Sync" in type(norm).__name__ for norm in model)
    assert model[0].weight is None
    assert model[0].running_mean.dtype == torch.float64
    assert not model[0].training
    assert not model[2].weight.requires_grad
    assert model[2].training
    assert model[2].momentum is None
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(model[0](x), x / (1 + shared.eps) ** 0.5)


def test_a_model_that_is_a_norm_and_one_that_cannot_be_synchronized():
    assert "Sync" in type(convert_sync_batchnorm(nn.BatchNorm1d(3), 2, CPU)).__name__
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm3d(3))
    with pytest.raises(ValueError, match="BatchNorm3d cannot be synchronized on cpu: train without sync_bn"):
        convert_sync_batchnorm(model, 2, CPU)
    assert type(model[0]) is nn.BatchNorm1d
