"""Model folders: what was written is what is read, and a damaged folder is told from a good one."""

import json
import os
import pickle
from contextlib import suppress

import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import repmlp
from elsewhere import claimed_elsewhere
from weights import randomize
from wrapped import WRAPPERS, wrapped

ARGS = {"img_size": 16, "channels": [4, 8], "partition_size": 4, "kernel_sizes": [1, [3, 1]], "in_chans": 1}


@pytest.fixture
def model():
    return randomize(timm.create_model("repmlp_cifar", **ARGS))


@pytest.fixture
def folder(model, tmp_path):
    return repmlp.save_model(model, tmp_path / "model", label_names=[f"class {i}" for i in range(10)])


def left(folder):
    return [path.name for path in folder.iterdir() if not path.name.startswith(".repmlp-lock-")]


def same_outputs(a, b):
    x = torch.randn(2, 1, 16, 16)
    return torch.equal(a.eval()(x), b.eval()(x))


def test_both_forms_come_back_as_they_were_written(model, tmp_path):
    for form, name in ((model, "training"), (repmlp.reparameterize(model), "deploy")):
        loaded = repmlp.load_model(repmlp.save_model(form, tmp_path / name))
        assert same_outputs(form, loaded)
        assert repmlp.is_reparameterized(loaded) == (name == "deploy")
        assert not loaded.training


def test_whoever_may_read_the_config_may_read_the_weights(model, tmp_path):
    before = os.umask(0o027)
    try:
        folder = repmlp.save_model(model, tmp_path / "model")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
    assert os.name == "nt" or modes["config.json"] == 0o640


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
    with pytest.raises(FileExistsError, match="exists already: choose another name, or pass overwrite=True"):
        repmlp.save_model(randomize(model, 1), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    repmlp.save_model(randomize(model, 1), folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() != before

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(FileExistsError, match=r"is not replaced, since it holds .*: cat\.jpg"):
        repmlp.save_model(model, photos, overwrite=True)
    assert (photos / "cat.jpg").exists()


def test_a_write_that_fails_leaves_the_old_folder(model, folder, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("repmlp.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        repmlp.save_model(model, folder, overwrite=True)
    assert same_outputs(model, repmlp.load_model(folder))
    assert left(folder.parent) == ["model"]


def test_a_model_that_timm_did_not_make_cannot_be_described(tmp_path):
    with pytest.raises(ValueError, match=r"not made by timm\.create_model"):
        repmlp.save_model(torch.nn.Linear(2, 2), tmp_path / "x")


def test_missing_and_foreign_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model folder"):
        repmlp.load_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"not a model folder: config\.json is missing"):
        repmlp.load_model(tmp_path)


def test_missing_weights_are_not_looked_for_in_a_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
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

    monkeypatch.setattr("repmlp.checkpoint.save_file", full)
    with pytest.raises(OSError, match=r"could not be written .*No space left on device.*what was there is kept"):
        repmlp.save_model(timm.create_model("resmlp_6_32"), tmp_path / "m", overwrite=True)
    assert left(tmp_path) == ["m"]
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_taken_off(model, tmp_path, wrapper):
    with wrapped(wrapper, model) as outer:
        assert same_outputs(model, repmlp.load_model(repmlp.save_model(outer, tmp_path / "m")))
        assert repmlp.resize(outer, 16).reinitialized == ()


@pytest.mark.parametrize(
    "make", [torch.fx.symbolic_trace, lambda model: model.stages, lambda model: model.state_dict()]
)
def test_what_cannot_be_described_is_refused_with_what_to_pass(model, tmp_path, make):
    for use in (lambda x: repmlp.save_model(x, tmp_path / "m"), lambda x: repmlp.resize(x, 32)):
        with pytest.raises(ValueError, match=r"not made by timm\.create_model.* pass the network that"):
            use(make(model))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_dtype_stays(model, tmp_path, dtype, memory_format):
    model = model.to(dtype).to(memory_format=memory_format)
    loaded = repmlp.load_model(repmlp.save_model(model, tmp_path / "m"))
    x = torch.randn(2, 1, 16, 16, dtype=dtype)
    assert torch.equal(loaded(x), model.to(memory_format=torch.contiguous_format)(x))


def test_shared_weights_are_written_once_for_each_name(model, tmp_path):
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    one, other, *_ = (norm for norm in norms if norm.num_features == 4)
    other.weight = one.weight
    assert same_outputs(model, repmlp.load_model(repmlp.save_model(model, tmp_path / "m")))


def test_label_names_are_one_for_each_class(model, folder, tmp_path):
    for names in (["a", "b"], [f"class {i}" for i in range(11)], "ten letter", list(range(10)), []):
        with pytest.raises(ValueError, match=r"label_names (has|must)"):
            repmlp.save_model(model, tmp_path / "x", label_names=names)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3),
        lambda folder: reset_classifier(repmlp.load_model(folder), 3),
    ],
)
def test_a_new_head_has_no_label_names(folder, tmp_path, change):
    model = change(folder)
    loaded = repmlp.load_model(repmlp.save_model(model, tmp_path / "m"))
    assert loaded.pretrained_cfg.get("label_names") is None
    named = repmlp.save_model(model, tmp_path / "named", label_names=["a", "b", "c"])
    assert repmlp.load_model(named).pretrained_cfg["label_names"] == ["a", "b", "c"]


def reset_classifier(model, classes):
    model.reset_classifier(classes)
    return model


def test_a_readme_stays_and_a_file_of_the_user_is_not_deleted(model, folder):
    (folder / "README.md").write_text("mine")
    repmlp.save_model(model, folder, overwrite=True)
    assert (folder / "README.md").read_text() == "mine"
    (folder / "train.py").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds .*: train\.py"):
        repmlp.save_model(model, folder, overwrite=True)
    assert (folder / "train.py").exists()


def test_a_link_to_a_model_folder_is_read_and_written_through(model, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    repmlp.save_model(randomize(model, 1), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert same_outputs(model, repmlp.load_model(folder))


def test_every_flipped_bit_of_a_tensor_is_found(model, folder):
    data = (folder / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for position in range(0, len(data), 997):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        (folder / "model.safetensors").write_bytes(flipped)
        if position >= header:
            with pytest.raises(ValueError, match="is damaged: its tensors are not those that were written"):
                repmlp.load_model(folder)
        else:  # what is left of the header may mean the same
            with suppress(ValueError):
                assert same_outputs(model, repmlp.load_model(folder))


def test_weights_that_another_tool_wrote_are_not_checked(model, folder):
    save_file(
        {name: tensor + 0.0 for name, tensor in load_file(folder / "model.safetensors").items()},
        folder / "model.safetensors",
    )
    assert same_outputs(model, repmlp.load_model(folder))


def test_a_folder_that_was_set_aside_is_named(folder):
    folder.rename(folder.with_name(f".repmlp-replaced-{folder.name}"))
    with pytest.raises(FileNotFoundError, match=r"no model folder .*model, but .* set it aside as .*replaced-model"):
        repmlp.load_model(folder)


def test_a_folder_that_another_process_writes_is_refused(model, tmp_path):
    with claimed_elsewhere(tmp_path / "m"), pytest.raises(BlockingIOError, match="m is being written by process"):
        repmlp.save_model(model, tmp_path / "m")
    repmlp.save_model(model, tmp_path / "m")


def test_the_model_of_a_run_belongs_to_its_training_and_other_folders_of_it_do_not(model, tmp_path):
    (tmp_path / "config.yaml").touch()
    with claimed_elsewhere(tmp_path):
        with pytest.raises(BlockingIOError, match=f"{tmp_path.name} is being written by process"):
            repmlp.save_model(model, tmp_path / "model")
        repmlp.save_model(model, tmp_path / "deploy")


@pytest.mark.parametrize("through", ["model", "link"])
def test_the_model_of_a_run_is_not_replaced_by_another(model, tmp_path, through):
    run = tmp_path / "run"
    weights = repmlp.save_model(model, run / "model") / "model.safetensors"
    (run / "config.yaml").touch()
    (run / "link").symlink_to("model")
    before = weights.read_bytes()
    with pytest.raises(ValueError, match=r"is the model that the run in .*run trained: choose another folder"):
        repmlp.save_model(repmlp.reparameterize(model), run / through, overwrite=True)
    assert weights.read_bytes() == before
    for _ in range(2):
        repmlp.save_model(repmlp.reparameterize(model), run / "deploy", overwrite=True)


def test_buffers_that_are_not_saved_take_the_dtype_of_most_weights(tmp_path):
    model = timm.create_model("eva02_tiny_patch14_224", num_classes=4, img_size=56).eval().bfloat16()
    model.blocks[0].norm1.float()
    loaded = repmlp.load_model(repmlp.save_model(model, tmp_path / "m"))
    x = torch.randn(1, 3, 56, 56, dtype=torch.bfloat16)
    assert torch.equal(loaded(x), model(x))


def test_a_network_of_two_dtypes_keeps_both(model, tmp_path):
    model.half()
    model.head.float()
    loaded = repmlp.load_model(repmlp.save_model(model, tmp_path / "m"))
    assert {name: t.dtype for name, t in loaded.state_dict().items()} == {
        name: t.dtype for name, t in model.state_dict().items()
    }
