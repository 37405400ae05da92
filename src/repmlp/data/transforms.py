"""Between an image file and a network: transforms of one PIL image."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from .auto_augment import check_policy, finish_policy
from .decoding import standardize
from .images import LabeledImages

#: How images are prepared, in timm's terms: input_size, mean, std, interpolation, crop_pct, ...
DataConfig = dict[str, Any]


class Transformed(Dataset):
    """A data set with a transform on its images, or on a choice of them."""

    def __init__(
        self, data: LabeledImages, transform: Callable[[Image.Image], Tensor], indices: Sequence[int] | None = None
    ):
        self.data, self.transform = data, transform
        self.indices = range(len(data)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image, label = self.data[self.indices[i]]
        return self.transform(image), label


def train_transform(
    data_config: DataConfig,
    augment: str,
    padding: int = 4,
    hflip: float = 0.5,
    auto_augment: str | None = None,
    random_erasing: float = 0.0,
) -> Callable[[Image.Image], Tensor]:
    """PIL image -> (C, H, W), randomly augmented.

    Args:
        data_config: timm's, with input_size, mean, std, interpolation, crop_pct.
        augment: "none", "pad-crop" (v1, section 4.1: zero-pad, crop at random) or "resized-crop" (for photos).
        padding: pixels on each side for pad-crop.
        hflip: probability of a horizontal flip.
        auto_augment: a policy of AutoAugment, RandAugment or AugMix, by timm's name for it.
        random_erasing: probability that a rectangle is erased.

    Raises:
        ValueError: for a policy that timm does not have.
    """
    size = data_config["input_size"]
    keys = ("mean", "std", "interpolation")
    if auto_augment:
        check_policy(auto_augment)
    timms = create_transform(
        size,
        is_training=True,
        hflip=hflip,
        color_jitter=0.0,
        auto_augment=auto_augment,
        re_prob=random_erasing,
        separate=True,
        **{key: data_config[key] for key in keys},
    )
    to_size, policy, to_tensor = timms
    if auto_augment:
        finish_policy(auto_augment, policy.transforms[0], "L" if size[0] == 1 else "RGB")
    if augment != "resized-crop":
        to_size = transforms.Compose(_eval_steps(data_config, normalize=False)[:-1])
    if augment == "pad-crop":
        to_size.transforms += [transforms.RandomCrop(size[1:], padding), transforms.RandomHorizontalFlip(hflip)]
    return transforms.Compose([partial(_in_mode, channels=size[0]), to_size, policy, to_tensor])


def eval_transform(data_config: DataConfig, normalize: bool = True) -> Callable[[Image.Image], Tensor]:
    """PIL image -> (C, H, W), as timm prepares images for evaluation with the same ``data_config``.

    Args:
        normalize: to float32 by mean and std; otherwise bytes, as they are.
    """
    return transforms.Compose(
        [partial(_in_mode, channels=data_config["input_size"][0]), *_eval_steps(data_config, normalize)]
    )


def _eval_steps(data_config: DataConfig, normalize: bool) -> list[Any]:
    keys = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    args = {key: data_config[key] for key in keys if key in data_config}
    return create_transform(data_config["input_size"], normalize=normalize, **args).transforms


def _in_mode(image: Image.Image, channels: int) -> Image.Image:
    """An image of any mode, upright and of 8 bits per channel: gray for one channel, RGB for three."""
    return standardize(image).convert("L" if channels == 1 else "RGB")
