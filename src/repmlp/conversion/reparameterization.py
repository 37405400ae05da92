"""Training form to deploy form, for any model."""

import inspect
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..layers.conv_norm import TOO_LARGE
from .contract import is_reparameterized, iter_training_forms
from .converters import DryRun, Twin, converter, dry_run, replace, storage_of, tensors_of
from .preparation import TABLES, copied, ensure_copyable, in_eval_mode, lost_hooks, package_of, why_not_removable


@torch.inference_mode(False)  # the deploy form can be trained, wherever it was made
def reparameterize(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Convert every block of a model to deploy form (RepMLP v1, section 3.4). Right, or refused with nothing changed.

    Blocks of this package merge in float64, in place, with little memory. Blocks of timm and of other packages convert
    themselves, each in a float64 copy of itself; its results are rounded once, to the dtype of the block. Parts that
    such a conversion would get wrong are refused where they show: hooks, replaced layers, a ``forward`` that somebody
    assigned. What another package's code merges wrongly by itself does not show: use :func:`repmlp.verify`.

    Weights that a layer computes (weight norm, spectral norm, pruning) become plain ones. Weights that the conversion
    changes are no longer shared with other layers; a block under several names stays one block. New parameters of
    frozen layers are frozen.

    Args:
        model: any module; a single block as well as a whole network.
        inplace: change ``model`` itself; otherwise a copy is converted and ``model`` is untouched.

    Returns:
        The model in deploy form and in eval mode. A model in deploy form already stays as it is.

    Raises:
        ValueError: if nothing in the model can be converted, or something cannot be converted right.
    """
    ensure_copyable(model)
    model = model if inplace else copied(model)
    runs = _dry_runs(model)
    if not runs and not is_reparameterized(model):
        raise ValueError(
            f"nothing to convert: no module of this {type(model).__name__} has a deploy form (repmlp.RepMLP, the "
            f"networks of repmlp, and what repmlp.inject_locality was called on have)"
        )
    holder = nn.Sequential(model)
    if inplace:
        _check_range(model, runs)
    for block, run in runs.items():
        was_finite = _is_finite(block)
        converted = _Conversion(block, run, _modules_outside(holder, block)).result
        if was_finite and not _is_finite(converted):
            raise ValueError(f"cannot convert {_name_in(model, block)}: {TOO_LARGE}")
        converted.deploy = True  # type: ignore[assignment]
        for parent in holder.modules():
            replace(parent, block, converted)
    return in_eval_mode(holder[0])


def _dry_runs(model: nn.Module) -> dict[nn.Module, DryRun]:
    """The blocks to convert, each before the blocks that are parts of it under another name.

    Raises:
        ValueError: if a block cannot be converted right.
    """
    blocks = {block: name for name, block in iter_training_forms(model)}
    runs = {block: dry_run(block) for block in sorted(blocks, key=lambda block: -len(list(block.modules())))}
    runs = {block: run for block, run in runs.items() if run.changes}
    lost = []
    for block, run in runs.items():
        parts = {part: ".".join(filter(None, (blocks[block], name))) for name, part in block.named_modules()}
        faults = {**{part: why_not_removable(part, block) for part in run.gone}, **run.faults}
        for part, fault in faults.items():
            if fault:
                raise ValueError(f"cannot convert {_name(parts[part], part)}: it {fault}")
        if run.error:
            raise ValueError(f"cannot convert {_name(parts[block], block)}: {run.error!r}") from run.error
        lost += [(_name(parts[part], part), hooks) for part in run.gone if (hooks := lost_hooks(part))]
    for name, hooks in lost:
        warnings.warn(f"the conversion removes {name}, and with it its {hooks}", stacklevel=3)
    return runs


def _check_range(model: nn.Module, runs: Mapping[nn.Module, DryRun]) -> None:
    """Raise ValueError if float16 cannot hold what blocks will be merged into: before anything changes."""
    for block in (block for block in runs if any(t.dtype == torch.float16 for t in block.parameters())):
        twin = copied(block)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = _Conversion(twin, dry_run(twin), set()).result
        if _is_finite(block) and not _is_finite(converted):
            raise ValueError(f"cannot convert {_name_in(model, block)}: {TOO_LARGE}")


def _is_finite(module: nn.Module) -> bool:
    """Whether no parameter in float16 is NaN or infinite, found without a copy of any."""
    halves = (p for p in module.parameters() if p.dtype == torch.float16 and p.numel() and not p.is_meta)
    return all(bool(torch.stack(torch.aminmax(p)).isfinite().all()) for p in halves)


def _name_in(model: nn.Module, block: nn.Module) -> str:
    return _name(next((name for name, part in model.named_modules() if part is block), ""), block)


def _name(name: str, module: nn.Module) -> str:
    return f"{name or 'the model'} ({type(module).__name__})"


class _Conversion:
    """The conversion of one block: done on a twin of it, whose changes are then made to the block itself.

    Attributes:
        result: what takes the block's place: the block, or the layer that its ``fuse`` returned.
    """

    def __init__(self, block: nn.Module, run: DryRun, outside: set[nn.Module]) -> None:
        self.block, self.outside = block, outside
        self.like, self.trains = _reference(list(block.parameters()) or list(block.buffers()))
        ours = all(package_of(type(module)) == "repmlp" for module in block.modules() if converter(module))

        uses = Counter(storage_of(t) for module in block.modules() for t in tensors_of(module))
        seen_outside = {storage_of(t) for module in outside for t in tensors_of(module)}

        def own(t: Tensor) -> Tensor:
            """The tensor itself, to be written in place, unless others would see that."""
            whole = t.untyped_storage().nbytes() == t.numel() * t.element_size()
            shared = storage_of(t) in seen_outside or uses[storage_of(t)] > 1 or not whole or t.is_inference()
            return t.detach().clone() if shared and id(t) in run.written else t

        device = torch.device("meta" if self.like.is_meta else "cpu")  # float64 is missing on some others

        def wide(t: Tensor) -> Tensor:
            return t.detach().to(device, torch.float64 if t.is_floating_point() else t.dtype, copy=True)

        self.twin = Twin(block, own if ours else wide)
        self.twin.separate(run.touched)
        self.before = {id(module): dict(vars(module)) for module in self.twin.block.modules()}
        self.held = {id(module): _contents(module) for module in self.twin.block.modules()}
        self.made: dict[int, tuple[Tensor, Tensor]] = {}
        with _float64_by_default(), device:
            converted = self.twin.convert(run.stand_ins)
        self.result = self._restored(converted)

    def _restored(self, module: nn.Module) -> nn.Module:
        """The original of a module of the twin, changed as it was; a new module stays, and one that others use too."""
        original = self.twin.modules.get(id(module))
        like, trains = self.like, self.trains
        if original is not None and any(p is not None for p in original._parameters.values()):
            like, trains = _reference([p for p in original._parameters.values() if p is not None])
        tables: dict[str, dict[str, object]] = {
            "_modules": {name: child and self._restored(child) for name, child in module._modules.items()},
            "_parameters": {name: self._tensor(t, like, trains) for name, t in module._parameters.items()},
            "_buffers": {name: self._tensor(t, like, trains) for name, t in module._buffers.items()},
        }
        new = {key: value for key, value in vars(module).items() if self._is_new(module, key, value)}
        into = module
        if original is not None:
            removed = vars(original).keys() - vars(module).keys() - {"_compiled_call_impl"}
            same = all(_same(vars(original)[key], table) for key, table in tables.items())
            if same and not new and not removed and type(module) is type(original):
                return original
            if original not in self.outside and original not in self.twin.repeated:
                into = original
                original.__class__ = type(module)
                for key in removed:
                    del vars(original)[key]
                for key, table in vars(module).items():
                    if key.endswith("_hooks"):
                        for hook in vars(original)[key].keys() - table.keys():
                            del vars(original)[key][hook]
        for key, value in new.items():
            if key not in tables:
                if inspect.ismethod(value) and isinstance(value.__self__, nn.Module):  # self.forward = self.fused
                    owner = value.__self__
                    owner = into if owner is module else self.twin.modules.get(id(owner), owner)
                    vars(into)[key] = MethodType(value.__func__, owner)
                elif any(isinstance(v, Tensor) for v in tree_leaves(value)):  # by itself, or in a tuple, list or dict
                    vars(into)[key] = tree_map_only(Tensor, lambda t: self._tensor(t, like, trains), value)
                else:
                    vars(into)[key] = value
        for key, table in tables.items():
            vars(into)[key].clear()
            vars(into)[key].update(table)
        return into

    def _tensor(self, t: Tensor | None, like: Tensor, trains: bool) -> Tensor | None:
        """The original of a tensor of the twin if it did not change, else the tensor in the dtype of its block."""
        if t is None:
            return None
        original = self.twin.tensors.get(id(t))
        if original is not None:
            if t is original or (not t.is_meta and torch.equal(t, original.to(t.device, t.dtype))):
                return original
            like, trains = original, original.requires_grad
        if id(t) not in self.made:  # a tensor with two names stays one
            value = t.detach().to(like.device, like.dtype if t.is_floating_point() else t.dtype)
            self.made[id(t)] = t, nn.Parameter(value, trains) if isinstance(t, nn.Parameter) else value
        return self.made[id(t)][1]

    def _is_new(self, module: nn.Module, key: str, value: object) -> bool:
        """Whether the conversion gave an attribute its value, or changed what a list or dict holds."""
        before = self.before.get(id(module), {})
        if key not in before or before[key] is not value:
            return True
        held = self.held[id(module)].get(key)
        leaves = tree_leaves(value)
        return held is not None and (
            len(held) != len(leaves) or any(a is not b for a, b in zip(held, leaves, strict=True))
        )


def _contents(module: nn.Module) -> dict[str, list[object]]:
    """What lists and dicts hold that are attributes of a module, since a conversion may fill them in place."""
    held = {key: value for key, value in vars(module).items() if isinstance(value, list | dict)}
    return {key: tree_leaves(value) for key, value in held.items() if key not in TABLES and not key.endswith("_hooks")}


def _modules_outside(module: nn.Module, block: nn.Module) -> set[nn.Module]:
    """The modules in a module that can be reached without passing through a block: those that others use too."""
    found = {module}
    for child in module.children():
        if child is not block and child not in found:
            found |= _modules_outside(child, block)
    return found


def _reference(tensors: list[Tensor]) -> tuple[Tensor, bool]:
    """The largest of some tensors, whose dtype and device new ones take; and whether any of them trains."""
    like = max(tensors, key=Tensor.numel, default=torch.empty(0))
    return like, any(t.requires_grad for t in tensors)


def _same(a: Mapping[str, object], b: Mapping[str, object]) -> bool:
    return a.keys() == b.keys() and all(a[key] is b[key] for key in a)


@contextmanager
def _float64_by_default() -> Iterator[None]:
    """New layers are float64: converters of other packages often do not say which dtype they are to have."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
