"""How far apart two results are, and how far apart rounding alone may move them.

Two forms of a model are equal in exact arithmetic, but each form rounds its weights to their dtype. How much that
changes the outputs depends on the weights: a fixed tolerance is too strict for a badly conditioned network and too
loose for the others. So it is measured: all computations run in float64, once with the weights as they are and once
with each weight moved by one rounding of its own dtype, up or down at random.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .preparation import TABLES, copied

#: Two models are equal if no channel of an output differs by more than this many times the effect of one random
#: rounding of the weights. docs/equivalence.md shows what exact conversions need.
LIMIT = 16.0
#: Arithmetic in float64 rounds too: this share of the norm of a channel, or of all channels if that is larger, always
#: counts as rounding. Large inputs leave tiny outputs in the tail of a GELU, which rounds as if they were large.
FLOOR = 8 * torch.finfo(torch.float64).eps
#: Where the effects of rounding cancel by chance, this share of a usual channel's counts instead.
TYPICAL = 0.25
_SIGNS = 1_048_583  # a prime, so that no axis of a weight is a multiple of the period


@dataclasses.dataclass(frozen=True)
class Deviation:
    """How far an output is from its reference: ``maximum`` is absolute, ``relative`` is norm over norm."""

    maximum: float
    relative: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The worst channel of a comparison.

    Attributes:
        ratio: its difference over the effect of one rounding; infinite if an output is NaN or infinite.
        output: where in the outputs it is, as in ``[0]['logits']``; empty for a single tensor.
        channel: its index.
        note: why there is no finite ratio.
    """

    ratio: float = 0.0
    output: str = ""
    channel: int | None = None
    note: str = ""


def deviation(reference: Tensor, other: Tensor) -> Deviation:
    """Compare two tensors, in float64. NaN and infinity anywhere count as an infinite deviation.

    Raises:
        ValueError: if their shapes differ.
    """
    check_shapes(reference, other)
    reference, other = reference.detach().double(), other.detach().double()
    difference, norm = (reference - other).norm().item(), reference.norm().item()
    if difference == 0:
        return Deviation(0.0, 0.0)
    relative = difference / norm if norm else math.inf
    if not math.isfinite(relative):
        return Deviation(math.inf, math.inf)
    return Deviation((reference - other).abs().max().item(), relative)


def largest_deviation(reference: object, other: object) -> Deviation:
    """The largest :func:`deviation` of two outputs of any kind, by ``relative``."""
    pairs = ((ours, theirs) for _, (ours, theirs) in paired_tensors(reference, other))
    return max((deviation(*pair) for pair in pairs), key=lambda d: d.relative, default=Deviation(0.0, 0.0))


def tensors_of(output: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested tuples, lists, dicts and dataclasses, with their places: ``("[0]['logits']", tensor)``."""
    if isinstance(output, Tensor):
        yield path, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from tensors_of(value, f"{path}[{key!r}]")
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from tensors_of(getattr(output, field.name), f"{path}.{field.name}")
    elif isinstance(output, Sequence) and not isinstance(output, str | bytes):
        for index, value in enumerate(output):
            yield from tensors_of(value, f"{path}[{index}]")
    elif hasattr(output, "__array__") or isinstance(output, bool | int | float | complex):
        yield path, torch.as_tensor(output)
    elif hasattr(output, "__dict__") and not isinstance(output, type | nn.Module) and not callable(output):
        yield from tensors_of(vars(output), path)


def paired_tensors(a: object, b: object) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """The tensors of two outputs that belong together.

    Raises:
        ValueError: if the outputs have different structures or shapes.
    """
    ours, theirs = dict(tensors_of(a)), dict(tensors_of(b))
    if len(ours) == len(theirs) == 1:  # a session may return a list of one
        theirs = dict(zip(ours, theirs.values(), strict=True))
    if ours.keys() != theirs.keys():
        raise ValueError(f"outputs differ in structure, {list(ours)} and {list(theirs)}: not the same model")
    for path, tensor in ours.items():
        pair = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (tensor, theirs[path])]
        check_shapes(*pair)
        if tensor.numel():
            yield path, (pair[0], pair[1].to(tensor.device))


def note_on_infinity(a: Tensor, b: Tensor) -> str:
    """Which of two models gives NaN or infinity; "" if none does."""
    bad = [not t.isfinite().all() for t in (a, b)]
    if not any(bad):
        return ""
    who = "both models give" if all(bad) else f"the {'first' if bad[0] else 'second'} model gives"
    return f"{who} NaN or infinity"


def check_shapes(a: Tensor, b: Tensor) -> None:
    """Raise ValueError if two outputs have different shapes."""
    if a.shape != b.shape:
        raise ValueError(f"outputs differ in shape, {list(a.shape)} and {list(b.shape)}: not the same model")


def wide_copy(model: nn.Module) -> nn.Module:
    """A copy in float64 (complex128), in eval mode; tensors that are plain attributes included."""
    wide = copied(model)
    for module in wide.modules():
        for key, value in list(vars(module).items()):
            if key not in TABLES and any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
                vars(module)[key] = tree_map_only(Tensor, widened, value)  # also in a tuple, list or dict
    return wide._apply(widened)


def widened(t: Tensor) -> Tensor:
    """A tensor in float64 or complex128; integers stay."""
    return t.to(torch.float64 if t.is_floating_point() else torch.complex128 if t.is_complex() else t.dtype)


@torch.no_grad()
def rounded_copy(model: nn.Module, seed: int, compared: nn.Module | None = None) -> nn.Module:
    """A copy in float64, in eval mode, with each weight moved by half a unit in the last place of its dtype.

    Up or down at random, never by less: so a channel that hangs on a few weights does not look exact by chance. If all
    weights of the model that it is compared with are of one coarser dtype, that counts instead of its own: the effect
    of that rounding is then measured on both, and cancels by chance less often.
    """
    wide = wide_copy(model)
    others = {t.dtype for t in (*compared.parameters(), *compared.buffers())} if compared is not None else set()
    others = {dtype for dtype in others if dtype.is_floating_point}
    coarse = torch.finfo(*others).eps if len(others) == 1 else 0.0
    originals = {**dict(model.named_parameters()), **dict(model.named_buffers(remove_duplicate=False))}
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*wide.named_parameters(), *wide.named_buffers(remove_duplicate=False)):
        dtype = originals[name].dtype
        if dtype.is_floating_point:
            info = torch.finfo(dtype)
            step = (tensor.abs() * (max(info.eps, coarse) / 2)).clamp_(min=info.smallest_normal * info.eps / 2)
            tensor.add_(step.mul_(tiled(_signs(), tensor.shape, generator).to(tensor.device)))
    return wide


@cache
def _signs() -> Tensor:
    return torch.randint(0, 2, (_SIGNS,), generator=torch.Generator().manual_seed(0), dtype=torch.int8) * 2 - 1


def tiled(pool: Tensor, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A new tensor of the pool's numbers from a random position on, repeated as often as needed: random, and cheap."""
    size = shape.numel()
    if size > len(pool):
        pool = pool.repeat(2 + size // len(pool))
    start = int(torch.randint(len(pool) - size + 1, (), generator=generator))
    return pool[start : start + size].reshape(shape).clone()


class Tally:
    """Squares of differences per output, group of rows and channel; collected over several calls.

    Args:
        groups: number of groups of rows.
        channel_axis: of the outputs; by default it is axis 1 of maps (N, C, H, W) and of rows (N, C), and the last one
            of tokens (N, T, C).
    """

    def __init__(self, groups: int = 1, channel_axis: int | None = None) -> None:
        self.groups, self.channel_axis = groups, channel_axis
        self.sums: dict[str, Tensor] = {}  # by output: (difference, rounding, norm), each (groups, channels)
        self.note = ""

    def add(
        self, a: object, b: object, rounding: Sequence[tuple[object, object]], groups: Tensor | None = None
    ) -> None:
        """Add the outputs of one call.

        Args:
            a, b: outputs of the two models.
            rounding: pairs of outputs whose differences count as rounding.
            groups: group of each row, if the rows of the outputs are those of the inputs.
        """
        for path, (ours, theirs) in paired_tensors(a, b):
            ours, theirs = ours.double(), theirs.double()
            moved = [pair for pairs in rounding for key, pair in paired_tensors(*pairs) if key == path]
            squares = torch.stack(
                [
                    self._squares(ours - theirs, groups),
                    sum((self._squares(x.double() - y.double(), groups) for x, y in moved), torch.zeros(())),
                    self._squares(ours, groups),
                ]
            )
            self.sums[path] = self.sums[path] + squares if path in self.sums else squares
            self.note = self.note or note_on_infinity(ours, theirs)

    def _squares(self, x: Tensor, groups: Tensor | None) -> Tensor:
        """Squared norm per group of rows and channel: (groups, channels)."""
        x = x.double().square()
        x = x.reshape(len(x) if x.dim() else 1, -1) if x.dim() < 2 else x  # (N, C, ...)
        axis = self.channel_axis or (-1 if x.dim() == 3 else 1)
        squares = x.movedim(axis, 1).flatten(2).sum(2) if x.dim() > 2 else x  # (N, C)
        if groups is None or len(groups) != len(squares):
            return squares.sum(0, keepdim=True)
        return squares.new_zeros(self.groups, squares.shape[1]).index_add_(0, groups.to(squares.device), squares)

    def verdict(self) -> Verdict:
        note = self.note or ("" if self.sums else "it returns no numbers to compare")
        if note:
            return Verdict(math.inf, note=note)
        worst = Verdict()
        for path, (difference, rounding, norm) in self.sums.items():
            # A ReLU gives zeros, whatever the rounding. A pruned channel, whose zero weights move, is rounding alone.
            alive = torch.where((rounding > 0) & (rounding < norm), rounding / norm, torch.nan)
            share = torch.nan_to_num(alive.nanmedian(1, keepdim=True).values)  # of a usual channel
            usual = norm.mean(1, keepdim=True)
            allowed = torch.maximum(rounding, TYPICAL**2 * share * norm) + FLOOR**2 * torch.maximum(norm, usual)
            ratios = torch.where(difference > 0, (difference / allowed).sqrt(), 0.0).amax(0)  # (channels)
            ratio, channel = ratios.max(0)
            if ratio > worst.ratio:
                worst = Verdict(ratio.item(), path, int(channel))
        return worst

    def norm(self, output: str, channel: int) -> float:
        """Norm of a channel of the first model's outputs."""
        return self.sums[output][2, :, channel].sum().sqrt().item()

    def relative_rounding(self) -> float:
        """The effect of rounding on whole outputs, norm over norm; the largest."""
        sums = [(rounding.sum() / norm.sum()).sqrt().item() for _, rounding, norm in self.sums.values() if norm.any()]
        return max(sums, default=0.0)
