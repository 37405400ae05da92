"""Norms that are synchronized keep what they were; tests/training/test_processes.py has two processes."""

import copy

import pytest
import torch
from torch import nn

from repmlp.layers import convert_sync_batchnorm

CPU = torch.device("cpu")


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


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


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 4, 5)])
@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
def test_with_one_process_it_computes_what_the_norm_does(one_process, settings, shape):
    make = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    norm = make(3, dtype=torch.float64, **settings)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    synchronized = convert_sync_batchnorm(copy.deepcopy(norm), 2, CPU)
    for _ in range(3):
        x = (5 + torch.randn(shape, dtype=torch.float64)).requires_grad_()
        x2 = x.detach().clone().requires_grad_()
        y, y2 = norm(x), synchronized(x2)
        torch.testing.assert_close(y2, y)
        y.pow(3).sum().backward()
        y2.pow(3).sum().backward()
        torch.testing.assert_close(x2.grad, x.grad)
    for mine, theirs in zip(synchronized.parameters(), norm.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    for key, value in norm.state_dict().items():
        torch.testing.assert_close(synchronized.state_dict()[key], value)


@pytest.mark.parametrize("training", [True, False])
def test_an_input_without_channels_is_an_error(training):
    norm = convert_sync_batchnorm(nn.BatchNorm1d(3), 2, CPU).train(training)
    with pytest.raises(ValueError, match=r"expected an input of shape \(N, C, \.\.\.\), got \(3,\)"):
        norm(torch.zeros(3))
