"""Segmentation with RepMLP-ResNet as a backbone: train in training form, deploy the converted encoder.

Trains a PSPNet of segmentation_models_pytorch for some steps on images and masks that it draws
itself (disks and squares on noise), converts the encoder inside the trained model, and shows that the
masks agree; then the same with a plain timm feature pyramid. As in the paper (RepMLP v1, section 4.4):
c5 is dilated, c4 is not, and the Global Perceptrons' hidden width is cut 4x in c3 and 8x in c4.

    pip install segmentation-models-pytorch
    python examples/segmentation.py
"""

import argparse

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repmlp

CLASSES = ("background", "disk", "square")


def draw(n: int, size: int) -> tuple[Tensor, Tensor]:
    """Images (n, 3, size, size) of a disk and a square on noise, and their masks (n, size, size)."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    images, masks = torch.randn(n, 3, size, size), torch.zeros(n, size, size, dtype=torch.long)
    for image, mask in zip(images, masks, strict=True):
        for label in (1, 2):
            cy, cx = torch.randint(size // 5, size - size // 5, (2,)).tolist()
            radius = int(torch.randint(size // 10, size // 5, ()))
            dy, dx = (y - cy).abs(), (x - cx).abs()
            inside = dy**2 + dx**2 <= radius**2 if label == 1 else torch.maximum(dy, dx) <= radius
            mask[inside] = label
            image[:, inside] += 2 * torch.randn(3, 1)
    return images, masks


def train(model: nn.Module, steps: int, size: int, batch: int = 4) -> float:
    """Train for a few steps of Adam; returns the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    model.train()
    loss = torch.zeros(())
    for step in range(1, steps + 1):
        images, masks = draw(batch, size)
        loss = F.cross_entropy(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0 or step == steps:
            print(f"step {step:3d}  loss {loss.item():.3f}")
    return loss.item()


@torch.no_grad()
def main(steps: int = 20, size: int = 224) -> None:
    torch.manual_seed(0)
    backbone = {"img_size": size, "output_stride": 16, "global_reduction": {"c3": 4, "c4": 8}}

    print("PSPNet on tu-repmlp_resnet50")
    model = smp.PSPNet(
        "tu-repmlp_resnet50", encoder_weights=None, encoder_depth=5, classes=len(CLASSES), upsampling=16, **backbone
    )
    with torch.enable_grad():
        train(model, steps, size)
    images, masks = draw(8, size)
    deploy = repmlp.reparameterize(model)  # converts the encoder; the decoder stays unchanged
    before, after = model.eval()(images), deploy(images)
    report = repmlp.verify(model, deploy, images)
    agree = (before.argmax(1) == after.argmax(1)).double().mean()
    right = (after.argmax(1) == masks).double().mean()
    print(f"largest difference of a logit {(before - after).abs().max():.1e}; {report.verdict()}")
    print(f"{agree:.4%} of the pixels have the same class; {right:.1%} have the right one")

    print("\ntimm.create_model(..., features_only=True)")
    pyramid = timm.create_model("repmlp_resnet50", features_only=True, **backbone).eval()
    deploy = repmlp.reparameterize(pyramid)
    for info, a, b in zip(pyramid.feature_info.get_dicts(), pyramid(images), deploy(images), strict=True):
        error = (a - b).norm() / a.norm()
        print(f"{info['module']:8s} {list(a.shape)}  relative difference {error:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=224, help="pixels of an image side")
    main(**vars(parser.parse_args()))
