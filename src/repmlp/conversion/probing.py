"""How modules are called inside a model, and random inputs to call them with again.

A module is compared on inputs of its own, not on what reaches it from eight images: most units of a network may be
dead on those, and a later error drowns in the scatter of all that comes before.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .differences import is_leaf
from .rounding import tensors_of, tiled

#: Rows of a probe: normal noise, a thousandth of, as large as, or 8 times as large as what the module sees; as it is,
#: all positive or all negative, as after an activation. Small inputs show the biases, large ones seldom active units.
#: 2 stands for random signs of the channels, which reach units behind a pooled mean.
PROFILES = ((1, 0), (0, 0), (2, 2), (1, 2), (2, 1), (2, -1), (1, 1), (1, -1), (0, 2), (2, 0))
SIZES_AND_SIGNS = 4  # the first of them: enough for large maps, whose channels have many samples in one row
FACTORS = (1 / 1024, 1.0, 8.0)
GROUPS = 2 * len(FACTORS)  # sizes, which are judged apart
#: A module that sees larger or smaller inputs is also probed around 1, where its biases are.
ORDINARY = (1 / 16, 16.0)
ROWS = 4  # images that calls are recorded with
MANY_SAMPLES = 64  # numbers per channel in one row of a large map
MIN_ROUNDS = 4  # of all profiles, for small maps: rows cost little, and a pooled unit is seldom active
MIN_SAMPLES = 16  # numbers per channel and size: a channel's verdict rests on so many or more
_POOL = 1_048_583  # random numbers that probes are cut from; a prime


@dataclass
class Spec:
    """What a floating-point input of a module looked like: its shape and root mean square."""

    shape: torch.Size
    scale: float
    device: torch.device


#: Positional and keyword arguments of a call.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def cast(values: Any, dtype: torch.dtype) -> Any:
    """A copy of nested values with floating-point tensors in ``dtype``: some models write to their inputs."""
    return tree_map(
        lambda v: v.to(dtype if v.is_floating_point() else v.dtype, copy=True) if isinstance(v, Tensor) else v, values
    )


def dtype_of(model: nn.Module, default: torch.dtype = torch.float32) -> torch.dtype:
    """The dtype of a model's first weight."""
    return next((t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), default)


@dataclass
class Calls:
    """How the modules of a model were called in one forward pass.

    Attributes:
        arguments: (args, kwargs) of the first call by module name, with a :class:`Spec` for each float tensor.
        followers: by module name, the modules without children that got its output as their first input, untouched.
    """

    arguments: dict[str, Arguments] = field(default_factory=dict)
    followers: dict[str, set[str]] = field(default_factory=dict)


@contextmanager
def record_calls(modules: Mapping[str, nn.Module]) -> Iterator[Calls]:
    """Record how ``modules`` are called in the block of the ``with`` statement."""
    calls = Calls()

    def before(name: str, leaf: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name not in calls.arguments:
                calls.arguments[name] = tree_map(_specify, (args, kwargs))
            source = getattr(args[0], "_made_by", None) if args else None
            if leaf and source is not None and source[1] == args[0]._version:
                calls.followers.setdefault(source[0], set()).add(name)

        return hook

    def after(name: str, leaf: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
            if next(tensors_of(output), None) is None:
                calls.arguments.pop(name, None)  # it writes into its inputs: nothing to compare
            if leaf and isinstance(output, Tensor):
                output._made_by = (name, output._version)  # type: ignore[attr-defined]

        return hook

    with ExitStack() as hooks:
        for name, module in modules.items():
            leaf = is_leaf(module)
            hooks.enter_context(module.register_forward_pre_hook(before(name, leaf), with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(after(name, leaf)))
        yield calls


def _specify(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    if not value.is_floating_point():
        return value.clone()
    scale = value.double().square().mean().sqrt().item() if value.numel() else 0.0
    return Spec(value.shape, scale or 1.0, value.device)


@cache
def _pool() -> Tensor:
    return torch.randn(_POOL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _all_indices(like: Tensor, count: int) -> Tensor:
    """0 to ``count`` - 1, as many in a row as ``like`` (N, ...) has, from 0 again to fill the last row."""
    row = like.shape[1:].numel() if like.dim() else 1
    indices = torch.arange(-(-count // max(1, row)) * max(1, row), device=like.device, dtype=like.dtype) % count
    return indices.reshape(-1, *like.shape[1:])


class Probes:
    """Random inputs of the recorded shapes, the same ones in every process and for every model.

    Args:
        arguments: recorded ones of a call.
        num_embeddings: if it is the call of an embedding, whose indices are then all of these.
    """

    def __init__(self, arguments: Arguments, num_embeddings: int | None = None) -> None:
        if num_embeddings:
            arguments = tree_map(lambda v: _all_indices(v, num_embeddings) if isinstance(v, Tensor) else v, arguments)
        self.arguments = arguments
        self.generator = torch.Generator().manual_seed(0)
        self.rows = 0  # drawn so far
        self.specs: list[Spec] = [v for v in tree_leaves(arguments) if isinstance(v, Spec)]
        ordinary = all(ORDINARY[0] <= spec.scale <= ORDINARY[1] for spec in self.specs)
        around_one = [(len(FACTORS) + size, sign) for size, sign in PROFILES]
        self.profiles = [*PROFILES, *([] if ordinary else around_one)]

    def draw(self) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
        """The arguments of one call, and the group of each row: its size."""
        rows = self.specs[0].shape[0] if self.specs and self.specs[0].shape else 0
        profiles = [self.profiles[(self.rows + row) % len(self.profiles)] for row in range(rows)]
        args, kwargs = tree_map(lambda value: self._fill(value, profiles), self.arguments)
        self.rows += max(1, rows)
        return args, kwargs, torch.tensor([size for size, _ in profiles]) if rows else None

    def zeros(self) -> Arguments:
        """The arguments of a call on zeros."""
        return tree_map(
            lambda v: torch.zeros(v.shape, dtype=torch.float64, device=v.device) if isinstance(v, Spec) else v,
            self.arguments,
        )

    def _fill(self, value: object, profiles: list[tuple[int, int]]) -> object:
        if not isinstance(value, Spec):
            return value.clone() if isinstance(value, Tensor) else value
        x = tiled(_pool(), value.shape, self.generator)
        if not x.dim() or len(x) != len(profiles):
            return (x * value.scale).to(value.device)
        scales = [scale * factor for scale in (value.scale, 1.0) for factor in FACTORS]
        for row, (size, sign) in zip(x, profiles, strict=True):
            signs = self._signs(row) if sign == 2 else sign
            row.copy_((row.abs() * signs if sign else row) * scales[size])
        return x.to(value.device)

    def _signs(self, row: Tensor) -> Tensor:
        """A random sign for each channel of a row: (C, H, W), (C) or (T, C)."""
        channels = row.shape[-1 if row.dim() == 2 else 0] if row.dim() else 1
        signs = torch.randint(0, 2, (channels,), generator=self.generator, dtype=torch.float64) * 2 - 1
        return signs if row.dim() <= 2 else signs.reshape(-1, *[1] * (row.dim() - 1))
