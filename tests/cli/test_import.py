"""`repmlp import` and the way back, `repmlp convert --to official`."""

import pytest
import timm
import torch

import repmlp
from repmlp import official
from repmlp_cli import main
from weights import randomize

ARGS = {"img_size": 64, "partition_size": 2, "kernel_sizes": [1]}
FLAGS = ["--arch", "repmlp_resnet50_light", *(f"--model_args.{key}={value}" for key, value in ARGS.items())]


@pytest.fixture(scope="module")
def model():
    return randomize(timm.create_model("repmlp_resnet50_light", num_classes=5, **ARGS))


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "weights.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in official.state_dict(model).items()}}, path)
    return path


def test_import_writes_a_model_folder_that_gives_the_same(model, file, tmp_path, capsys):
    assert main(["import", str(file), str(tmp_path / "m"), *FLAGS]) == 0
    shown = capsys.readouterr().out
    assert "a RepMLP-ResNet (v1) in training form" in shown
    loaded = repmlp.load_model(tmp_path / "m")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert main(["import", str(file), str(tmp_path / "m"), *FLAGS]) == 2
    assert "exists already" in capsys.readouterr().err


def test_weights_that_do_not_fit_say_what_they_look_like(file, tmp_path, capsys):
    assert main(["import", str(file), str(tmp_path / "m"), "--arch", "repmlpnet_t224"]) == 2
    error = capsys.readouterr().err
    assert "is a RepMLP-ResNet (v1) in training form, but --arch says repmlpnet_t224" in error
    assert "missing" in error
    assert "conv_embedding.conv.weight" in error
    assert not (tmp_path / "m").exists()


def test_a_block_with_other_groups_names_the_shape(file, tmp_path, capsys):
    assert main(["import", str(file), str(tmp_path / "m"), *FLAGS, "--model_args.groups=4"]) == 2
    assert "of another shape (stage2.1.light_repmlp.fc3.weight" in capsys.readouterr().err


def test_an_unknown_arch(file, tmp_path, capsys):
    assert main(["import", str(file), str(tmp_path / "m"), "--arch", "repmlp_resnet51"]) == 2
    assert "unknown model 'repmlp_resnet51', did you mean" in capsys.readouterr().err


@pytest.mark.slow
def test_the_way_back(model, file, tmp_path, capsys):
    main(["import", str(file), str(tmp_path / "m"), *FLAGS])
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "d.pth"), "--to", "official"]) == 0
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "t.pth"), "--to", "official-training"]) == 0
    training = torch.load(tmp_path / "t.pth", weights_only=True)
    assert all(torch.equal(training[name], tensor) for name, tensor in official.state_dict(model).items())
    deploy = torch.load(tmp_path / "d.pth", weights_only=True)
    expected = official.state_dict(repmlp.reparameterize(model))
    assert all(torch.equal(deploy[name], tensor) for name, tensor in expected.items())
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "d.pth"), "--to", "official"]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "d.pth"), "--to", "official", "--overwrite"]) == 0


def test_a_network_that_the_authors_do_not_have(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("repmlp_cli.convert.reparameterize", lambda model: pytest.fail("it works first"))
    repmlp.save_model(
        timm.create_model("repmlp_cifar", channels=[4], img_size=8, partition_size=4, kernel_sizes=[1]), tmp_path / "m"
    )
    assert main(["convert", str(tmp_path / "m"), "--to", "official"]) == 2
    assert "the authors' code has no CifarNet" in capsys.readouterr().err
