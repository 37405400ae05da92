"""Compare two models module by module: which differences in their weights a larger module makes up for, and which not.

The walk goes from the leaves up. A module whose weights differ is compared on its own if it is the only one; modules
that differ together (a conv and the norm that was folded into it) are compared as the smallest module, or chain of
modules, that holds them all. Once that is equal on random inputs, they count as explained.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers import LayerScale
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .contract import iter_reparameterizable
from .differences import find_differences, is_leaf, own_tensors, paired_modules, translate
from .preparation import in_eval_mode
from .probing import (
    GROUPS,
    MANY_SAMPLES,
    MIN_ROUNDS,
    MIN_SAMPLES,
    PROFILES,
    SIZES_AND_SIGNS,
    Calls,
    Probes,
    cast,
    dtype_of,
    record_calls,
)
from .report import BlockDeviation, is_equal
from .rounding import LIMIT, TYPICAL, Deviation, Tally, largest_deviation, rounded_copy, tensors_of, wide_copy

#: Beyond this relative deviation a group of modules is not examined further while a larger one may make up for it.
_HOPELESS = 0.1
#: A larger relative deviation in float64 is one of the weights, not of arithmetic.
NOT_ARITHMETIC = 1e-13


@dataclass
class Open:
    """Modules that differ, with nothing so far that makes up for it.

    Attributes:
        names: of one module, or of several called in a row.
        closed: whether they hold all that belongs together, so that the error is theirs: not a conv that has taken up
            a norm next to it.
        row: their comparison, if it is made.
    """

    names: tuple[str, ...]
    closed: bool
    row: BlockDeviation | None = None


class Comparison:
    """Two models, in their own dtype, in float64, and in float64 with their weights rounded once at random.

    Args:
        a, b: in eval mode.
        names: names in ``b`` of modules of ``a``, where they differ.
        tolerance: largest relative deviation; by default ``LIMIT`` decides.
    """

    def __init__(self, a: nn.Module, b: nn.Module, names: Mapping[str, str], tolerance: float | None) -> None:
        self.native = (a, b)
        self.wide = (wide_copy(a), wide_copy(b))
        self.rounded = (rounded_copy(a, 0, b), rounded_copy(b, 1, a))
        self.names, self.tolerance = names, tolerance
        self.pairs = paired_modules(a, b, names)
        self.differences = find_differences(self.pairs)
        self.blocks = {name for name, _ in iter_reparameterizable(a) if name in self.pairs}
        self.calls = (Calls(), Calls())
        self.rows: dict[str, BlockDeviation] = {}
        self.whole = False  # whether a difference is explained by the whole network only

    def network(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tally, object, object]:
        """Compare the whole models on given inputs, and record how their modules are called."""
        ours = {name: self.wide[0].get_submodule(name) for name in self.pairs}
        theirs = {name: self.wide[1].get_submodule(translate(name, self.names)) for name in self.pairs}
        with record_calls(ours) as calls_a:
            a = run_wide(self.wide[0], args, kwargs)
        with record_calls(theirs) as calls_b:
            b = run_wide(self.wide[1], args, kwargs)
        self.calls = (calls_a, calls_b)
        tally = Tally()
        tally.add(a, b, [(a, run(self.rounded[0], args, kwargs)), (b, run(self.rounded[1], args, kwargs))])
        return tally, a, b

    def modules(self) -> dict[str, BlockDeviation]:
        """Rows of the blocks, and of what else had to be compared, by name, in the order of the first call."""
        for left in self._visit("", inside=False):
            row = left.row or self._probe(left.names)
            if row is not None and not is_equal(row, self.tolerance):
                self.rows[left.names[0]] = row
        order = {name: place for place, name in enumerate(self.calls[0].arguments)}
        return dict(sorted(self.rows.items(), key=lambda item: order.get(item[0], 0)))

    def _visit(self, name: str, inside: bool) -> list[Open]:
        """What differs in a module and is not explained in it.

        Args:
            inside: whether the module is part of a block, whose row then speaks for it.
        """
        module, own, is_block = self.pairs[name][0], self.differences.get(name), name in self.blocks
        row: BlockDeviation | None = None
        if is_block and name in self.calls[0].arguments:
            row = self._probe((name,))
            if row is not None:
                self.rows[name] = row
                if is_equal(row, self.tolerance):
                    return []
        still: list[Open] = []
        for key, _ in module.named_children():
            child = f"{name}.{key}".removeprefix(".")
            if child in self.pairs:
                still += self._visit(child, inside or is_block)
        if own is not None and own.weights and not is_block and all(is_leaf(m) for m in self.pairs[name]):
            return [Open((name,), closed=not own.structure)]
        still = self._explain_chains(name, still, inside)
        if name not in self.calls[0].arguments:
            return still + ([Open((name,), closed=False)] if own is not None else [])
        together = (own is not None and own.may_explain) or len(still) > 1 or any(not self._called(o) for o in still)
        if not (together or is_block or own is not None):
            return still
        row = row or self._probe((name,), final=False)
        if row is not None and is_equal(row, self.tolerance):
            if not together:
                return still
            if not inside:
                self.rows[name] = row
            self.whole |= not name
            return []
        if still and all(o.closed and self._called(o) for o in still) and not (own is not None and own.weights):
            rows = [o.row or self._probe(o.names) for o in still]
            wrong = [
                replace(o, row=row)
                for o, row in zip(still, rows, strict=True)
                if row is not None and not is_equal(row, self.tolerance)
            ]
            if wrong:
                return wrong
        return [Open((name,), closed=True, row=row)]

    def _explain_chains(self, name: str, still: list[Open], inside: bool) -> list[Open]:
        """Compare modules that differ and are called in a row, each on the output of the one before, as one."""
        leaves = {o.names[0]: o for o in still if o.row is None and len(o.names) == 1 and self._called(o)}
        next_of = {leaf: self._follower(leaf) or "" for leaf in leaves}
        chains: list[tuple[str, ...]] = []
        for first in leaves.keys() - set(next_of.values()):
            members, follower = [first], next_of[first]
            while follower in leaves and follower not in members:
                members.append(follower)
                follower = next_of[follower]
            if len(members) > 1 and not self._is_all_of(name, members):
                chains.append(tuple(members))
        for chain in chains:
            still = [o for o in still if o.names[0] not in chain]
            still += [Open(names, closed=True) for names in self._split(chain, inside)]
        return still

    def _split(self, chain: tuple[str, ...], inside: bool) -> list[tuple[str, ...]]:
        """Take the shortest parts that are equal out of a chain, and return what is left between them."""
        left: list[tuple[str, ...]] = []
        start, last = 0, 0  # end of the last part that is equal
        while start < len(chain):
            for end in range(start + 2, len(chain) + 1):
                row = self._probe(chain[start:end], final=False)
                if row is not None and is_equal(row, self.tolerance):
                    if not inside:
                        self.rows[chain[start]] = row
                    left.append(chain[last:start])
                    start = last = end
                    break
            else:
                start += 1
        return [names for names in (*left, chain[last:]) if names]

    def _follower(self, name: str) -> str | None:
        """The one module that takes the output of another as its input, in both models."""
        found = [calls.followers.get(name, set()) for calls in self.calls]
        return next(iter(found[0])) if found[0] == found[1] and len(found[0]) == 1 else None

    def _is_all_of(self, name: str, chain: list[str]) -> bool:
        """Whether a module that can be called has no other differences than a chain: it is compared instead."""
        leaves = {n for n in self.differences if n.startswith(f"{name}.")}
        return name in self.calls[0].arguments and leaves == set(chain)

    def _called(self, still: Open) -> bool:
        return all(name in calls.arguments for name in still.names for calls in self.calls)

    def _probe(self, names: tuple[str, ...], final: bool = True) -> BlockDeviation | None:
        """Compare modules on random inputs; None if it is hopeless and not ``final``."""
        modules = [_chain(model, names) for model in (self.wide[0], self.rounded[0], self.native[0])]
        theirs = tuple(translate(name, self.names) for name in names)
        others = [_chain(model, theirs) for model in (self.wide[1], self.rounded[1], self.native[1])]
        first_layer, last_layer = (self.native[0].get_submodule(name) for name in (names[0], names[-1]))
        tables = [t for t in (first_layer, self.native[1].get_submodule(theirs[0])) if type(t) is nn.Embedding]
        rows_of = min(len(t.weight) for t in tables) if len(tables) == 2 else None  # a subclass may look up other rows
        probes = Probes(self.calls[0].arguments[names[0]], rows_of)
        tally, needed = Tally(GROUPS, channel_axis(last_layer)), 1
        row = BlockDeviation(" + ".join(names), Deviation(0.0, 0.0), Deviation(0.0, 0.0), 0.0)
        while probes.rows < needed:
            first = not probes.rows
            args, kwargs, groups = probes.draw()
            a, b = (run(module, args, kwargs) for module in (modules[0], others[0]))
            if first:
                exact, needed = largest_deviation(a, b), rows_needed(a, groups, len(probes.profiles))
                if not final and exact.relative > _HOPELESS:
                    return None
                native = [run(m, *cast((args, kwargs), dtype_of(m))) for m in (modules[2], others[2])]
                row = replace(row, native=largest_deviation(*native), float64=exact)
            moved = [(a, run(modules[1], args, kwargs)), (b, run(others[1], args, kwargs))]
            tally.add(a, b, moved, groups)
        row = replace(row, **vars(tally.verdict()))
        if names[0] in self.blocks:
            row = self._with_merged_weights(row, [*modules[:2], *others[:2]])
        if len(names) == 1 and is_leaf(modules[2]) and (not probes.specs or row.float64.relative > NOT_ARITHMETIC):
            row = self._with_own_weights(row, names[0])
        if not is_equal(row, self.tolerance) and row.tensor is None:
            row = replace(row, tensor=self._wrong_tensor(row, names, modules[:2], others[:2]))
        return row

    def _with_merged_weights(self, row: BlockDeviation, modules: list[nn.Module]) -> BlockDeviation:
        """Compare also the weights that a block says its deploy form has (``equivalent_fc3`` and the like)."""
        for method in [key for key in dir(type(modules[0])) if key.startswith("equivalent_")]:
            try:
                merged = [dict(tensors_of(getattr(module, method)())) for module in modules]
            except (AttributeError, TypeError, AssertionError, ValueError):  # a block that was tampered with
                continue
            for key, a in merged[0].items():
                a_rounded, b, b_rounded = (tensors[key].double() for tensors in merged[1:])
                scatter = (a_rounded - a).square().mean(-1, keepdim=True)
                allowed = (scatter + (b_rounded - b).square()).sqrt() + torch.finfo(torch.float64).eps * a.abs()
                ratio = torch.where(a != b, (a - b).abs() / allowed, 0.0).max().item()
                if not ratio <= row.ratio:
                    row = replace(row, ratio=ratio if ratio == ratio else torch.inf)
                    if not is_equal(row, self.tolerance):
                        row = replace(row, tensor=_name_of(merged[2][key], modules[2], row.name))
        return row

    def _with_own_weights(self, row: BlockDeviation, name: str) -> BlockDeviation:
        """Compare also the weights of a layer that nothing makes up for: one may hide behind another."""
        ours, theirs = (own_tensors(module) for module in self.pairs[name])
        for key in ours.keys() & theirs.keys():
            a, b = ours[key].detach(), theirs[key].detach().to(ours[key].device)
            if a.shape != b.shape or not (a.is_floating_point() and b.is_floating_point()):
                continue
            eps = max(torch.finfo(t.dtype).eps for t in (a, b))
            a, b = a.double(), b.double()
            allowed = eps / 2 * torch.maximum(a.abs(), TYPICAL * a.square().mean().sqrt())
            ratio = torch.where(a != b, (a - b).abs() / allowed, 0.0).max().item()
            if ratio > max(LIMIT, row.ratio):
                row = replace(row, ratio=ratio, tensor=f"{name}.{key}".removeprefix("."))
        return row

    def _wrong_tensor(
        self, row: BlockDeviation, names: tuple[str, ...], a: list[nn.Module], b: list[nn.Module]
    ) -> str | None:
        """The tensor that is wrong, if it is the only one that differs, or one of the two of a conv or FC in ``b``.

        Of those two it is the bias if the modules differ on zeros too, and the weight if the bias shows and is right.
        """
        inside = [f"{n}." if n else "" for n in names]
        differing = [d for name, d in self.differences.items() if f"{name}.".startswith(tuple(inside))]
        tensors = [tensor for d in differing for tensor in d.tensors]
        if len(tensors) == 1:
            return tensors[0]
        others = [self.wide[1].get_submodule(translate(name, self.names)) for name in names]
        theirs = {f"{n}{key}" for n, other in zip(inside, others, strict=True) for key, _ in other.named_parameters()}
        if {key.rpartition(".")[2] for key in theirs} != {"weight", "bias"} or len(theirs) != 2:
            return None
        args, kwargs = Probes(self.calls[0].arguments[names[0]]).zeros()
        (ours, ours_rounded), (other, other_rounded) = ([run(m, args, kwargs) for m in pair] for pair in (a, b))
        tally = Tally(channel_axis=channel_axis(self.native[0].get_submodule(names[-1])))
        tally.add(ours, other, [(ours, ours_rounded), (other, other_rounded)])
        if tally.verdict().ratio > LIMIT:
            return min(theirs)  # "...bias" < "...weight"
        alive = row.channel is not None and tally.norm(row.output, row.channel) > 0  # not cut off by an activation
        return max(theirs) if alive else None


def channel_axis(layer: nn.Module) -> int | None:
    """The axis of the channels in the outputs of a layer; None if it depends on the number of axes."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.modules.batchnorm._BatchNorm):
        return 1
    return -1 if type(layer) in (nn.Linear, nn.LayerNorm, nn.Embedding, LayerScale) else None


def _chain(model: nn.Module, names: tuple[str, ...]) -> nn.Module:
    modules = [model.get_submodule(name) for name in names]
    return modules[0] if len(modules) == 1 else in_eval_mode(nn.Sequential(*modules))


def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """Call a module on copies, since some write to their inputs; those that draw random numbers get the same ones."""
    args, kwargs = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, (args, kwargs))
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(0)  # manual_seed itself takes longer than a small module
        if devices:
            torch.cuda.manual_seed_all(0)
        return module(*args, **kwargs)


def run_wide(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """Call a model in float64.

    Raises:
        ValueError: if it cannot compute in float64.
    """
    try:
        return run(model, args, kwargs)
    except RuntimeError as error:
        if "type" not in str(error):
            raise
        raise ValueError(
            f"{type(model).__name__} cannot compute in float64 ({error}): verify compares a float64 copy. If only b "
            f"cannot, pass a function that calls it"
        ) from error


def rows_needed(output: object, groups: Tensor | None, profiles: int) -> int:
    """Rows of probes until each group of rows and each channel has enough samples."""
    if groups is None:
        return 1
    per_row = min((t[0, 0].numel() for _, t in tensors_of(output) if t.dim() > 1 and t.numel()), default=1)
    if per_row >= MANY_SAMPLES and profiles == len(PROFILES):
        return SIZES_AND_SIGNS
    rounds = max(MIN_ROUNDS, -(-MIN_SAMPLES // (2 * max(1, per_row))))  # the rarest size has two rows of each round
    return rounds * profiles


def _name_of(tensor: Tensor, module: nn.Module, prefix: str) -> str | None:
    for name, parameter in module.named_parameters():
        if parameter.data_ptr() == tensor.data_ptr():
            return f"{prefix}.{name}".removeprefix(".")
    return None
