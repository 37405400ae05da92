"""What can be set: one frozen dataclass per command. Field names are flags and YAML keys; docs are the help.

Imports nothing but the standard library: so `repmlp -h` answers before PyTorch is imported, and both
the library and the command may look here. A field without a default is a positional argument; metadata
says where the command line differs: `nargs` of a positional argument, or a flag that is `required`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Train:
    """Train a network; the run folder then holds config.yaml, metrics.csv, model/ and curves.png.

    Args:
        output: Run folder to write.
        model: Name of a network, of this package or of timm.
        model_args: Arguments of the network, for example --model_args.channels=[8,16,32].
        data: Data set: digits, torch/cifar10, torch/cifar100, torch/mnist, torch/fashion_mnist or folder:PATH.
        data_root: Folder that holds the data set, for torch/... names.
        download: Let torchvision download the data set into data_root.
        img_size: Images are resized to this; by default to the size that the network states.
        augment: none; pad-crop (zero-pad, random crop) as for CIFAR; resized-crop as for photos.
        crop_padding: Pixels of padding for pad-crop.
        hflip: Probability of a horizontal flip.
        val_fraction: Part of the training images held out to choose the best epoch; 0 keeps the last epoch.
        epochs: Passes over the training images.
        batch_size: Images per step, over all processes.
        opt: Optimizer, by timm's name.
        lr: Highest learning rate; falls to 0 as a cosine.
        momentum: Of the optimizer.
        weight_decay: On weights, not on biases and batch norms.
        warmup_epochs: Epochs of linear warm-up.
        label_smoothing: Of the cross-entropy loss.
        precision: Mixed precision: no, bf16 or fp16.
        workers: Processes that load images; 0 loads in this one.
        seed: Of everything random.
        cpu: Use the CPU even if there is a GPU.
        overwrite: Replace a run folder that exists already.
    """

    output: str
    model: str = "repmlp_cifar"
    model_args: dict[str, Any] = field(default_factory=dict)
    data: str = "digits"
    data_root: str | None = None
    download: bool = False
    img_size: int | None = None
    augment: Literal["none", "pad-crop", "resized-crop"] = "pad-crop"
    crop_padding: int = 4
    hflip: float = 0.5
    val_fraction: float = 0.1
    epochs: int = 100
    batch_size: int = 128
    opt: str = "sgd"
    lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    workers: int = 0
    seed: int = 0
    cpu: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Convert:
    """Convert a model to deploy form, prove that nothing changed, and write it as a model folder.

    Args:
        model: Model folder or run folder in training form.
        output: Model folder to write, by default deploy/ beside the model; for `--to official` a .pth file.
        to: timm (a model folder), official (the authors' names, deploy form) or official-training (not converted).
        tolerance: Largest relative error between the forms; by default that of the weights' dtype.
        overwrite: Replace a folder that exists already.
    """

    model: str
    output: str | None = field(default=None, metadata={"nargs": "?"})
    to: Literal["timm", "official", "official-training"] = "timm"
    tolerance: float | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Verify:
    """Compare two forms of a model, block by block and as a whole; exits with 1 if they differ.

    Args:
        a: Model folder or run folder, the reference.
        b: Model folder to compare; by default the one that this command converts in memory.
        images: Compare on this many test images of --data; without data, on random ones.
        data: Data set to take images from; see `repmlp train --help`.
        data_root: Folder that holds the data set.
        tolerance: Largest relative error; by default that of the weights' dtype.
        json: Write the report to this file.
    """

    a: str
    b: str | None = field(default=None, metadata={"nargs": "?"})
    images: int = 64
    data: str | None = None
    data_root: str | None = None
    tolerance: float | None = None
    json: str | None = None


@dataclass(frozen=True)
class Eval:
    """Top-1 accuracy of a model on the test images of a data set.

    Args:
        model: Model folder or run folder.
        data: Data set; see `repmlp train --help`.
        data_root: Folder that holds the data set.
        batch_size: Images per step.
        workers: Processes that load images.
    """

    model: str
    data: str
    data_root: str | None = None
    batch_size: int = 256
    workers: int = 0


@dataclass(frozen=True)
class Predict:
    """Label names and probabilities for image files.

    Args:
        model: Model folder or run folder.
        images: Image files.
        top: Labels to list for each image.
    """

    model: str
    images: list[str] = field(metadata={"nargs": "+"})
    top: int = 3


@dataclass(frozen=True)
class Info:
    """Layers, parameters and MACs of a model in training form and in deploy form.

    Args:
        model: Model folder, run folder, or the name of a network.
        model_args: Arguments of a network given by name.
    """

    model: str
    model_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Demo:
    """The whole idea in two minutes: train the pure MLP on handwritten digits, convert, verify, time both forms.

    Args:
        output: Run folder to write.
        epochs: Passes over the training images.
        seed: Of everything random.
        overwrite: Replace a run folder that exists already; the demo's own folder is replaced in any case.
    """

    output: str = "runs/demo"
    epochs: int = 25
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True)
class Import:
    """Read a checkpoint of the authors' code (v1 or v2, training or deploy form) and write it as a model folder.

    Args:
        file: .pth or .safetensors file; nothing in it is executed.
        output: Model folder to write.
        arch: The network that the weights are of, for example repmlp_resnet50_light_g4 or repmlpnet_t224.
        model_args: Arguments of the network, where the weights need others than its own.
        overwrite: Replace a folder that exists already.
    """

    file: str
    output: str
    arch: str = field(metadata={"required": True})
    model_args: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False


COMMANDS = {
    "demo": Demo,
    "train": Train,
    "convert": Convert,
    "verify": Verify,
    "eval": Eval,
    "predict": Predict,
    "info": Info,
    "import": Import,
}
