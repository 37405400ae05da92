"""A local prior for any vision MLP: convs in parallel with its token-mixing FCs, during training only."""

from collections.abc import Iterable
from typing import Any

from timm.layers import PatchEmbed, to_2tuple
from timm.models.mlp_mixer import MixerBlock, ResBlock, SpatialGatingUnit
from torch import nn

from .layers.token_mixing import TokenMixing, attach_local_perceptron_, build_local_perceptron
from .messages import did_you_mean

#: The token-mixing FCs of timm's blocks. (Blocks of other classes are ignored, even with the same attribute names.)
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
    """Add a Local Perceptron in parallel with each token-mixing FC of a model, in place.

    In ResMLP, gMLP and MLP-Mixer this FC maps the T tokens of an H x W grid, in row-major order, to T tokens (in a
    Mixer to r*T and back: r maps), and all channels share it. In parallel with it run convs from one map to one
    (1 to r, r to 1), one per kernel size, also shared by all channels, each followed by a BN. The layer computes
    ``FC(x) + sum_K BN(conv_K(x))``. The weights of these BNs start at zero, so the model's outputs do not change at
    first, not even in training mode.

    Existing parameters keep their names and values: trained weights of the plain model load by name.
    :func:`repmlp.reparameterize` merges the convs into the FCs and restores the model's original layers and state-dict
    keys: its file loads into the plain model, even where this package is not installed.

    Args:
        model: a model with token-mixing FCs; changed in place.
        kernel_sizes: of the convs, ints or (kh, kw), odd and not larger than the grid; an int for a single conv.
        layers: names of the FCs, as in ``model.named_modules()``: each an ``nn.Linear`` with the tokens on the last
            axis of its input, an ``nn.Conv1d`` of kernel size 1 with the tokens on the middle axis, or a
            :class:`~repmlp.layers.GroupedLinear` (an FC for each group, for example for each channel), with a bias.
            By default those of timm's ResMLP, gMLP and MLP-Mixer. Names are not verified: an FC over channels whose
            width happens to fit the grid is taken for one over tokens.
        grid: (H, W) of the tokens, an int for a square; by default that of timm's PatchEmbed in the model.
        class_token: whether a class token precedes the grid's tokens; the FCs see it, the convs do not.

    Returns:
        ``model``.

    Raises:
        ValueError: if there is no such FC, a layer has the wrong type or width for a Local Perceptron or already has
            one, the grid does not match the model, or a kernel does not fit. The model is then unchanged.
    """
    names = [layers] if isinstance(layers, str) else layers
    found = token_mixing_fcs(model) if names is None else {name: _layer(model, name) for name in names}
    if not found:
        raise ValueError(
            f"nothing to inject into: this {type(model).__name__} has no token-mixing FC of timm's ResMLP, gMLP or "
            f"MLP-Mixer; pass the names of its FCs as layers, and their grid"
        )
    size = _grid(model, grid, check=layers is None)
    kernels = [to_2tuple(k) for k in (kernel_sizes if isinstance(kernel_sizes, Iterable) else [kernel_sizes])]
    beside = {}  # keyed by the FC itself, which may have several names
    for name, fc in found.items():
        try:
            beside[fc] = build_local_perceptron(fc, size, kernels, class_token)
        except ValueError as error:
            raise ValueError(f"{name or 'the model'}: {error}") from error
    for fc, local in beside.items():  # nothing can fail from here on
        attach_local_perceptron_(fc, local, size, class_token)
    return model


def token_mixing_fcs(model: nn.Module) -> dict[str, nn.Module]:
    """The token-mixing FCs of the ResMLP, gMLP and MLP-Mixer blocks in a timm model, by name."""
    return {
        f"{name}.{fc}".removeprefix("."): module.get_submodule(fc)
        for name, module in model.named_modules()
        for fc in TOKEN_MIXING_FCS.get(type(module), ())
    }


def injected_locality(model: nn.Module) -> list[dict[str, Any]]:
    """Arguments of the :func:`inject_locality` calls that inject again what is not merged yet.

    Most models need one call, so one dict; layers with different kernels or grids need several. All are valid JSON.
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
        advice = did_you_mean(name, names) or ": model.named_modules() lists its layers"
        raise ValueError(f"this {type(model).__name__} has no layer {name!r}{advice}")
    return names[name]


def _grid(model: nn.Module, grid: int | tuple[int, int] | None, check: bool) -> tuple[int, int]:
    """The given grid, or that of the model's patches; with ``check``, an error if the two differ."""
    patches = {module.grid_size for module in model.modules() if isinstance(module, PatchEmbed)}
    known = patches.pop() if len(patches) == 1 else None
    if grid is None:
        if known is None:
            raise ValueError(
                f"the token grid of this {type(model).__name__} is not known: pass grid=(H, W), "
                f"the rows and columns that its tokens form"
            )
        return known
    height, width = to_2tuple(grid)
    if check and known not in (None, (height, width)):
        raise ValueError(
            f"the grid {height}x{width} does not match the model, whose patches form {known[0]}x{known[1]}: "
            f"omit grid, it is known"
        )
    return height, width
