"""timm's policies of AutoAugment, RandAugment and AugMix: which there are, and one of their operations mended."""

import re
from collections.abc import Iterable
from typing import Any

from PIL import Image, ImageOps
from timm.data.auto_augment import AugmentOp, posterize

_NUMBER = r"\d+(\.\d+)?"
#: timm's policies, and the sections that may follow, each after a dash. (timm ignores some unknown ones.)
POLICIES = {
    "rand": rf"m\d+|n\d+|p{_NUMBER}|mstd{_NUMBER}|mmax\d+|inc[01]|t(weights|3aw|3a)",
    "augmix": rf"m\d+|w[1-9]\d*|d\d+|b[01]|a{_NUMBER}|mstd{_NUMBER}",
    **dict.fromkeys(("v0", "v0r", "original", "originalr", "3a"), rf"mstd{_NUMBER}"),
}


def check_policy(name: str) -> None:
    """Raise ValueError unless timm documents this policy and each of its sections."""
    kind, *sections = name.split("-")
    if kind not in POLICIES:
        raise ValueError(f"auto_augment={name} starts with {kind!r}: timm's policies are {', '.join(POLICIES)}")
    for section in sections:
        if not re.fullmatch(POLICIES[kind], section):
            raise ValueError(
                f"auto_augment={name} has the section {section!r}, which timm's {kind} does not: "
                f"write for example rand-m9-mstd0.5-inc1, augmix-m5-w4-d2 or original-mstd0.5"
            )


def finish_policy(name: str, policy: Any, mode: str) -> None:
    """Make a policy posterize to 0 bits, which is black and which Pillow refuses from version 13 on, and try it once.

    Args:
        policy: timm's transform.
        mode: of the images that it will get.

    Raises:
        ValueError: if it does not work, for example with more operations per image than there are.
    """
    for op in _operations(policy):
        if op.aug_fn is posterize:
            op.aug_fn = posterize_to_any
    try:
        policy(Image.new(mode, (32, 32)))
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"auto_augment={name} does not work: {error}") from error


def posterize_to_any(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the highest ``bits`` of each channel; none is black."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits >= 1 else Image.new(image.mode, image.size)


def _operations(policy: Any) -> Iterable[AugmentOp]:
    if hasattr(policy, "ops"):  # RandAugment and AugMix
        return policy.ops
    return (op for ops in policy.policy for op in ops)
