"""Whether a module computes what its class and its parameters say: what a merge of its parameters relies on."""

from collections.abc import Callable, Collection

from torch import nn
from torch.nn.utils import parametrize

#: Attributes that a subclass must leave alone to compute what its base class computes.
_COMPUTATION = ("forward", "_conv_forward", "__call__", "weight", "bias", "running_mean", "running_var")


def why_not_plain(
    module: nn.Module,
    classes: Collection[type[nn.Module]],
    ignore_hook: Callable[[object], bool] = lambda hook: False,
    **built: object,
) -> str | None:
    """Why the parameters of a module do not determine what it computes, or None if they do: if it is plain.

    A module is plain if it is of one of ``classes``, or of a subclass without code of its own for the forward pass;
    if no forward hook, parametrization or ``forward`` of the instance changes what it computes, and no tensor of it
    was replaced by a plain attribute; and if its attributes are those that it was ``built`` with.

    Args:
        classes: that the merge knows.
        ignore_hook: whether a hook may stay.
        built: attributes and their values, for example ``stride=(1, 1)``.
    """
    if parametrize.is_parametrized(module):
        return "has a parametrization"
    if not any(computes_like(type(module), known) for known in classes):
        return f"is a {type(module).__name__}, which is not known to compute what its parameters say"
    if "forward" in vars(module):
        return "has a forward of its own"
    if any(not ignore_hook(hook) for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())):
        return "has a forward hook"
    for name in ("weight", "bias", "running_mean", "running_var"):
        if vars(module).get(name) is not None:
            return f"has a {name} that is not a parameter"
    return why_not_as_built(module, **built)


def why_not_as_built(module: nn.Module, **built: object) -> str | None:
    """Which attribute of a module is not what it was built with, or None."""
    for name, value in built.items():
        if getattr(module, name) != value:
            return f"has {name}={getattr(module, name)!r}, but was built with {value!r}"
    return None


def computes_like(cls: type, known: type) -> bool:
    """Whether a class is ``known`` or a subclass that leaves the forward pass alone."""
    if not issubclass(cls, known):
        return False
    return not any(name in vars(base) for base in cls.__mro__[: cls.__mro__.index(known)] for name in _COMPUTATION)
