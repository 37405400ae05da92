"""Parameters and multiply-adds."""

import pytest
import torch
from torch import nn

import repmlp


def test_a_model_of_torchscript_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
    expected = repmlp.complexity(model, (3, 4, 4))
    assert (expected.params, expected.macs) == (8, 96)
    for compiled in (torch.jit.script(model), nn.Sequential(torch.jit.script(model))):
        with pytest.raises(ValueError, match=r"compiled by TorchScript.*pass the model that it was made from"):
            repmlp.complexity(compiled, (3, 4, 4))
