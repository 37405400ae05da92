"""How a block converts itself, and a dry run of it: on a copy on the meta device, to see what a conversion would touch.

A twin is a copy of a block with tensors of our choice: on the meta device for a dry run, in float64 for a conversion by
code that is not ours, or the block's own tensors.
"""

import copy
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any

import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from ..layers.sync_norm import SyncNorm
from .preparation import has_own_forward, in_eval_mode, make_permanent, package_of, why_not_mergeable

#: Names of the methods that convert a block, in timm's order; the first that needs no arguments counts.
CONVERTERS = ("fuse", "reparameterize", "switch_to_deploy")


#: Plain norms that stand in for synchronized and frozen ones where a conversion checks the class of a norm.
STAND_INS: dict[type[nn.Module], type[nn.Module]] = {
    nn.SyncBatchNorm: nn.BatchNorm2d,
    SyncNorm: nn.BatchNorm2d,
    FrozenBatchNorm2d: nn.BatchNorm2d,
    SyncBatchNormAct: BatchNormAct2d,
    FrozenBatchNormAct2d: BatchNormAct2d,
}


def converter(module: nn.Module) -> str | None:
    """Name of the method that converts a module, or None. One that takes what it fuses as arguments does not count."""
    for name in CONVERTERS:
        method = getattr(module, name, None)
        if inspect.ismethod(method):
            parameters = inspect.signature(method).parameters.values()
            # *args with **kwargs is how a decorator passes on whatever it is given.
            passes_on = {p.kind for p in parameters} >= {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}
            optional = (Parameter.VAR_KEYWORD, *((Parameter.VAR_POSITIONAL,) if passes_on else ()))
            if all(p.default is not p.empty or p.kind in optional for p in parameters):
                return name
    return None


def why_not_its_own_converter(cls: type[nn.Module]) -> str | None:
    """Why a block cannot know how to convert itself: its class overrides the forward of another package's block."""
    authors = [base for base in cls.__mro__ if any(name in vars(base) for name in CONVERTERS)]
    newer = cls.__mro__[: cls.__mro__.index(authors[0])]
    overrides = [base for base in newer if "forward" in vars(base) or "__call__" in vars(base)]
    if any(package_of(base) != package_of(authors[0]) for base in overrides):
        return f"overrides forward, but inherits its conversion from {authors[0].__name__}: override that too"
    return None


def says_deployed(block: nn.Module) -> bool:
    """Whether a block says that it and all blocks in it are in deploy form."""
    if getattr(block, "reparam_conv", None) is not None:  # timm's; some of them fail when they are converted again
        return True
    return hasattr(block, "deploy") and all(getattr(module, "deploy", True) for module in block.modules())


@torch.no_grad()
def call_converters(block: nn.Module, done: frozenset[nn.Module] = frozenset()) -> nn.Module:
    """Convert a block and all modules in it; returns what takes its place: what ``fuse`` returns, or the block.

    A block that ``fuse`` returns is converted too, unless it says that it is in deploy form or is ``block`` made anew.

    Args:
        done: modules that an enclosing converter has already converted. Theirs may not be made to be called twice, so
            they are not called again.
    """
    name, parts = None if block in done else converter(block), list(block.modules())
    if name:
        built = {part: _structure(part) for part in parts[1:]}
        with _CalledConverters(parts) as called:
            result = getattr(block, name)()
        done |= {part for part, before in built.items() if part in called.modules or _structure(part) != before}
    new = result if name == "fuse" and isinstance(result, nn.Module) else block
    made_anew = type(new) is type(block) and new not in parts[1:]
    if not made_anew and not says_deployed(new):
        return call_converters(new, done)
    for child in list(new.children()):
        converted = call_converters(child, done)
        if converted is not child:
            replace(new, child, converted)
    return new


def _structure(module: nn.Module) -> tuple[object, ...]:
    """What changes with the form of a module: its class, its children, which weights it has."""
    weights = [name for name, t in (*module._parameters.items(), *module._buffers.items()) if t is not None]
    return type(module), [(name, id(child)) for name, child in module._modules.items()], weights


class _CalledConverters:
    """Records which of some modules have their converters called.

    Attributes:
        modules: those whose converters were called.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.modules: set[nn.Module] = set()
        self.classes = {type(module) for module in modules}

    def __enter__(self) -> "_CalledConverters":
        found = [(cls, name, getattr(cls, name, None)) for cls in self.classes for name in CONVERTERS]
        methods = [(cls, name, method) for cls, name, method in found if inspect.isfunction(method)]
        self.kept = [(cls, name, vars(cls).get(name)) for cls, name, _ in methods]
        for cls, name, method in methods:
            setattr(cls, name, self._recorded(method))
        return self

    def _recorded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.modules.add(module)
            return method(module, *args, **kwargs)

        return call

    def __exit__(self, *error: object) -> None:
        for cls, name, own in self.kept:
            if own is None:
                delattr(cls, name)
            else:
                setattr(cls, name, own)


def replace(parent: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a child of a module in another one's place, under all its names."""
    for name, child in parent._modules.items():
        if child is old:
            parent._modules[name] = new


class Twin:
    """A copy of a block whose tensors are ``tensor(t)`` of the block's, in eval mode, its weights made permanent.

    Attributes:
        block: the copy.
        modules, tensors: the originals, by the id of their copy.
        repeated: originals that were in several places of the block, and have a copy for each (:meth:`separate`).
    """

    def __init__(self, block: nn.Module, tensor: Callable[[Tensor], Tensor]) -> None:
        memo: dict[int, Any] = {}
        originals: dict[int, Tensor] = {}
        for module in block.modules():
            for key, value in vars(module).items():
                if key.endswith("_hooks"):  # hooks may hold other models: only their table is copied
                    memo[id(value)] = OrderedDict(value)
            for t in tree_leaves(vars(module)):  # also tensors that are plain attributes
                if isinstance(t, Tensor) and id(t) not in memo:
                    new = tensor(t)
                    if isinstance(t, nn.Parameter) and new is not t:
                        new = nn.Parameter(new, t.requires_grad)
                    memo[id(t)], originals[id(t)] = new, t
        self.block = in_eval_mode(copy.deepcopy(block, memo))
        self.modules = {id(memo[id(module)]): module for module in block.modules()}
        self.tensors = {id(memo[key]): t for key, t in originals.items()}
        self.repeated: set[nn.Module] = set()
        self._alive: list[Any] = [memo]  # an id is valid as long as its object lives
        for module in list(self.block.modules()):
            make_permanent(module)

    def convert(self, stand_ins: bool = False) -> nn.Module:
        """Convert the copy, with plain norms in place of synchronized and frozen ones if ``stand_ins``."""
        norms = [module for module in self.block.modules() if stand_ins and type(module) in STAND_INS]
        kept = {module: type(module) for module in norms}
        for module, cls in kept.items():
            module.__class__ = STAND_INS[cls]
        try:
            return call_converters(self.block)
        finally:
            for module, cls in kept.items():
                module.__class__ = cls

    def separate(self, touched: Collection[nn.Module]) -> None:
        """Give each place in the twin a copy of its own of what is touched, so that nothing is converted twice."""
        self._separate(self.block, touched, set())

    def _separate(self, module: nn.Module, touched: Collection[nn.Module], seen: set[int]) -> None:
        for name, t in module._parameters.items():
            if t is not None and id(t) in seen:
                module._parameters[name] = new = nn.Parameter(t.detach().clone(), t.requires_grad)
                self._alive.append(new)
                if id(t) in self.tensors:
                    self.tensors[id(new)] = self.tensors[id(t)]
            seen.add(id(t))
        for name, child in module._modules.items():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                self._separate(child, touched, seen)
            elif child is not None and self.modules[id(child)] in touched:
                module._modules[name] = twin = copy.deepcopy(child)
                for new_part, part in zip(twin.modules(), child.modules(), strict=True):
                    self._alive.append(new_part)
                    self.modules[id(new_part)] = self.modules[id(part)]
                    self.repeated.add(self.modules[id(part)])
                    for a, b in zip(tensors_of(new_part), tensors_of(part), strict=True):
                        if id(b) in self.tensors:
                            self.tensors[id(a)] = self.tensors[id(b)]


@dataclass(frozen=True)
class DryRun:
    """What a conversion would do to a block.

    Attributes:
        touched: modules of which it reads or writes a tensor, or that it changes, removes or replaces.
        gone: modules that it removes or replaces.
        written: ids of the tensors that it writes in place.
        changes: whether it changes anything: a block in deploy form stays as it is.
        faults: why modules that it touches do not compute what their parameters say.
        stand_ins: whether it needs plain norms in place of synchronized and frozen ones.
        error: what the converter raised; all else is then unknown, and ``faults`` are those of all modules.
    """

    touched: tuple[nn.Module, ...] = ()
    gone: tuple[nn.Module, ...] = ()
    written: frozenset[int] = frozenset()
    changes: bool = True
    faults: Mapping[nn.Module, str] = field(default_factory=dict)
    stand_ins: bool = False
    error: Exception | None = None


@torch.inference_mode(False)  # inference tensors do not count their changes
def dry_run(block: nn.Module) -> DryRun:
    """Convert a copy of a block on the meta device, where it takes no memory, or where that fails, on a real copy."""
    run = _dry_run_anywhere(block)
    if (run.error or not run.changes) and any(type(module) in STAND_INS for module in block.modules()):
        with_stand_ins = _dry_run_anywhere(block, stand_ins=True)
        return run if with_stand_ins.error else with_stand_ins
    return run


def _dry_run_anywhere(block: nn.Module, stand_ins: bool = False) -> DryRun:
    run = _dry_run(block, torch.device("meta"), stand_ins)
    return _dry_run(block, torch.device("cpu"), stand_ins) if run.error else run  # it may need to look at values


def _dry_run(block: nn.Module, device: torch.device, stand_ins: bool) -> DryRun:
    faults: dict[nn.Module, str] = {}
    try:
        with device:
            twin = Twin(block, lambda t: t.detach().to(device, copy=True))
            modules = list(twin.block.modules())
            faults = {twin.modules[id(m)]: fault for m in modules if (fault := why_not_mergeable(m, twin.block))}
            if fault := why_not_its_own_converter(type(twin.block)):
                faults[block] = fault
            before = [_State(module) for module in modules]
            owners = [(storage_of(t), module) for module in modules for t in tensors_of(module)]
            versions = {id(t): t._version for module in modules for t in tensors_of(module)}
            with _Reads() as reads:
                new = twin.convert(stand_ins)
    except Exception as error:
        return DryRun(faults=faults, error=error)
    stay = {id(module) for module in new.modules()}
    gone = [module for module in modules if id(module) not in stay]
    changed = [module for module, state in zip(modules, before, strict=True) if not state.holds_for(module)]
    read = [module for storage, module in owners if storage in reads.storages]
    written = [t for module in modules for t in tensors_of(module) if t._version != versions.get(id(t))]
    touched = tuple(dict.fromkeys(twin.modules[id(module)] for module in (*gone, *changed, *read)))
    faults = {module: fault for module, fault in faults.items() if module in touched}
    for module in new.modules():
        if not has_own_forward(module):
            faults[twin.modules.get(id(module), block)] = (
                "is given a forward by its conversion that is not a method of its own: assign a method (self.forward "
                "= self.forward_deploy), or let forward ask for the form"
            )
    return DryRun(
        touched=touched,
        gone=tuple(twin.modules[id(module)] for module in gone),
        written=frozenset(id(twin.tensors[id(t)]) for t in written if id(t) in twin.tensors),
        changes=bool(gone or changed),
        faults=faults,
        stand_ins=stand_ins,
    )


class _Reads(TorchDispatchMode):
    """Records the storages of all tensors that are computed with; to detach one from a graph does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (torch.ops.aten.detach.default, torch.ops.aten.detach_.default):
            self.storages.update(storage_of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        return func(*args, **(kwargs or {}))


def storage_of(t: Tensor) -> int:
    """Identity of the memory of a tensor: views of it have the same."""
    return t.untyped_storage()._cdata


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a module, without those of its children."""
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


class _State:
    """What a conversion can change of a module: its class, attributes, tensors and children."""

    def __init__(self, module: nn.Module) -> None:
        self.type = type(module)
        tables = {key: dict(value) for key, value in vars(module).items() if isinstance(value, dict)}
        self.values: dict[Any, Any] = dict(vars(module))
        self.values |= {(key, name): v for key, table in tables.items() for name, v in table.items()}
        self.versions = [(storage_of(t), t._version) for t in tensors_of(module)]

    def holds_for(self, module: nn.Module) -> bool:
        now = _State(module)
        same_values = self.values.keys() == now.values.keys() and all(
            value is now.values[key] for key, value in self.values.items()
        )
        return self.type is now.type and same_values and self.versions == now.versions
