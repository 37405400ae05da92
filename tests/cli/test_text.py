"""What the commands print of text from outside, and of errors."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
from PIL import Image

import repmlp
from pictures import picture
from repmlp_cli import console, info, main
from repmlp_cli.text import printable, with_flags

ATTACKS = {
    "[/red]x": "[/red]x",
    "[lr=1].png": "[lr=1].png",
    "\x1b[2J": "\\x1b[2J",
    "\u202egpj.": "\\u202egpj.",
    "\udcff": "\\udcff",
}
ARGS = {"channels": [4], "img_size": 8, "partition_size": 4, "kernel_sizes": [1], "num_classes": 2}


@pytest.mark.parametrize("text", ATTACKS)
def test_text_from_outside_is_printed_and_not_interpreted(text, capsys):
    assert printable(text) == ATTACKS[text]
    console.say("a ", text, (text, "bold"))
    console.table(text, [text], [[text]])
    shown = capsys.readouterr().out
    assert shown.count(ATTACKS[text]) == 5
    assert "\x1b[2J" not in shown


@pytest.mark.parametrize("text", ["cat", "Katze, groß", "猫 🐈", "नमस्ते", "a\u200cb", "a\\b", "100 %"])
def test_plain_text_of_any_script_stays(text):
    assert printable(text) == text


def test_no_command_writes_markup():
    """``say`` would print it as it is."""
    for file in Path(console.__file__).parent.glob("*.py"):
        assert not re.search(r"\[/?(bold|red|green)?( \w+)?\]\w|\[/\]", file.read_text()), file


def test_predict_survives_its_labels_and_file_names(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for short names: a table breaks long ones
    labels = ["[/red]x", "\x1b[31mred"]
    repmlp.save_model(timm.create_model("repmlp_cifar", **ARGS), tmp_path / "m", label_names=labels)
    image = Path("out[lr=1]\x1b[2J.png")
    Image.new("RGB", (8, 8)).save(image)
    assert main(["predict", str(tmp_path / "m"), str(image)]) == 0
    shown = re.sub(r"[\s│]", "", capsys.readouterr().out)
    assert "[/red]x" in shown
    assert "\\x1b[31mred" in shown
    assert "out[lr=1]\\x1b[2J.png" in shown
    assert "\x1b[31m" not in shown


@dataclass
class Settings:
    overwrite: bool = False
    val_fraction: float = 0.1


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("pass overwrite=True to replace it", "pass --overwrite to replace it"),
        ("val_fraction=1.5 is too much", "--val-fraction=1.5 is too much"),
        ("pass pad=True, or interval_fraction=2", "pass pad=True, or interval_fraction=2"),
        ("overwrite is off", "overwrite is off"),
    ],
)
def test_arguments_are_shown_as_flags_of_the_command(message, shown):
    assert with_flags(message, Settings) == shown


@pytest.mark.parametrize("error", [ValueError, OSError, FileNotFoundError, ImportError, FloatingPointError])
def test_an_error_that_a_user_can_mend_is_one_line_unless_debugging(error, monkeypatch, capsys):
    def fail(settings):
        raise error("no \x1b[2J")

    monkeypatch.setattr(info, "run", fail)
    assert main(["info", "resnet18"]) == 2
    assert capsys.readouterr().err == "error: no \\x1b[2J\n"
    for words in (["--debug", "info", "resnet18"], ["info", "resnet18", "--debug"]):
        with pytest.raises(error):
            main(words)


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, TypeError, KeyError])
def test_a_fault_of_ours_shows_its_traceback(error, monkeypatch):
    def fail(settings):
        raise error("no")

    monkeypatch.setattr(info, "run", fail)
    with pytest.raises(error):
        main(["info", "resnet18"])


@pytest.mark.parametrize(
    "arguments",
    ['{"colour": 1}', '{"channels": 5}', '{"img_size": -8}', '{"channels": [-4]}', '{"partition_size": 0}'],
)
def test_arguments_that_a_network_does_not_take_are_an_error(arguments, capsys):
    assert main(["info", "repmlp_cifar", f"--model_args={arguments}"]) == 2
    assert "error: repmlp_cifar cannot be built with" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("in_chans", 0), ("num_classes", -1)])
def test_a_network_that_cannot_run_is_not_built(name, value, capsys):
    assert main(["info", "test_resnet", f"--model_args.{name}={value}"]) == 2
    assert f"error: test_resnet cannot be built with {name}={value}: it has to be" in capsys.readouterr().err


def test_the_training_form_is_not_replaced_by_its_deploy_form(tmp_path, capsys):
    repmlp.save_model(timm.create_model("repmlp_cifar", **ARGS), tmp_path / "run" / "model")
    for source in ("run", "run/model"):
        assert main(["convert", str(tmp_path / source), str(tmp_path / "run" / "model"), "--overwrite"]) == 2
        assert "cannot be made again from the deploy form" in capsys.readouterr().err
    assert not repmlp.is_reparameterized(repmlp.load_model(tmp_path / "run"))
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "run" / "deploy")]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "run" / "deploy"), "--overwrite"]) == 0


def test_a_warning_is_one_line_and_escaped(monkeypatch, capsys):
    def warn(settings):
        print(warnings.formatwarning(UserWarning("no \x1b[2J"), UserWarning, "file.py", 1, "code"), end="")
        print(warnings.formatwarning(FutureWarning("no \x1b[2J"), FutureWarning, "file.py", 1, "code"), end="")
        return 0

    before = warnings.formatwarning
    monkeypatch.setattr(info, "run", warn)
    assert main(["info", "resnet18"]) == 0
    assert warnings.formatwarning is before
    first, second = capsys.readouterr().out.split("\n", 1)
    assert first == "warning: no \\x1b[2J"
    assert second.startswith("file.py:1: FutureWarning: no \\x1b[2J")


def test_no_command_prints_an_escape_of_a_name(tmp_path, capsys, monkeypatch):
    """Names of folders, files, classes and weights, in what is printed and in warnings."""
    monkeypatch.chdir(tmp_path)
    evil, printed = "[red]\x1b[2J", []
    for split, images in (("train", 4), ("val", 2)):
        for name in (f"a{evil}", f"b{evil}"):
            (tmp_path / evil / split / name).mkdir(parents=True)
            for i in range(images):
                picture(i, 8, 8).save(tmp_path / evil / split / name / f"{i}{evil}.png")
    (tmp_path / evil / "val" / f"a{evil}" / f"bad{evil}.png").write_text("no image")
    (tmp_path / evil / "val" / f"a{evil}" / f"x.{evil}").write_text("no image")
    repmlp.save_model(timm.create_model("repmlp_cifar", **ARGS), tmp_path / f"w{evil}", [f"a{evil}", f"c{evil}"])
    args = [f"--model_args.{key}={value}" for key, value in ARGS.items() if key not in ("img_size", "num_classes")]
    run, data = f"r{evil}", ["--bad-images=skip"]
    train = ["--img-size=8", "--epochs=1", "--val-fraction=0", "--batch-size=4", f"--data=folder:{evil}", *args, *data]
    for words in (
        ["train", run, *train],
        ["train", run, *train],  # exists
        ["train", f"x{evil}", f"--weights=w{evil}", *train],  # of other classes
        ["info", run],
        ["convert", run],
        ["verify", run, f"{run}/deploy"],
        ["eval", run, f"folder:{evil}", *data],
        ["eval", run, f"folder:{evil}"],  # stops at the bad image
        ["predict", run, f"{evil}/val/a{evil}/0{evil}.png"],
        ["predict", run, f"{evil}/val/a{evil}/bad{evil}.png"],
        ["quantize", run, f"q{evil}.torchscript", "--engine=torch", "--max-drop=100", f"--data=folder:{evil}", *data],
    ):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            status = main(words)
        shown = capsys.readouterr()
        printed.append((words[0], status))
        for text in (shown.out, shown.err):
            assert "\x1b" not in text, words
    assert [status for _, status in printed] == [0, 2, 2, 0, 0, 0, 0, 2, 0, 2, 0], printed
    assert found
