"""Where files may be written: any name that the file system takes, one process at a time, refused before any work."""

import pytest
import timm
import torch
from filelock import FileLock

import repmlp
from repmlp.deploy import export, exporting, load_exported, quantize
from repmlp.files import LOCK
from weights import randomize
from wrapped import WRAPPERS, wrapped


def network():
    args = {"channels": (4,), "img_size": 8, "partition_size": 4, "kernel_sizes": (1, 3), "num_classes": 3}
    return repmlp.reparameterize(randomize(timm.create_model("repmlp_cifar", **args)))


@pytest.fixture
def no_work(monkeypatch):
    """Fail if anything is traced."""

    def trace(model):
        raise AssertionError("traced")

    monkeypatch.setattr(exporting, "trace", trace)
    monkeypatch.setattr("repmlp.deploy.quantization.split_groups", trace)


def taken(file):
    """As if another process were writing the file: its own claims nest."""
    return FileLock(file.with_name(f"{LOCK}{file.name}"))


@pytest.mark.parametrize("name", ["net.pt2", "mein Netz (2).pt2", "模型 é.pt2", "a" * 200 + ".pt2", "[red]x[/red].pt2"])
def test_names(tmp_path, name):
    done = export(network(), tmp_path / "a new folder" / name)
    assert load_exported(done.file).num_classes == 3


def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    export(network(), tmp_path / "link" / "a.pt2")
    assert (tmp_path / "there" / "a.pt2").is_file()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("a file/net.pt2", NotADirectoryError, "a file is not a folder"),
        ("folder.pt2", FileExistsError, "is a folder"),
        ("a" * 250 + ".pt2", ValueError, "is longer than"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(tmp_path, name, error, message):
    (tmp_path / "a file").write_text("")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(error, match=message):
        export(network(), tmp_path / name)


@pytest.mark.usefixtures("no_work")
def test_a_file_that_is_being_written_is_refused_before_any_work(tmp_path):
    test = [(torch.zeros(2, 3, 8, 8), torch.zeros(2))]
    with taken(tmp_path / "a.pt2"), pytest.raises(BlockingIOError, match=r"a\.pt2 is being written by another process"):
        export(network(), tmp_path / "a.pt2")
    with taken(tmp_path / "a.torchscript"), pytest.raises(BlockingIOError, match="is being written by"):
        quantize(network(), tmp_path / "a.torchscript", test, engine="torch")
    with taken(tmp_path / "a.pt2"), pytest.raises(ValueError, match="traced"):
        export(network(), tmp_path / "b.pt2")


def test_progress_is_reported(tmp_path):
    calls = []
    export(network(), tmp_path / "a.pt2", on_progress=lambda what, done, total: calls.append((what, done, total)))
    assert calls[0] == ("tracing the network and writing it", 0, 0)
    assert calls[1:] == [("comparing with PyTorch", i, 3) for i in range(3)]
    test = [(torch.zeros(2, 3, 8, 8), torch.zeros(2))] * 4
    report = {"on_progress": lambda what, done, total: calls.append((what, done, total))}
    quantize(network(), tmp_path / "a.torchscript", test, engine="torch", max_drop=100, **report)
    assert calls[-4:] == [("measuring accuracy", i, 4) for i in range(4)]


def test_a_new_head_has_no_label_names(tmp_path):
    model = network()
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["a", "b", "c"]}
    assert export(model, tmp_path / "a.pt2").metadata["label_names"] == ["a", "b", "c"]
    model.reset_classifier(5)
    done = export(model, tmp_path / "b.pt2")
    assert "label_names" not in done.metadata
    assert load_exported(done.file).num_classes == 5


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_network_in_a_wrapper_is_exported(tmp_path, wrapper):
    model = network()
    with wrapped(wrapper, model) as outer:
        done = export(outer, tmp_path / "a.pt2")
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(load_exported(done.file)(x), model(x))
