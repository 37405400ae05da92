"""Settings of a training run."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Train:
    """Train a network; write config.yaml, metrics.csv, model/, curves.png and report.html into the run folder.

    Images in memory (see in_memory) are padded, cropped and flipped in whole batches. Others, and those that need
    another augmentation, are prepared one by one, by `workers`. Each random choice depends only on the seed and the
    position of the image in the run, not on the number of workers or on interruptions.

    Args:
        output: Run folder to write.
        resume: Resume the run in this folder, bit for bit, with its own settings. Only where its data is, and
            how many workers read it, may differ.
        model: Name of a network from this package or timm.
        model_args: Arguments of the network, for example '--model_args.channels=[8,16,32]'.
        locality: Kernel sizes of convs to train in parallel with a vision MLP's token-mixing FCs, for example 1,3.
        weights: Weights to start from: a run folder, a model folder, or a .safetensors or .pth file of this package,
            timm or the authors.
        freeze: What to freeze: none; all-but-head (train only the classifier); all-but-blocks (train only the RepMLP
            blocks and the classifier).
        data: Data set: digits, torch/cifar10 (cifar100, mnist, fashion_mnist), folder:PATH, wds/PATH or hfds/NAME.
        data_root: Folder that holds the data set, for torch/... and hfds/... names.
        download: Let torchvision, or Hugging Face's datasets, download the data set into data_root.
        bad_images: What to do with an unreadable image: stop, or skip and report it.
        in_memory: Keep the images as one tensor: auto (if all have one size and fit in 1 GiB), yes or no.
        img_size: Input size of the network, one number or height,width; by default the network's own size.
        fit: How to bring smaller images to that size: resize, or pad with the mean color.
        augment: none; pad-crop (zero-pad, then crop at random) for images like CIFAR's; resized-crop for photos.
        crop_padding: Pixels of padding for pad-crop.
        hflip: Probability of a horizontal flip.
        auto_augment: AutoAugment, RandAugment or AugMix, by timm's name, for example rand-m9-mstd0.5-inc1.
        random_erasing: Probability that a rectangle of an image is erased.
        mixup: Alpha of mixup; 0 disables.
        cutmix: Alpha of CutMix; 0 disables; with mixup also on, each batch gets one of the two.
        val_fraction: Share of the training images used as validation images to choose the best epoch, if the data set
            has no validation split; 0 keeps the last epoch.
        val_draw: How to draw the validation images: by-class, or at-random as earlier versions did.
        labels: With weights whose class names are known: match the classes by-name or by-index.
        train_images: Train on only this many of the training images, drawn by class and seed; by default on all.
        epochs: Passes over the training images.
        batch_size: Images per optimizer step, over all processes.
        accumulation: Number of micro-batches that each batch is split into, to save memory.
        opt: Optimizer, by timm's name.
        lr: Highest learning rate; decays to 0 along a cosine.
        layer_decay: For fine-tuning, the learning rate of each layer over that of the next one; 1 for no decay.
        momentum: Momentum of the optimizer.
        weight_decay: Weight decay; not applied to biases and batch norms.
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: Learning rate to warm up from.
        clip: Clip gradients to this norm; 0 disables.
        label_smoothing: Label smoothing of the cross-entropy loss.
        ema: Decay per step of a moving average of the weights, which is then evaluated and kept; 0 for none.
        qat: Quantization-aware training in the last epochs: with the merged FC3 rounded to int8, batch norms frozen.
        qat_fraction: Share of the epochs that --qat applies to.
        precision: Mixed precision: no, bf16 or fp16.
        grad_checkpointing: Recompute activations in the backward pass, to save memory.
        channels_last: Use the channels_last memory format for images and convs.
        compile: Compile the network with torch.compile.
        sync_bn: Compute batch statistics over all processes.
        workers: Processes that load images; 0 loads them in the main process.
        state_every: Number of steps between saves of the state to resume from, which is also saved after each epoch.
        trackers: Trackers to report to, of those that accelerate supports, for example tensorboard or wandb.
        seed: Seed of all random choices.
        cpu: Use the CPU even if there is a GPU.
        overwrite: Replace an existing run folder.
    """

    output: str
    resume: bool = False
    model: str = "repmlp_cifar"
    model_args: dict[str, Any] = field(default_factory=dict)
    locality: list[int] = field(default_factory=list)
    weights: str | None = None
    freeze: Literal["none", "all-but-head", "all-but-blocks"] = "none"
    data: str = "digits"
    data_root: str | None = None
    download: bool = False
    bad_images: Literal["stop", "skip"] = "stop"
    in_memory: Literal["auto", "yes", "no"] = "auto"
    img_size: int | list[int] | None = None
    fit: Literal["resize", "pad"] = "resize"
    augment: Literal["none", "pad-crop", "resized-crop"] = "pad-crop"
    crop_padding: int = 4
    hflip: float = 0.5
    auto_augment: str | None = None
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    val_fraction: float = 0.1
    val_draw: Literal["by-class", "at-random"] = "by-class"
    labels: Literal["by-name", "by-index"] = "by-name"
    train_images: int | None = None
    epochs: int = 100
    batch_size: int = 128
    accumulation: int = 1
    opt: str = "sgd"
    lr: float = 0.2
    layer_decay: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_epochs: int = 0
    warmup_lr: float = 0.0
    clip: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    qat: bool = False
    qat_fraction: float = 0.2
    precision: Literal["no", "bf16", "fp16"] = "no"
    grad_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    sync_bn: bool = False
    workers: int = 0
    state_every: int = 1000
    trackers: list[str] = field(default_factory=list)
    seed: int = 0
    cpu: bool = False
    overwrite: bool = False
