"""Model folders: what was written is what is read, and a damaged folder is told from a good one."""

import json
import pickle

import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import repmlp
from weights import randomize

ARGS = {"img_size": 16, "channels": [4, 8], "partition_size": 4, "kernel_sizes": [1, [3, 1]], "in_chans": 1}


@pytest.fixture
def model():
    return randomize(timm.create_model("repmlp_cifar", **ARGS))


@pytest.fixture
def folder(model, tmp_path):
    return repmlp.save_model(model, tmp_path / "model", label_names=[f"class {i}" for i in range(10)])


def same_outputs(a, b):
    x = torch.randn(2, 1, 16, 16)
    return torch.equal(a.eval()(x), b.eval()(x))


def test_both_forms_come_back_as_they_were_written(model, tmp_path):
    for form, name in ((model, "training"), (repmlp.reparameterize(model), "deploy")):
        loaded = repmlp.load_model(repmlp.save_model(form, tmp_path / name))
        assert same_outputs(form, loaded)
        assert repmlp.is_reparameterized(loaded) == (name == "deploy")
        assert not loaded.training


def test_timm_reads_the_folder_without_our_reader(model, folder):
    assert same_outputs(model, timm.create_model(f"local-dir:{folder}", pretrained=True))


def test_the_folder_describes_itself(model, tmp_path):
    data_config = {"mean": (0.3,), "std": (0.4,), "interpolation": "bicubic", "crop_pct": 0.9}
    names = [f"class {i}" for i in range(10)]
    cfg = repmlp.load_model(repmlp.save_model(model, tmp_path / "m", names, data_config)).pretrained_cfg
    assert cfg["label_names"] == names
    assert tuple(cfg["input_size"]) == (1, 16, 16)
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in cfg.items() if key in data_config} == data_config
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]


def test_label_names_survive_conversion(folder, tmp_path):
    deploy = repmlp.reparameterize(repmlp.load_model(folder))
    loaded = repmlp.load_model(repmlp.save_model(deploy, tmp_path / "deploy"))
    assert loaded.pretrained_cfg["label_names"][3] == "class 3"


def test_a_folder_is_not_overwritten_unless_asked_and_never_if_it_is_not_ours(model, folder, tmp_path):
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="exists already: choose another one, or pass --overwrite"):
        repmlp.save_model(randomize(model, 1), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    repmlp.save_model(randomize(model, 1), folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() != before

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(FileExistsError, match="not ours to replace"):
        repmlp.save_model(model, photos, overwrite=True)
    assert (photos / "cat.jpg").exists()


def test_a_write_that_fails_leaves_the_old_folder(model, folder, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("repmlp.checkpoint.save_for_hf", full_disk)
    with pytest.raises(OSError, match="No space left"):
        repmlp.save_model(model, folder, overwrite=True)
    assert same_outputs(model, repmlp.load_model(folder))
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_model_that_timm_did_not_make_cannot_be_described(tmp_path):
    with pytest.raises(ValueError, match=r"not made by timm\.create_model"):
        repmlp.save_model(torch.nn.Linear(2, 2), tmp_path / "x")


def test_missing_and_foreign_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model folder"):
        repmlp.load_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no model folder: it holds no config\.json"):
        repmlp.load_model(tmp_path)


def test_missing_weights_are_not_looked_for_in_a_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r"it holds no model\.safetensors"):
        repmlp.load_model(folder)


def test_truncated_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    for length in (0, 4, 100, len(data) // 2, len(data) - 1):
        (folder / "model.safetensors").write_bytes(data[:length])
        with pytest.raises(ValueError, match="is damaged or was not written to its end"):
            repmlp.load_model(folder)


def test_a_config_that_is_no_config(folder):
    for text in ("{", "[]", "{}", '"x"'):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match="does not describe a timm model"):
            repmlp.load_model(folder)


def test_an_unknown_architecture_says_what_there_is(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architecture": "repmlp_cifer"}))
    with pytest.raises(ValueError, match="unknown model 'repmlp_cifer', did you mean repmlp_cifar"):
        repmlp.load_model(folder)


def test_weights_of_another_model(folder):
    weights = load_file(folder / "model.safetensors")
    name = "head.fc.bias"
    for broken in ({**weights, name: torch.zeros(3)}, {k: v for k, v in weights.items() if k != name}):
        save_file(broken, folder / "model.safetensors")
        with pytest.raises(ValueError, match=f"do not fit its config.json(.|\n)*{name}"):
            repmlp.load_model(folder)


def test_a_full_disk_is_told_and_the_folder_stays_as_it_was(tmp_path, monkeypatch):
    model = timm.create_model("resmlp_6_32")
    repmlp.save_model(model, tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("repmlp.checkpoint.save_for_hf", full)
    with pytest.raises(OSError, match=r"could not be written to .*No space left on device.*what was there is kept"):
        repmlp.save_model(timm.create_model("resmlp_6_32"), tmp_path / "m", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
