"""Settings: one frozen dataclass per command. Field names are flags and YAML keys; the docstrings are the help texts.

Imports only the standard library, so that `repmlp -h` answers before PyTorch is imported, and both the library and the
commands can use it. A field without a default is a positional argument. Its metadata has what only the command line
needs: `nargs` of a positional argument, or `required` for a flag; the help of such a field is one line.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from .ablate import Ablate
from .limits import check_numbers as check_numbers
from .train import Train


@dataclass(frozen=True)
class Convert:
    """Convert a model to deploy form, check that its outputs stay the same, and write it as a model folder.

    Args:
        model: Model folder or run folder in training form.
        output: Model folder to write, by default deploy/ next to the model; for `--to official` a .pth file.
        to: timm (a model folder), official (the authors' names, deploy form) or official-training (not converted).
        fold: Also fold each batch norm into the conv or linear layer before it, if that can absorb it.
        tolerance: Largest relative deviation allowed; by default what rounding the weights explains, per channel.
        overwrite: Replace an existing folder.
    """

    model: str
    output: str | None = field(default=None, metadata={"nargs": "?"})
    to: Literal["timm", "official", "official-training"] = "timm"
    fold: bool = False
    tolerance: float | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Verify:
    """Compare two forms of a model, block by block and as a whole; exit with status 1 if they differ.

    Args:
        a: Model folder or run folder, the reference.
        b: Model folder to compare; by default `a`, converted in memory.
        images: Number of images to compare on: test images of --data; without --data, random ones and, if `a` is a
            run folder whose data set is available, as many of its test images.
        data: Data set to take images from; see `repmlp train --help`.
        data_root: Folder that holds the data set.
        bad_images: What to do with an unreadable image: stop, or skip and report it.
        labels: Match the classes of the data and the model by-name or by-index.
        tolerance: Largest relative deviation allowed; by default what rounding the weights explains, per channel.
        json: File to write the report to, as JSON.
    """

    a: str
    b: str | None = field(default=None, metadata={"nargs": "?"})
    images: int = 64
    data: str | None = None
    data_root: str | None = None
    bad_images: Literal["stop", "skip"] = "stop"
    labels: Literal["by-name", "by-index"] = "by-name"
    tolerance: float | None = None
    json: str | None = None


@dataclass(frozen=True)
class Eval:
    """Measure the top-1 accuracy of a model on the test images of a data set.

    Args:
        model: Model folder, run folder or exported file.
        data: Data set; see `repmlp train --help`.
        data_root: Folder that holds the data set.
        bad_images: What to do with an unreadable image: stop, or skip and report it.
        labels: Match the classes of the data and the model by-name or by-index.
        batch_size: Images per step.
        workers: Processes that load images.
    """

    model: str
    data: str
    data_root: str | None = None
    bad_images: Literal["stop", "skip"] = "stop"
    labels: Literal["by-name", "by-index"] = "by-name"
    batch_size: int = 256
    workers: int = 0


@dataclass(frozen=True)
class Predict:
    """Predict label names and probabilities for image files.

    Args:
        model: Model folder, run folder or exported file.
        images: Image files.
        top: Number of labels to list for each image.
    """

    model: str
    images: list[str] = field(metadata={"nargs": "+"})
    top: int = 3


@dataclass(frozen=True)
class Report:
    """Write one HTML file about a run: settings, curves, both forms and their comparison, the worst mistakes.

    Both forms classify the test images once more. The file says what had to be left out.

    Args:
        run: Run folder.
        output: HTML file to write, by default report.html in the run folder, which replaces an earlier report.
        data: Data set of the run, if it has moved; see `repmlp train --help`.
        data_root: Folder that holds the data set, if it has moved.
        mistakes: Number of wrongly classified test images to show, the highest loss first.
        overwrite: Replace an existing file that is not an earlier report of this run.
    """

    run: str
    output: str | None = field(default=None, metadata={"nargs": "?"})
    data: str | None = None
    data_root: str | None = None
    mistakes: int = 24
    overwrite: bool = False


@dataclass(frozen=True)
class Info:
    """Show layers, parameters and multiply-adds (MACs) of a model in training form and in deploy form.

    Args:
        model: Model folder, run folder, or the name of a network.
        model_args: Arguments of the network, if it is given by name.
    """

    model: str
    model_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Demo:
    """Show it all in two minutes: train the pure MLP on handwritten digits, convert it, verify and time both forms.

    Args:
        output: Run folder to write.
        epochs: Passes over the training images.
        seed: Seed of all random choices.
        overwrite: Replace an existing run folder; the default one is always replaced.
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
        arch: Name of the network that the weights are for, for example repmlp_resnet50_light_g4 or repmlpnet_t224.
        model_args: Arguments of the network, if the weights need other values than its defaults.
        overwrite: Replace an existing folder.
    """

    file: str
    output: str
    arch: str = field(metadata={"required": True})
    model_args: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False


@dataclass(frozen=True)
class Export:
    """Export a model to one file for another engine, and run that file to check that its outputs are the same.

    Args:
        model: Model folder or run folder; a model in training form is first converted and verified.
        output: File to write, by default deploy.onnx, .xml (and .bin), .pt2 or .aoti.pt2 next to the model.
        format: onnx, openvino, torch (a torch.export program) or aoti (compiled for CPUs like this one); by default
            according to the file's suffix, or onnx if no file is given.
        opset: ONNX opset; by default 20.
        no_convert: Refuse a model in training form instead of converting it.
        data: Data set to compare on, in addition to random images; see `repmlp train --help`.
        data_root: Folder that holds the data set.
        bad_images: What to do with an unreadable image: stop, or skip and report it.
        labels: Match the classes of the data and the model by-name or by-index.
        images: Number of test images of --data to compare on.
        overwrite: Replace an existing file.
    """

    model: str
    output: str | None = field(default=None, metadata={"nargs": "?"})
    format: Literal["onnx", "openvino", "torch", "aoti"] | None = None
    opset: int | None = None
    no_convert: bool = False
    data: str | None = None
    data_root: str | None = None
    bad_images: Literal["stop", "skip"] = "stop"
    labels: Literal["by-name", "by-index"] = "by-name"
    images: int = 64
    overwrite: bool = False


@dataclass(frozen=True)
class Quantize:
    """Quantize a model to int8 and measure the loss of accuracy; write nothing if the loss exceeds --max-drop.

    Args:
        model: Model folder or run folder; a model in training form is first converted and verified.
        output: File to write, by default int8.onnx, .xml (and .bin) or .torchscript next to the model.
        data: Data set for accuracy and calibration, optional with --method weights; see `repmlp train --help`.
        data_root: Folder that holds the data set.
        bad_images: What to do with an unreadable image: stop, or skip and report it.
        labels: Match the classes of the data and the model by-name or by-index.
        method: static (activation ranges from calibration images), dynamic (ranges at run time) or weights (only the
            FCs' weights, activations in float32); by default static, or dynamic for torch.
        engine: onnxruntime, openvino (static, weights) or torch (dynamic).
        calibration_images: Number of training images to calibrate static int8 on; all if there are fewer.
        max_drop: Points of top-1 accuracy that int8 may lose.
        reduce_range: Use 7-bit weights, for x86 CPUs without VNNI; always on if this is such a CPU.
        batch_size: Images per step when measuring accuracy.
        overwrite: Replace an existing file.
    """

    model: str
    output: str | None = field(default=None, metadata={"nargs": "?"})
    data: str | None = None
    data_root: str | None = None
    bad_images: Literal["stop", "skip"] = "stop"
    labels: Literal["by-name", "by-index"] = "by-name"
    method: Literal["static", "dynamic", "weights"] | None = None
    engine: Literal["onnxruntime", "openvino", "torch"] = "onnxruntime"
    calibration_images: int = 256
    max_drop: float = 0.5
    reduce_range: bool = False
    batch_size: int = 256
    overwrite: bool = False


@dataclass(frozen=True)
class Bench:
    """Compare outputs, then measure latency and throughput of networks, forms and engines, interleaved in one run.

    Args:
        models: Model folders, run folders, exported files, or names (timm's too: resnet50 runs with its BNs folded).
        engines: training (the form before conversion), pytorch, channels_last, compile, onnxruntime, openvino, aoti or
            torch (a torch.export program).
        batches: Batch sizes.
        precisions: float32, bf16, int8; engines skip precisions that they do not support.
        threads: Number of threads of every engine; by default one per core.
        rounds: Number of timed calls of each combination.
        warmup: Number of untimed calls of each before the timed ones.
        memory: Also measure the peak memory of each, in a separate process.
        output: Folder for bench.json and bench.png.
    """

    models: list[str] = field(metadata={"nargs": "+"})
    engines: list[str] = field(default_factory=lambda: ["training", "pytorch"])
    batches: list[int] = field(default_factory=lambda: [1, 16])
    precisions: list[str] = field(default_factory=lambda: ["float32"])
    threads: int | None = None
    rounds: int = 20
    warmup: int = 3
    memory: bool = False
    output: str = "runs/bench"


@dataclass(frozen=True)
class Explore:
    """Show a model in the browser: what both forms predict, the inside of FC3, the check of the conversion, the curves.

    Args:
        model: Model folder, run folder, or the name of a network.
        data: Data set to pick images from, by default the run's, if available; see `repmlp train --help`.
        data_root: Folder that holds the data set.
        host: Address to listen on; with the default, only this machine can open the page.
        port: Port to listen on.
    """

    model: str
    data: str | None = None
    data_root: str | None = None
    host: str = "127.0.0.1"
    port: int = 7860


#: The suffixes of the files that `export` and `quantize` write.
EXPORTED = (".onnx", ".xml", ".bin", ".pt2", ".aoti.pt2", ".torchscript")
COMMANDS = {
    "demo": Demo,
    "train": Train,
    "convert": Convert,
    "export": Export,
    "quantize": Quantize,
    "verify": Verify,
    "eval": Eval,
    "predict": Predict,
    "info": Info,
    "report": Report,
    "explore": Explore,
    "bench": Bench,
    "ablate": Ablate,
    "import": Import,
}
