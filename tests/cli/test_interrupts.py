"""Commands that are stopped, or that find another process at work, leave nothing behind."""

import signal
from pathlib import Path

import pytest
import timm

import repmlp
from elsewhere import claimed_elsewhere
from needs import ONNX, needs
from repmlp_cli import main
from weights import randomize

ARGS = {"channels": [4, 8], "img_size": 8, "partition_size": 4, "kernel_sizes": [1, 3], "num_classes": 10}
TRAIN = "train r --epochs=1 --img-size=8 --model_args.channels=[4] --model_args.partition_size=4"
TRAIN += " --model_args.kernel_sizes=[1,3]"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of one network in both forms."""
    folder = tmp_path_factory.mktemp("models")
    model = randomize(timm.create_model("repmlp_cifar", in_chans=1, **ARGS))
    repmlp.save_model(model, folder / "training")
    repmlp.save_model(repmlp.reparameterize(model), folder / "deploy")
    return folder


@pytest.fixture
def command(models, tmp_path, monkeypatch):
    """Run a command line in an empty folder, in which t and d are the two forms."""
    monkeypatch.chdir(tmp_path)
    paths = {"t": str(models / "training"), "d": str(models / "deploy")}
    return lambda words: main([paths.get(word, word) for word in words.split()])


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".repmlp-lock-"))


#: A function that the step calls, a command, and what it writes; None where other tests show that, and it takes long.
LONG_STEPS = {
    "reading the arguments": ("repmlp_cli.parse", "convert t m", None),
    "looking through images": ("repmlp.training.loop.load_run_data", TRAIN, ["r"]),
    "hashing weights": ("repmlp.checkpoint.digest", "convert t m", ["m"]),
    "hashing files": ("repmlp.training.loop.data_fingerprint", TRAIN, ["r"]),
    "verifying": ("repmlp_cli.convert.verify", "convert t m", ["m"]),
    "calibrating": (
        "repmlp.deploy.quantization.Transformed.__getitem__",
        "quantize t x.onnx --data=digits --max-drop=100 --calibration-images=4",
        None,
    ),
    "rounding": (
        "repmlp.deploy.quantization.load_exported",
        "quantize t x.torchscript --engine=torch --data=digits --max-drop=100",
        ["README.md", "x.torchscript", "x.torchscript.check.npz", "x.torchscript.check.py"],
    ),
    "exporting": ("repmlp.deploy.exporting.compare", "export d x.pt2 --format=torch", None),
}


@pytest.mark.parametrize("step", LONG_STEPS)
def test_ctrl_c_and_sigterm_in_a_long_step_leave_nothing(command, tmp_path, monkeypatch, step):
    function, words, written = LONG_STEPS[step]
    if "x.onnx" in words:
        needs(*ONNX)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs do not have
        with monkeypatch.context() as patch:
            patch.setattr(function, lambda *args, number=number, **options: signal.raise_signal(number))
            assert command(words) == 130
        assert left(tmp_path) == []
    signal.signal(signal.SIGINT, before[signal.SIGINT])
    assert {number: signal.getsignal(number) for number in before} == before
    if written:
        assert command(words) == 0
        assert left(tmp_path) == written


@pytest.mark.parametrize(
    ("words", "output"),
    [
        ("train r", "r"),
        ("convert t m", "m"),
        ("convert t m.pth --to=official", "m.pth"),
        ("import none.pth m --arch=repmlpnet_t224", "m"),
        ("export d x.pt2 --format=torch", "x.pt2"),
        ("quantize d x.onnx --method=weights", "x.onnx"),
    ],
)
def test_what_another_process_writes_is_refused_and_the_process_named(command, tmp_path, capsys, words, output):
    if output == "x.onnx":
        needs(*ONNX)
    with claimed_elsewhere(tmp_path / output):
        assert command(words) == 2
    assert f"{output} is being written by process" in capsys.readouterr().err
    assert left(tmp_path) == []


def test_a_report_that_cannot_be_written_is_refused_before_any_work(command, monkeypatch, capsys):
    monkeypatch.setattr("repmlp_cli.verify.load_model", lambda folder: pytest.fail("it works first"))
    assert command("verify t --json=/proc/x.json") == 2
    assert "/proc/x.json cannot be written" in capsys.readouterr().err
