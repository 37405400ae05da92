"""The grouped fully-connected layer as a module."""

import math

import torch
from torch import Tensor, nn
from torch.types import Device

from ..functional import grouped_linear
from .factory import FactoryArgs

#: In training, up to this many groups run as one product each. Evaluation and export always use the batched product,
#: since they may have few rows, or any number of them.
MAX_GROUPS_BY_ROWS = 8


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
        self,
        in_features: int,
        out_features: int,
        groups: int = 1,
        *,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if groups < 1 or in_features % groups or out_features % groups:
            raise ValueError(f"{groups} groups do not divide {in_features} input and {out_features} output features")
        dd: FactoryArgs = {"device": device, "dtype": dtype}
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        self.few_groups = groups <= MAX_GROUPS_BY_ROWS
        self.weight = nn.Parameter(torch.empty(groups, out_features // groups, in_features // groups, **dd))
        self.bias = nn.Parameter(torch.empty(out_features, **dd)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(in_features/g): as ``nn.Linear``, per group."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        before_norm = self.bias is None  # a layer that a BN follows has no bias
        return grouped_linear(x, self.weight, self.bias, by_rows=self.training and before_norm and self.few_groups)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, groups={self.groups}, bias={self.bias is not None}"


torch.fx.wrap("grouped_linear")  # one node in both modes; it reads the number of groups from a shape
