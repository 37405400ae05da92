"""The commands, as a user types them."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import timm
import torch
import yaml
from PIL import Image

import repmlp
from pictures import picture
from planted import wrong_reparameterize
from repmlp.data import load_data
from repmlp_cli import build_parser, main
from repmlp_cli.console import TrainingProgress
from repmlp_cli.demo import training_settings
from repmlp_settings import COMMANDS, Demo, Train

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
TINY = [
    "--img-size=8",
    "--model_args.channels=[4,8]",
    "--model_args.partition_size=4",
    "--model_args.kernel_sizes=[1,3]",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", str(folder), "--epochs=2", "--hflip=0", "--lr=0.1", *TINY]) == 0
    return folder


def loads_torch(statement: str) -> bool:
    code = f"import sys; {statement}; sys.exit('torch' in sys.modules)"
    return bool(subprocess.run([sys.executable, "-c", code], capture_output=True).returncode)


def test_help_is_answered_without_importing_torch():
    assert not loads_torch("import repmlp_cli; repmlp_cli.build_parser()")
    assert loads_torch("import repmlp_cli.info")  # the check can fail


def test_every_command_has_help(capsys):
    for command, settings in COMMANDS.items():
        with pytest.raises(SystemExit) as stop:
            main([command, "-h"])
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        for name in settings.__dataclass_fields__:
            assert name in shown
            assert f"{name}:" in settings.__doc__  # documented in the docstring


def test_a_command_that_does_not_exist(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["tarin"])
    assert stop.value.code == 2
    assert "train" in capsys.readouterr().err


WRONG = {
    "train r --lr abc": "--lr: expected float, got abc (see repmlp train --help)",
    "train r --epochs 1.5": "--epochs: expected int, got 1.5 (",
    "train r --learning-rate 1": "unrecognized arguments: --learning-rate 1 (",
    "train r --img_size x": "--img-size: expected int, list[int], null, got x (",
    "train r --data": "argument --data: expected one argument (",
    "quantize r --method x": "--method: expected one of 'static', 'dynamic', 'weights', null, got x (",
    "ablate recipe r --seeds x": "--seeds: expected int, got x (",
    "export": "the following arguments are required: model (",
    "eval a b c": "unrecognized arguments: c (see repmlp eval --help)",
    "train r --augment convert.py": "--augment: expected one of ",
    "train r --epochs bench.onnx": "--epochs: expected int, got bench.onnx (",
    "train r --val_fraction null": "--val-fraction: expected float, got null (",
    "verify a b --tolerance x": "--tolerance: expected a number, or null, got x (",
    "train r --config no/train.yaml": "--config: File does not exist",
    "": 'expected "command" to be one of ',
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_setting_is_told_in_one_line_with_its_flag(words, capsys):
    try:
        status = main(words.split())
    except SystemExit as stop:
        status = stop.code
    told = capsys.readouterr().err
    assert (status, told.count("\n")) == (2, 1)
    assert told.startswith(f"error: {WRONG[words]}")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_read(recipe):
    args = build_parser("train").parse_args(["train", "--config", str(recipe), "out"])
    values = yaml.safe_load(recipe.read_text())
    assert all(args.train[key] == value for key, value in values.items() if key != "model_args")


def test_the_demo_is_the_digits_recipe():
    recipe = yaml.safe_load((Path(__file__).parents[2] / "recipes" / "digits.yaml").read_text())
    assert training_settings(Demo()) == Train(output="runs/demo", overwrite=True, **recipe)


def test_a_run_that_was_stopped_goes_on(tmp_path, capsys, monkeypatch):
    from repmlp_cli.console import TrainingProgress

    monkeypatch.setattr(TrainingProgress, "on_epoch", lambda self, row: os.kill(os.getpid(), signal.SIGINT))
    assert main(["train", str(tmp_path / "r"), "--epochs=2", "--val-fraction=0", *TINY]) == 130
    assert f"train again with --resume: repmlp train --resume {tmp_path / 'r'}\n" in capsys.readouterr().err
    monkeypatch.undo()
    unfinished = "the run is not finished (1 of 2 epochs): these are its weights so far"
    assert main(["convert", str(tmp_path / "r")]) == 0
    assert unfinished in capsys.readouterr().out
    (tmp_path / "r" / "deploy.aoti.pt2").touch()
    default = Train("").epochs
    assert main(["train", "--resume", str(tmp_path / "r"), f"--epochs={default}"]) == 2  # given, although the default
    assert f"its own settings: epochs was 2, not {default}" in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path / "r"), "--epochs", "2", "--val-fraction=0"]) == 0
    told = capsys.readouterr().out
    assert "last epoch, 2" in told
    assert "made from earlier weights: deploy, deploy.aoti.pt2; make them again with --overwrite" in told
    assert (tmp_path / "r" / "curves.png").exists()
    assert main(["convert", str(tmp_path / "r"), "--overwrite"]) == 0
    assert "not finished" not in capsys.readouterr().out
    assert main(["train", "--resume", str(tmp_path / "r")]) == 2
    assert "is finished" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "r"), *TINY]) == 2
    shown = capsys.readouterr()
    assert "exists already" in shown.err
    assert shown.out.strip() == ""  # no progress bar of what did not start


def test_flags_override_the_recipe(tmp_path, run):
    config = tmp_path / "r.yaml"
    config.write_text("model_args: {channels: [4], partition_size: 4, kernel_sizes: [3]}\nimg_size: 8\nepochs: 7\n")
    assert main(["train", "--config", str(config), str(tmp_path / "r"), "--epochs", "1", "--batch-size=512"]) == 0
    used = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
    assert (used["epochs"], used["img_size"], used["batch_size"]) == (1, 8, 512)


def test_train_says_what_it_reached_and_draws_curves(run):
    assert matplotlib.image.imread(run / "curves.png").shape[2] == 4


def test_convert_proves_and_writes(run, tmp_path, capsys):
    assert main(["convert", str(run), str(tmp_path / "deploy")]) == 0
    shown = capsys.readouterr().out
    assert "times the effect of rounding the float32 weights once" in shown
    assert "stages.0.2" in shown
    deploy = repmlp.load_model(tmp_path / "deploy")
    assert repmlp.is_reparameterized(deploy)
    assert repmlp.verify(repmlp.load_model(run), deploy)

    assert main(["convert", str(tmp_path / "deploy"), str(tmp_path / "again")]) == 0
    assert "in deploy form already" in capsys.readouterr().out
    assert not (tmp_path / "again").exists()


def test_convert_writes_into_the_run_folder_by_default_and_does_not_overwrite(run, capsys):
    assert main(["convert", str(run)]) == 0
    assert repmlp.is_reparameterized(repmlp.load_model(run / "deploy"))
    assert main(["convert", str(run)]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert main(["convert", str(run), "--overwrite"]) == 0


def test_convert_writes_nothing_if_the_forms_differ(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("repmlp_cli.convert.reparameterize", wrong_reparameterize)
    assert main(["convert", str(run), str(tmp_path / "deploy")]) == 1
    assert "the forms differ: nothing written" in capsys.readouterr().out
    assert not (tmp_path / "deploy").exists()


def test_verify(run, tmp_path, capsys):
    main(["convert", str(run), str(tmp_path / "deploy")])
    report = tmp_path / "report.json"
    arguments = [str(run), str(tmp_path / "deploy"), "--data", "digits", "--images", "50", "--json", str(report)]
    assert main(["verify", *arguments]) == 0
    assert "50 of 50 top-1 predictions agree" in capsys.readouterr().out
    assert json.loads(report.read_text())["equal"] is True
    assert main(["verify", str(run), "--images", "20"]) == 0  # against a conversion in memory
    shown = capsys.readouterr().out
    assert "compared on 20 test images of digits and 20 random ones" in shown
    assert "40 of 40 top-1 predictions agree" in shown
    assert main(["verify", str(run), "--tolerance", "1e-12"]) == 1
    assert "NOT EQUAL" in capsys.readouterr().out


def test_verify_names_the_first_difference(run, tmp_path, capsys):
    deploy = repmlp.reparameterize(repmlp.load_model(run))
    with torch.no_grad():
        deploy.stages[0][2].partition_perceptron.fc3.bias[5] += 0.1
    repmlp.save_model(deploy, tmp_path / "wrong")
    assert main(["verify", str(run / "model"), str(tmp_path / "wrong"), "--images=2"]) == 1
    shown = capsys.readouterr().out
    assert "First difference in stages.0.2, in tensor stages.0.2.partition_perceptron.fc3.bias" in shown


@pytest.mark.parametrize("images", [0, -1])
def test_verify_needs_an_image(run, capsys, images):
    assert main(["verify", str(run), f"--images={images}"]) == 2
    assert f"--images is {images}: compare on one image or more" in capsys.readouterr().err
    assert main(["verify", str(run / "model"), "--images=1"]) == 0  # one is enough


def test_eval_gives_the_accuracy_of_training_in_both_forms(run, tmp_path, capsys):
    main(["convert", str(run), str(tmp_path / "deploy")])
    correct = json.loads((run / "test.json").read_text())["correct"]
    capsys.readouterr()
    for model, form in ((run, "training form"), (tmp_path / "deploy", "deploy form")):
        assert main(["eval", str(model), "digits"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"{correct} of 360 correct" in shown
        assert form in shown


def test_eval_counts_each_image_once_in_several_processes(run):
    correct = json.loads((run / "test.json").read_text())["correct"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}  # without it, each process on a CPU is on its own
    command = [*torchrun, "-m", "repmlp_cli", "eval", str(run), "digits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{correct} of 360 correct" in " ".join(done.stdout.split())


@pytest.fixture
def photos(tmp_path):
    """A data set of cats and dogs, three of each to train and to test on; one of the latter is no image."""
    folder = tmp_path / "photos"
    for seed, (part, name, i) in enumerate(itertools.product(("train", "val"), ("cat", "dog"), range(3))):
        file = folder / part / name / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(file)
    (folder / "val" / "cat" / "1.png").write_bytes(b"no image")
    return f"folder:{folder}"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["eval"], " of 5 correct"),
        (["verify", "--data"], "5 of 5 top-1 predictions agree"),
        (["export", "--format=torch", "--data"], "relative error against PyTorch on 5 given images"),
        (["quantize", "--engine=torch", "--max-drop=100", "--data"], "/5)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_stop_at_an_image_that_cannot_be_read_or_leave_it_out(photos, tmp_path, capsys, command, told):
    args = {"img_size": 8, "channels": [4, 8], "partition_size": 4, "kernel_sizes": [1, 3]}
    model = repmlp.save_model(timm.create_model("repmlp_cifar", num_classes=2, **args), tmp_path / "model")
    arguments = [command[0], str(model), *command[1:], photos]
    assert main(arguments) == 2
    assert "val/cat/1.png is not an image" in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r"1 of 12 images .*val/cat/1\.png"):
        assert main([*arguments, "--bad_images=skip"]) == 0
    assert told in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["train", "ablate"])
def test_training_shows_how_far_the_look_for_such_images_is(photos, tmp_path, monkeypatch, command):
    seen = []
    monkeypatch.setattr(TrainingProgress, "on_check", lambda self, checked, images: seen.append((checked, images)))
    model_args = {"channels": [4, 8], "partition_size": 4, "kernel_sizes": [1, 3]}
    settings = {"data": photos, "bad_images": "skip", "img_size": 8, "model_args": model_args, "epochs": 1}
    settings["val_fraction"] = 0.0
    recipe, output = tmp_path / "recipe.yaml", str(tmp_path / "output")
    recipe.write_text(yaml.safe_dump(settings))
    arguments = {
        "train": ["train", "--config", str(recipe), output],
        "ablate": ["ablate", str(recipe), output, "--rows=no-local", "--seeds=0"],
    }
    with pytest.warns(UserWarning, match=r"1 of 12 images .*val/cat/1\.png"):
        assert main(arguments[command]) == 0
    assert seen[:2] == [(6, 6), (6, 6)]  # checked; then decoded


def test_predict_names_labels(run, tmp_path, capsys):
    image, _ = load_data("digits").test[0]
    image.save(tmp_path / "digit.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "black.jpg")
    assert main(["predict", str(run), str(tmp_path / "digit.png"), str(tmp_path / "black.jpg"), "--top", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("%") == 4


def test_predict_with_a_file_that_is_no_image(run, tmp_path, capsys):
    (tmp_path / "x.png").write_text("hello")
    assert main(["predict", str(run), str(tmp_path / "x.png")]) == 2
    assert "is not an image that can be read" in capsys.readouterr().err


def test_info_counts_both_forms(run, capsys):
    assert main(["info", "repmlp_cifar"]) == 0
    shown = capsys.readouterr().out
    assert "118,866,560" in shown
    assert "52,806,272" in shown
    assert "GroupedLinear" in shown
    assert "batch norms" not in shown
    assert main(["info", "repmlpnet_t224"]) == 0
    assert "stay in deploy form: 12 stages.*.*.norm, 1 norm" in capsys.readouterr().out
    assert main(["info", str(run)]) == 0
    assert main(["info", "resnet18"]) == 0
    assert "nothing to convert" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "repmlp_cifer"], "did you mean repmlp_cifar"),
        (["convert", "nowhere"], "there is no model folder nowhere"),
        (["train", "out", "--data", "mnist"], "unknown data set 'mnist'"),
        (["train", "out", "--model", "nothing"], "unknown model 'nothing'"),
        (["eval", "nowhere", "digits"], "there is no model folder"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".repmlp-lock-")]


def test_nothing_to_convert(tmp_path, capsys):
    import timm

    repmlp.save_model(timm.create_model("test_resnet"), tmp_path / "m")
    assert main(["convert", str(tmp_path / "m")]) == 2
    assert "nothing to convert" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--epochs", "1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "360 of 360" in shown
    assert "times as fast" in shown
    made = sorted(path.name for path in Path("runs/demo").iterdir() if not path.name.startswith(".repmlp-lock-"))
    assert made == [
        "config.yaml",
        "curves.png",
        "deploy",
        "fc3.png",
        "metrics.csv",
        "model",
        "report.html",
        "test.json",
    ]
    assert "Yes: equal within" in Path("runs/demo/report.html").read_text()
    assert main(["demo", "--epochs", "1"]) == 0  # its own folder is its own to replace
