"""What "equal up to rounding" means in these tests."""

import numpy as np
import torch
from torch import Tensor


def assert_close(actual: Tensor, expected: Tensor | np.ndarray, tolerance: float) -> None:
    """Same shape, no NaN, and no element further off than ``tolerance`` times the largest of ``expected``."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    actual = actual.detach().double()
    assert actual.shape == expected.shape
    scale = expected.abs().max().item() if expected.numel() else 0.0
    worst = (actual - expected).abs().max().item() if expected.numel() else 0.0
    assert worst <= tolerance * scale, f"off by {worst:.2e} where the largest element is {scale:.2e}"


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """The same dtype and, bit for bit, the same numbers."""
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)
