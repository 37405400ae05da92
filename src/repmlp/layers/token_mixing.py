"""An FC that mixes the tokens of a grid, trained with convs in parallel.

ResMLP, gMLP and MLP-Mixer mix tokens with an FC that all channels share. For each channel, the tokens of an H x W
grid in row-major order form a map of one channel, which the FC maps to one or r such maps. A conv on maps is an FC
too. So this FC can train with a Local Perceptron in parallel that is merged into it afterwards, as into FC3 of a
RepMLP block (v1, sections 3.3 and 3.4). The papers do not do this, but the maths is theirs.

N images, C channels that share the FC, H,W grid, T = H*W tokens, g groups, I/O maps in/out of all groups, K kernel.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import add_conv_to_linear_, grouped_linear, to_double
from .factory import FactoryArgs
from .grouped_linear import GroupedLinear
from .perceptrons import LocalPerceptron


class TokenMixing(nn.Module):
    """``FC(x) + sum_K BN(conv_K(x))``, a temporary form of a plain FC.

    Do not construct it: ``attach_local_perceptron_`` converts an existing FC in place, keeping its parameters. The
    FC sees a class token in front of the grid's tokens, the convs do not.

    Shape: as for the FC, tokens on ``token_axis``: (..., I*T) -> (..., O*T), plus one on each side with a class token.

    Attributes:
        grid: (H, W).
        class_token: whether a class token precedes the grid's tokens.
        local_perceptron: the convs and their BNs.
    """

    grid: tuple[int, int]
    class_token: bool
    deploy: bool
    if TYPE_CHECKING:  # TorchScript reads annotations, and supports none of modules and types
        fc_type: type[nn.Module]  # the class of the plain FC
        local_perceptron: LocalPerceptron

    def _local(self, x: Tensor, C: int, like: Tensor) -> Tensor:
        """The sum of the branches for x (..., C, I*T) in the shape (..., C, O*T) of ``like``; 0 for a class token.

        Works in TorchScript, under fx and for a batch of 0 images, which needs the shape of ``like``.
        """
        H, W = self.grid
        x = x[..., int(self.class_token) :]  # (..., C, I*T)
        maps = x.reshape(-1, C * self.local_perceptron.in_channels, H, W)  # (N, C*I, H, W)
        y: Tensor | None = None
        for branch in self.local_perceptron.branches.values():
            # All channels share the kernel, as if the branch ran on (N*C, I, H, W). One conv of C groups computes the
            # same, without the slowness of one-channel maps.
            conv = branch.conv
            kernel = conv.weight.repeat(C, 1, 1, 1)
            z = F.conv2d(maps, kernel, padding=conv.padding, groups=C * conv.groups)
            z = branch.bn(z.reshape(-1, self.local_perceptron.out_channels, H, W))  # (N*C, O, H, W)
            y = z if y is None else y + z
        assert y is not None
        y = y.flatten(1)  # (N*C, O*T)
        if self.class_token:
            y = F.pad(y, [1, 0])
        return y.reshape(like.shape)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Merge the convs and BNs into the FC and become the plain FC again, in place.

        The module changes its class back, as PyTorch's lazy modules do: the network has its original layers and
        state-dict keys again, and references to this module or its parameters stay valid.
        """
        fc: Any = self
        (H, W), first, local = self.grid, int(self.class_token), self.local_perceptron
        kernel, bias = (to_double(t) for t in local.equivalent_conv())  # (O, I/g, kh, kw), (O)
        weight = to_double(grouped_weight(fc))  # (g, Q, I)
        add_conv_to_linear_(weight[:, first:, first:], kernel, self.grid, local.groups)
        fc.weight.copy_(weight.view_as(fc.weight))
        fc.bias[first:] = to_double(fc.bias[first:]) + bias.repeat_interleave(H * W)
        del self.local_perceptron, self.grid, self.class_token
        self.deploy = self.locality_merged = True
        self.__class__ = self.fc_type  # type: ignore[assignment]

    def extra_repr(self) -> str:
        H, W = self.grid
        return f"{super().extra_repr()}, grid={H}x{W}, class_token={self.class_token}"


class TokenMixingLinear(TokenMixing, nn.Linear):
    """An FC on the last axis, as in timm's networks: x is (N, C, I*T)."""

    fc_type = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        maps = torch.atleast_2d(x)
        return y + self._local(maps, maps.shape[-2], y)


class TokenMixingConv1d(TokenMixing, nn.Conv1d):
    """An FC on the middle axis, written as a conv of kernel size 1: x is (N, I*T, C), with tokens before channels."""

    fc_type = nn.Conv1d

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv1d(x, self.weight, self.bias, groups=self.groups)
        return y + self._local(x.transpose(-1, -2), x.shape[-1], y.transpose(-1, -2)).transpose(-1, -2)


class TokenMixingGroupedLinear(TokenMixing, GroupedLinear):
    """One FC per group, for example per channel: x is (N, I*T), with one map or r of them per group."""

    fc_type = GroupedLinear

    def forward(self, x: Tensor) -> Tensor:
        y = grouped_linear(x, self.weight, self.bias)
        return y + self._local(x, 1, y)


_CLASSES: dict[type[nn.Module], type[TokenMixing]] = {
    cls.fc_type: cls for cls in (TokenMixingLinear, TokenMixingConv1d, TokenMixingGroupedLinear)
}


def grouped_weight(fc: Any) -> Tensor:
    """A view of the FC's weight as (g, outputs per group, inputs per group)."""
    groups = getattr(fc, "groups", 1)
    return fc.weight.view(groups, len(fc.bias) // groups, -1)


def build_local_perceptron(
    fc: Any, grid: tuple[int, int], kernel_sizes: Iterable[int | tuple[int, int]], class_token: bool = False
) -> LocalPerceptron:
    """Build a Local Perceptron in parallel with a token-mixing FC. Its BN weights, hence its output, start at zero.

    Args:
        fc: an ``nn.Linear``, ``nn.Conv1d`` of kernel size 1 or :class:`GroupedLinear`, with a bias.
        grid: (H, W) of the tokens.
        kernel_sizes: of the convs, ints or (kh, kw), odd and not larger than the grid.
        class_token: whether a class token precedes the grid, in input and output.

    Raises:
        ValueError: if ``fc`` is not such a layer, or sizes do not fit.
    """
    H, W = grid
    _check_layer(fc)
    if min(grid) < 1:
        raise ValueError(f"the grid {H}x{W} must be positive")
    weight = grouped_weight(fc)
    groups, outputs, inputs = weight.shape
    if groups > 1 and class_token:
        raise ValueError(f"an FC of {groups} groups cannot have a class token: keep it out of the layer")
    I, O = (_maps(width, side, grid, class_token) for width, side in ((inputs, "inputs"), (outputs, "outputs")))
    if min(I, O) > 1:
        raise ValueError(
            f"it maps {I} maps of the {H}x{W} grid to {O}, and one side of a token-mixing FC is a single map: "
            f"pass the grid that its tokens form"
        )
    dd: FactoryArgs = {"device": weight.device, "dtype": weight.dtype}
    local = LocalPerceptron(groups * I, groups * O, kernel_sizes, groups, map_size=grid, **dd)
    for branch in local.branches.values():
        nn.init.zeros_(branch.bn.weight)
    return local.train(fc.training)


def attach_local_perceptron_(
    fc: nn.Module, local: LocalPerceptron, grid: tuple[int, int], class_token: bool = False
) -> None:
    """Make an FC compute ``FC(x) + local(x)``, in place. Its parameters keep their names.

    Args:
        fc: the FC; :meth:`TokenMixing.reparameterize` turns it back into a plain one.
        local: built by :func:`build_local_perceptron` for ``fc`` and the same ``grid`` and ``class_token``.
    """
    made: Any = fc
    made.grid, made.class_token, made.local_perceptron, made.deploy = grid, class_token, local, False
    made.__class__ = _CLASSES[type(fc)]


def _check_layer(fc: Any) -> None:
    kind = type(fc).__name__
    if isinstance(fc, TokenMixing):
        raise ValueError("it has a Local Perceptron already: reparameterize the model first, or name other layers")
    if type(fc) not in _CLASSES:
        raise ValueError(
            f"{kind} is not an FC over tokens: name layers of type nn.Linear, nn.Conv1d with kernel size 1, "
            f"or repmlp.layers.GroupedLinear (subclasses may compute something else)"
        )
    if isinstance(fc, nn.Conv1d) and (fc.kernel_size, fc.stride, fc.padding) != ((1,), (1,), (0,)):
        raise ValueError(
            f"a Conv1d of kernel size {fc.kernel_size[0]} is not an FC over tokens: use one of kernel size 1"
        )
    if not isinstance(fc.weight, nn.Parameter):
        raise ValueError("its weight is computed from others (weight norm, pruning): make that permanent first")
    if fc.bias is None:
        raise ValueError(
            "it has no bias, so the original network could not hold the bias that the batch norms leave: "
            "build the network with a bias there"
        )


def _maps(width: int, side: str, grid: tuple[int, int], class_token: bool) -> int:
    """The number of grid maps in ``width`` inputs or outputs."""
    T, tokens = grid[0] * grid[1], width - class_token
    if tokens > 0 and tokens % T == 0:
        return tokens // T
    but = f"{width} {side} are not a multiple of the {T} tokens of a {grid[0]}x{grid[1]} grid"
    if class_token:
        raise ValueError(f"{but} and a class token: pass the grid of its tokens, and class_token=False if it has none")
    if width % T == 1 and width > T:
        raise ValueError(f"{but}: pass class_token=True if the first one is a class token")
    fitting = f"{max(1, width // T) * T} or {(max(1, width // T) + 1) * T}"
    raise ValueError(
        f"{but}, so they are not maps of it: build the network with a width of {fitting} there, "
        f"or pass the grid that its tokens form"
    )
