"""A local prior for any vision MLP: convs beside the FCs that mix its tokens, for as long as it trains."""

import difflib
from collections.abc import Iterable
from typing import Any

from timm.layers import PatchEmbed, to_2tuple
from timm.models.mlp_mixer import MixerBlock, ResBlock, SpatialGatingUnit
from torch import nn

from .layers.token_mixing import TokenMixing, attach_local_perceptron_, build_local_perceptron

#: The FCs of timm's blocks that mix tokens. (A block of another class of the same names is not looked into.)
TOKEN_MIXING_FCS: dict[type[nn.Module], tuple[str, ...]] = {
    ResBlock: ("linear_tokens",),  # ResMLP
    SpatialGatingUnit: ("proj",),  # gMLP
    MixerBlock: ("mlp_tokens.fc1", "mlp_tokens.fc2"),  # MLP-Mixer
}


def inject_locality(
    model: Any,
    kernel_sizes: int | Iterable[int | tuple[int, int]] = (1, 3),
    layers: str | Iterable[str] | None = None,
    grid: int | tuple[int, int] | None = None,
    class_token: bool = False,
) -> Any:
    """Put a Local Perceptron beside each FC that mixes the tokens of a model, in place.

    In ResMLP, gMLP and MLP-Mixer that FC maps the T tokens of an H x W grid, in row-major order, to T tokens (in a
    Mixer to r*T and back: r maps), and all channels share it. Beside it come convs from one map to one (1 to r, r to
    1), one for each kernel size, shared by the channels likewise, with a BN after each: ``FC(x) + sum_K BN(conv_K(x))``
    is computed. The weights of these BNs start at zero: the model still gives what it gave, in training mode too.

    The parameters that were there keep their names and values: trained weights of the plain model load by name.
    :func:`repmlp.reparameterize` merges the convs into the FCs and gives the model its original layers and state-dict
    keys back: its file loads into the plain model, also where this package is not installed.

    Args:
        model: with such FCs; changed in place.
        kernel_sizes: of the convs, ints or (kh, kw), odd and not larger than the grid; an int for a single conv.
        layers: names of the FCs, as in ``model.named_modules()``: each an ``nn.Linear`` with the tokens on the last
            axis of its input, an ``nn.Conv1d`` of kernel size 1 with the tokens on the middle axis, or a
            :class:`~repmlp.layers.GroupedLinear` (an FC for each group, for example for each channel), with a bias.
            By default those of timm's ResMLP, gMLP and MLP-Mixer. A name is taken at its word: an FC over channels
            whose width happens to fit the grid is not told from one over tokens.
        grid: (H, W) of the tokens, an int for a square; by default that of timm's PatchEmbed in the model.
        class_token: whether a class token stands before the grid's tokens; the FCs see it, the convs do not.

    Returns:
        ``model``.

    Raises:
        ValueError: if there is no such FC, if a layer has not the type or the width for a Local Perceptron or has
            one already, if the grid is not that of the model, or a kernel does not fit. The model is then as it was.
    """
    names = [layers] if isinstance(layers, str) else layers
    found = token_mixing_fcs(model) if names is None else {name: _layer(model, name) for name in names}
    if not found:
        raise ValueError(
            f"there is nothing to inject into: this {type(model).__name__} has no FC over tokens that is known from "
            f"timm's ResMLP, gMLP or MLP-Mixer; name those that it has in layers, and their grid"
        )
    size = _grid(model, grid, check=layers is None)
    kernels = [to_2tuple(k) for k in ([kernel_sizes] if isinstance(kernel_sizes, int) else kernel_sizes)]
    beside = {}  # by the FC, which may have several names
    for name, fc in found.items():
        try:
            beside[fc] = build_local_perceptron(fc, size, kernels, class_token)
        except ValueError as error:
            raise ValueError(f"{name or 'the model'}: {error}") from error
    for fc, local in beside.items():  # no error after the first change
        attach_local_perceptron_(fc, local, size, class_token)
    return model


def token_mixing_fcs(model: nn.Module) -> dict[str, nn.Module]:
    """The FCs of timm's ResMLP, gMLP and MLP-Mixer in a model that mix tokens, by name."""
    return {
        f"{name}.{fc}".removeprefix("."): module.get_submodule(fc)
        for name, module in model.named_modules()
        for fc in TOKEN_MIXING_FCS.get(type(module), ())
    }


def injected_locality(model: nn.Module) -> list[dict[str, Any]]:
    """What was injected and is not merged yet, as arguments of :func:`inject_locality` that inject it again.

    Most models need one call: one dict; layers that differ in kernels or grid are in several. JSON can hold them.
    """
    calls: dict[tuple, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, TokenMixing):
            branches: Any = module.local_perceptron.branches.values()
            kernels = tuple(branch.conv.kernel_size for branch in branches)
            calls.setdefault((kernels, module.grid, module.class_token), []).append(name)
    return [
        {
            "kernel_sizes": [list(kernel) for kernel in kernels],
            "layers": names,
            "grid": list(grid),
            "class_token": class_token,
        }
        for (kernels, grid, class_token), names in calls.items()
    ]


def _layer(model: nn.Module, name: str) -> nn.Module:
    names = dict(model.named_modules(remove_duplicate=False))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        raise ValueError(
            f"this {type(model).__name__} has no layer {name!r}"
            + (f", did you mean {' or '.join(near)}?" if near else ": model.named_modules() lists what it has")
        )
    return names[name]


def _grid(model: nn.Module, grid: int | tuple[int, int] | None, check: bool) -> tuple[int, int]:
    """The grid that was asked for, or that of the model's patches; of both, with ``check``, if they agree."""
    patches = {module.grid_size for module in model.modules() if isinstance(module, PatchEmbed)}
    known = patches.pop() if len(patches) == 1 else None
    if grid is None:
        if known is None:
            raise ValueError(
                f"the grid of the tokens of this {type(model).__name__} is not known: pass grid=(H, W), "
                f"the rows and columns that its tokens form"
            )
        return known
    height, width = to_2tuple(grid)
    if check and known not in (None, (height, width)):
        raise ValueError(
            f"the grid {height}x{width} does not match the model, whose patches form {known[0]}x{known[1]}: "
            f"leave grid out, it is known"
        )
    return height, width
