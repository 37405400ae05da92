"""The contract of a re-parameterizable module, and the questions that the rest of the package asks of a model.

A block is a module with two forms that compute the same in eval mode: the training form, with parallel branches and
batch norms, and the deploy form, in which they are merged. Blocks that fulfil :class:`Reparameterizable` say which
form they are in. Blocks of timm and of other packages have only a method that converts them, named ``fuse``,
``reparameterize`` or ``switch_to_deploy``; :func:`repmlp.reparameterize` marks them with ``deploy = True``.
"""

import inspect
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import nn

from .converters import converter, dry_run, says_deployed


@runtime_checkable
class Reparameterizable(Protocol):
    """A module with a training form and a deploy form; one class for both.

    State dict: the keys of a block built in deploy form and those of a converted block are the same, with tensors of
    the same shapes, so either loads into the other. A network whose constructor takes ``deploy`` hands it to its
    blocks: a saved deploy form is then rebuilt with ``deploy=True``.

    Attributes:
        deploy: whether the module is in deploy form.
    """

    deploy: bool

    def reparameterize(self) -> None:
        """Change to deploy form, in place and without gradient; do nothing in deploy form.

        Outputs in eval mode, dtype and device stay as they are. Raise ValueError, before any change, if a part is not
        what the merge assumes.
        """


def iter_reparameterizable(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost blocks of a model, with their names; a model that is a block itself has the name "".

    A whole network of timm is never a block: its ``fuse`` only calls those of its modules, one by one.
    """
    if converter(model) and not hasattr(model, "forward_features"):
        yield prefix, model
        return
    for name, child in model.named_children():
        yield from iter_reparameterizable(child, f"{prefix}.{name}" if prefix else name)


def iter_training_forms(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost blocks that do not say that they are in deploy form; also those inside of a block that does."""
    for name, block in iter_reparameterizable(model, prefix):
        if getattr(block, "deploy", False) is True:
            for child_name, child in block.named_children():
                yield from iter_training_forms(child, f"{name}.{child_name}" if name else child_name)
        elif not says_deployed(block):
            yield name, block


def needs_reparameterize(model: nn.Module) -> bool:
    """Whether a block of the model is still in training form, so that :func:`repmlp.reparameterize` would change it."""
    return not all(in_deploy_form(block) for _, block in iter_reparameterizable(model))


def is_reparameterized(model: nn.Module) -> bool:
    """Whether the model was converted: it has, or had, blocks, and each is in deploy form.

    False for a model that never had a training form. A block that the conversion replaced by a plain layer counts,
    unless timm's own function replaced it: that leaves no trace.
    """
    blocks = [block for _, block in iter_reparameterizable(model)]
    was_block = (getattr(module, "deploy", False) is True for module in model.modules())
    return all(map(in_deploy_form, blocks)) and (bool(blocks) or any(was_block))


def deploy_arguments(model: Any) -> dict[str, Any]:
    """Arguments with which the network's constructor builds the form it is in; none if it cannot, or need not."""
    parameters = inspect.signature(type(model)).parameters
    names = [name for name in ("deploy", "inference_mode") if name in parameters]  # ours and timm's
    return dict.fromkeys(names[:1], True) if is_reparameterized(model) else {}


def in_deploy_form(block: nn.Module) -> bool:
    """Whether a block and all blocks in it are in deploy form; a block that does not say so is tried."""
    return says_deployed(block) or (not hasattr(block, "deploy") and not dry_run(block).changes)
