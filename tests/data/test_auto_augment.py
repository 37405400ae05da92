"""Every policy that timm documents runs on any image, posterized to no bits too; others are refused."""

import numpy as np
import pytest
import torch
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP, AugmentOp

from pictures import picture
from repmlp.data import seed_from_key, train_transform
from repmlp.data.auto_augment import finish_policy, posterize_to_any

GRAY = {"input_size": (1, 24, 24), "mean": (0.5,), "std": (0.5,), "interpolation": "bilinear", "crop_pct": 1.0}
COLOR = {**GRAY, "input_size": (3, 24, 24), "mean": (0.5,) * 3, "std": (0.5,) * 3}
POLICIES = [
    *("v0", "v0r", "original", "originalr", "3a", "v0-mstd0.5", "original-mstd0.5"),
    *("rand", "rand-m9-n3-mstd0.5", "rand-mstd1-tweights", "rand-m9-mstd0.5-inc1", "rand-m10-inc1", "rand-m0-inc1"),
    *("rand-m15-mmax20-inc1-p1", "rand-t3a", "rand-m7-t3aw-n4", "rand-m9-mstd101-inc0", "rand-n0", "rand-p0.25"),
    *("augmix", "augmix-m5-w4-d2", "augmix-m10-b1", "augmix-a0.5-mstd0.5", "augmix-d0"),
]


@pytest.mark.parametrize("config", [GRAY, COLOR], ids=["gray", "color"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_runs(policy, config):
    transform = train_transform(config, "none", auto_augment=policy)
    image = picture(0, 24, 24)
    for i in range(60):
        seed_from_key(i)
        assert transform(image).shape == config["input_size"]


class All:
    """A policy that applies one operation, always."""

    def __init__(self, op):
        self.ops = [op]

    def __call__(self, image):
        return self.ops[0](image)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", sorted(NAME_TO_OP))
def test_every_operation_runs_at_every_magnitude(name, mode):
    hparams = {"translate_const": 10, "img_mean": (128,) * len(mode)}
    for magnitude in np.linspace(0, 10, 21):
        op = AugmentOp(name, prob=1.0, magnitude=float(magnitude), hparams=hparams)
        policy = All(op)
        finish_policy("x", policy, mode)
        assert policy(picture(0, 24, 24, mode)).size == (24, 24)
    assert name in LEVEL_TO_ARG


def test_posterizing_to_no_bits_is_black_and_to_others_as_pillow_does():
    image = picture(0, 24, 24)
    pixels = np.asarray(image)
    for bits in range(-2, 10):
        kept = pixels if bits >= 8 else pixels & (256 - 2 ** (8 - max(bits, 0)))
        assert np.array_equal(np.asarray(posterize_to_any(image, bits)), kept)


def test_a_policy_really_changes_images():
    plain = train_transform(COLOR, "none")(picture(0, 24, 24))
    transform = train_transform(COLOR, "none", auto_augment="rand-m9-n3-p1")
    seed_from_key(0)
    assert not torch.equal(transform(picture(0, 24, 24)), plain)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("v1", "starts with 'v1': timm's policies are rand, augmix, v0"),
        ("rand9", "starts with 'rand9'"),
        ("RAND-m9", "starts with 'RAND'"),
        ("rand-q9", "has the section 'q9', which timm's rand does not: write for example"),
        ("rand-m9-", "has the section ''"),
        ("rand-mstdinf", "has the section 'mstdinf'"),
        ("rand-tnone", "has the section 'tnone'"),
        ("rand-m9.5", "has the section 'm9.5'"),
        ("augmix-n3", "has the section 'n3', which timm's augmix does not"),
        ("original-m9", "has the section 'm9', which timm's original does not"),
        ("rand-n20-tweights", "auto_augment=rand-n20-tweights does not work"),
        ("augmix-w0", "has the section 'w0'"),
        ("augmix-a0", "auto_augment=augmix-a0 does not work"),
    ],
)
def test_other_policies_are_refused_at_once(policy, message):
    with pytest.raises(ValueError, match=message):
        train_transform(COLOR, "none", auto_augment=policy)
