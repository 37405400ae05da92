"""The grouped fully-connected layer as a module."""

import math

import torch
from torch import Tensor, nn

from ..functional import grouped_linear


class GroupedLinear(nn.Module):
    """One FC per group, all at once: ``y = grouped_linear(x, weight, bias)``.

    Args:
        in_features, out_features: over all groups.
        groups: g; divides both.
        bias: learn a bias of ``out_features``.

    Shape: (M, in_features) -> (M, out_features); weight (g, out_features/g, in_features/g).

    Raises:
        ValueError: if ``groups`` does not divide both numbers of features.
    """

    def __init__(
        self, in_features: int, out_features: int, groups: int = 1, bias: bool = True, device=None, dtype=None
    ) -> None:
        super().__init__()
        if groups < 1 or in_features % groups or out_features % groups:
            raise ValueError(f"{groups} groups do not divide {in_features} input and {out_features} output features")
        dd = {"device": device, "dtype": dtype}
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        self.weight = nn.Parameter(torch.empty(groups, out_features // groups, in_features // groups, **dd))
        self.bias = nn.Parameter(torch.empty(out_features, **dd)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(in_features/g): what ``nn.Linear`` does, for each group."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return grouped_linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, groups={self.groups}, bias={self.bias is not None}"
