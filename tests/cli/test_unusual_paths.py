"""Outputs that are links to themselves, the root, or files of others: refused in one line, and kept."""

import pytest
import timm
import torch
from PIL import Image

import repmlp
from repmlp_cli import main, parse


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "m"
    network = timm.create_model(
        "repmlp_cifar", in_chans=1, img_size=4, channels=[2], partition_size=4, kernel_sizes=[1, 3]
    )
    return str(repmlp.save_model(network, folder, data_config={"input_size": (1, 4, 4)}))


@pytest.fixture
def run(tmp_path, model):
    """As far as `report` looks before it checks what it writes."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("epochs: 1\n")
    return str(tmp_path / "run")


@pytest.mark.parametrize(
    ("command", "output", "message"),
    [
        ("convert", "loop", "is a link to itself"),
        ("convert", "loop/x", "cannot be written"),
        ("convert", "/", "/ is the root of the file system: choose a name in a folder"),
        ("report", "loop", "is a link to itself"),
        ("report", "/", "is the root of the file system"),
        ("verify --json", "loop", "is a link to itself"),
        ("verify --json", "/", "is the root of the file system"),
        ("verify --json", "mine.json", "mine.json is kept, since it is not from this command"),
        ("bench --output", "benched", "bench.png is kept, since it is not from this command"),
        ("convert --to=official", "mine.json", "mine.json does not end as files of the authors' weights do"),
        ("convert --to=official --overwrite", "model.safetensors", "end it in .pth"),
    ],
)
def test_refused_before_any_work(tmp_path, monkeypatch, capsys, model, run, command, output, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("repmlp.checkpoint.read_weights", lambda file: pytest.fail("it works already"))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "benched").mkdir()
    kept = [tmp_path / "mine.json", tmp_path / "benched" / "bench.png"]
    for file in kept:
        file.write_text('{"blocks": 1}')
    name, *flags = command.split()
    words = [output, *flags] if "--to=official" in flags else [*flags, output]
    assert main([name, run if name == "report" else model, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [file.read_text() for file in kept] == ['{"blocks": 1}'] * 2


def test_reports_of_a_command_are_replaced_by_new_ones(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["verify", model, "--images=1", "--json", "report.json"]) == 0
        assert main(["bench", model, "--rounds=1", "--warmup=0", "--batches=1", "--output=b"]) == 0


def test_after_two_dashes_names_are_taken_as_they_are(tmp_path, monkeypatch, model, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (4, 4)).save("--my-cat.png")
    assert main(["predict", model, "--", "--my-cat.png"]) == 0
    assert "--my-cat.png" in capsys.readouterr().out
    _, settings = parse(["convert", "--overwrite", "--", "m", "--overwrite"])
    assert (settings.overwrite, settings.output) == (True, "--overwrite")
