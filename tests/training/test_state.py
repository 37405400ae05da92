"""What a run is resumed from: any bytes give a state, or an error that names the file."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from pipes import named_pipe

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import repmlp
import repmlp.training.loop as loop
from elsewhere import claimed_elsewhere
from pictures import picture
from repmlp.checkpoint import MODEL_FILES
from repmlp.files import foreign_names
from repmlp.training import read_settings, train
from repmlp.training.loop import RUN_FILES
from repmlp.training.records import Epoch, append_row, keep_rows
from repmlp.training.state import FORMAT, STATE, read_state, stop_signals, write_state
from repmlp_settings import Train
from tiny import TINY


class Crash(Exception):
    pass


def crash(step):
    if step.step > 1:  # the state of the first step is written by then
        raise Crash


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """12 images of two classes to train on, 4 to test on."""
    folder = tmp_path_factory.mktemp("data")
    for split, images in (("train", 6), ("val", 2)):
        for name in ("red", "blue"):
            (folder / split / name).mkdir(parents=True)
            for i in range(images):
                picture(i, 8, 8).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture
def begun(data, tmp_path):
    """A run that was killed after its first step, and its own copy of the data."""
    shutil.copytree(data, tmp_path / "data")
    settings = {**TINY, "epochs": 2, "batch_size": 4, "state_every": 1, "val_fraction": 0.2}
    with pytest.raises(Crash):
        train(Train(output=str(tmp_path / "run"), data=f"folder:{tmp_path / 'data'}", **settings), crash)
    return Train(output=str(tmp_path / "run"), resume=True)


def test_a_run_whose_data_moved_is_resumed_from_anywhere(begun, tmp_path, monkeypatch):
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder .*[.] If the data of the run has moved, pass data="
    ):
        train(begun, crash)
    with pytest.raises(ValueError, match=r"data_root does not apply to folder:.* pass data="):
        train(replace(begun, data_root=str(tmp_path / "elsewhere")), crash)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Crash):
        train(replace(begun, data="folder:elsewhere"), crash)
    assert read_settings(tmp_path / "run" / "config.yaml").data == f"folder:{tmp_path / 'elsewhere'}"
    with pytest.raises(Crash):
        train(begun, crash)
    with pytest.raises(ValueError, match=r"its own settings: lr was 0[.]1, not 0[.]3"):
        train(replace(begun, data="folder:elsewhere", lr=0.3), crash)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: picture(9, 8, 8).save(folder / "train/red/9.png"), "6 train images of red are now 7"),
        (lambda folder: (folder / "val/blue/0.png").unlink(), "2 test images of blue are now 1"),
        (
            lambda folder: (folder / "train/red/0.png").rename(folder / "train/red/new.png"),
            "some train images have another name, size or class",
        ),
        (lambda folder: picture(0, 8, 8, "L").save(folder / "train/red/0.png"), "another name, size or class"),
        (
            lambda folder: [shutil.copytree(folder / s / "red", folder / s / "green") for s in ("train", "val")],
            "new class green",
        ),
        (
            lambda folder: [(folder / s / "red").rename(folder / s / "rouge") for s in ("train", "val")],
            "new class rouge; missing class red",
        ),
    ],
    ids=["added", "removed", "renamed", "size", "class", "class renamed"],
)
def test_data_that_changed_is_refused_and_named(begun, tmp_path, change, message):
    change(tmp_path / "data")
    with pytest.raises(ValueError, match=f"the data is not what the run was trained on: .*{message}"):
        train(begun, crash)


def test_other_pixels_of_the_same_size_are_not_looked_at(begun, tmp_path):
    file = tmp_path / "data/train/red/0.png"
    content = file.read_bytes()
    file.write_bytes(content)
    os.utime(file, (1, 1))
    with pytest.raises(Crash):
        train(begun, crash)


def test_another_number_of_threads_is_said(begun, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with pytest.warns(UserWarning, match="not bit for bit .*: 7 threads instead of 1 round"), pytest.raises(Crash):
        train(begun, crash)


def test_a_folder_that_another_process_trains_in_is_refused(begun, tmp_path):
    for settings in (begun, Train(output=str(tmp_path / "new"), **TINY)):
        before = sorted(Path(begun.output).rglob("*"))
        with (
            claimed_elsewhere(settings.output),
            pytest.raises(BlockingIOError, match=rf"being written by process {os.getpid()} on "),
        ):
            train(settings, crash)
        assert sorted(Path(begun.output).rglob("*")) == before
    assert not (tmp_path / "new").exists()
    with pytest.raises(Crash):
        train(begun, crash)


def test_only_a_run_folder_is_overwritten(begun, tmp_path):
    again = replace(begun, resume=False, overwrite=True, **TINY)
    (tmp_path / "run" / "README.md").write_text("mine")
    (tmp_path / "run" / "notes.txt").write_text("mine too")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        train(again, crash)
    assert (tmp_path / "run" / STATE).exists()
    (tmp_path / "run" / "notes.txt").unlink()
    with pytest.raises(Crash):
        train(again, crash)
    assert (tmp_path / "run" / "README.md").read_text() == "mine"
    assert read_settings(tmp_path / "run" / "config.yaml").data == "digits"


def test_a_strangers_files_in_the_folders_of_a_run_stay(begun, tmp_path):
    strays = [tmp_path / "run" / name for name in ("notes.txt", "model/.DS_Store", "state/notes.txt")]
    for stray in strays:
        stray.parent.mkdir(exist_ok=True)
        stray.write_text("mine")
    partial = tmp_path / "run" / "state" / ".repmlp-partial-x"
    partial.mkdir()
    train(begun)
    assert all(stray.read_text() == "mine" for stray in strays)
    assert not (tmp_path / "run" / STATE).exists()
    assert not partial.exists()
    repmlp.load_model(tmp_path / "run")


def test_a_strangers_file_that_comes_while_a_run_starts_stays(begun, tmp_path, monkeypatch):
    stray = tmp_path / "run" / "notes.txt"
    monkeypatch.setattr(loop, "check_classes", lambda images: stray.write_text("mine"))
    with pytest.raises(Crash):
        train(replace(begun, resume=False, overwrite=True, **TINY), crash)
    assert stray.read_text() == "mine"


@pytest.fixture
def full_disk(monkeypatch):
    """A function that lets writing files of a name fail half-way."""

    def fill(name):
        for method in ("write_text", "write_bytes"):
            monkeypatch.setattr(Path, method, half(getattr(Path, method), name))

    def half(write, name):
        def fails(path, content, **how):
            write(path, content[:5] if path.name == name else content, **how)
            if path.name == name:
                raise OSError(28, "No space left on device")

        return fails

    return fill


@pytest.mark.parametrize("bit", range(0, 8, 3))
def test_a_flipped_bit_in_a_tensor_is_found(tmp_path, bit):
    """A resumed run would go on with another weight, and nothing else would show it."""
    weights = torch.arange(1000.0)
    write_state(tmp_path, {"progress": {}, "model": {"w": weights}, "optimizer": {}})
    assert torch.equal(read_state(tmp_path)["model"]["w"], weights)
    encoded = bytearray((tmp_path / STATE).read_bytes())
    encoded[encoded.index(weights.numpy().tobytes()) + 2000] ^= 1 << bit
    (tmp_path / STATE).write_bytes(encoded)
    with pytest.raises(ValueError, match=r"state\.pt is damaged.*checksum differs"):
        read_state(tmp_path)


@pytest.mark.parametrize("name", ["metrics.csv", "test.json"])
def test_a_run_whose_files_cannot_be_written_is_resumed(begun, full_disk, monkeypatch, name):
    """Half a test.json would make it look finished, and an empty metrics.csv would stay without a header."""
    full_disk(name)
    with pytest.raises(OSError, match=f"{name} could not be written .*; nothing is left of it"):
        train(begun)
    monkeypatch.undo()
    run = Path(begun.output)
    assert not (run / "test.json").exists()
    train(begun)
    assert [line.partition(",")[0] for line in (run / "metrics.csv").read_text().splitlines()] == ["epoch", "1", "2"]
    assert json.loads((run / "test.json").read_text())["images"] == 4


def test_rows_are_cut_and_added_whole_or_not_at_all(tmp_path, full_disk):
    path = tmp_path / "metrics.csv"
    rows = [Epoch(epoch, 0.1, 2.0, 0.5, 2.0, 0.5, 1.0) for epoch in (1, 2, 3)]
    for row in rows:
        append_row(path, row)
    whole = path.read_bytes()
    keep_rows(path, 1)
    for row in rows[1:]:
        append_row(path, row)
    assert path.read_bytes() == whole
    keep_rows(path, 0)
    for row in rows:
        append_row(path, row)
    assert path.read_bytes() == whole
    full_disk("metrics.csv")
    for change in (lambda: keep_rows(path, 1), lambda: append_row(path, rows[0])):
        with pytest.raises(OSError, match="what was there is kept"):
            change()
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [
        *((name, True) for name in ("config.yaml", "metrics.csv", "test.json", "curves.png", "state/state.pt")),
        *((f"{folder}/{name}", True) for folder in ("model", "deploy") for name in MODEL_FILES),
        *((name, True) for name in ("deploy.onnx", "deploy.xml", "deploy.bin", "deploy.aoti.pt2", "int8.torchscript")),
        *((name, True) for name in ("deploy.onnx.check.npz", "int8.xml.check.py", "mine.onnx.check.py")),
        *((name, True) for name in ("converted.json", "fc3.png", "report.html", "official.pth", "README.md", "state/")),
        *((name, True) for name in (".repmlp-lock-deploy.onnx", "state/.repmlp-partial-x/state.pt")),
        *((name, True) for name in ("repmlp/events.out.tfevents.1.host", "repmlp/17.5/hparams.yml")),
        *((name, False) for name in ("notes.txt", "photo.png", "photos/a.png", "deploy.txt", "int8.md", "mine.onnx")),
        *((name, False) for name in ("repmlp/train.py", "repmlp/17.5/a/b", "repmlp/a/hparams.yml", "a/x.check.py")),
        *((name, False) for name in ("model/notes.txt", "model/a/config.json", "deploy/deploy.onnx", "state/old.pt")),
    ],
)
def test_which_files_of_a_run_folder_are_ours(tmp_path, name, is_ours):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if name.endswith("/") else path.touch()
    assert (foreign_names(tmp_path, RUN_FILES) == []) == is_ours


def test_the_state_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    write_state(tmp_path, {"progress": Evil()})
    with pytest.raises(ValueError, match=r"state.pt is damaged, or holds more than tensors"):
        read_state(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_states_that_are_none_or_newer(tmp_path):
    whole = {"progress": {}, "model": {}, "optimizer": {}}
    write_state(tmp_path, whole)
    assert read_state(tmp_path) == {"format": FORMAT, **whole}
    write_state(tmp_path, {**whole, "format": FORMAT + 1})
    with pytest.raises(ValueError, match=f"has format {FORMAT + 1}, and this version reads {FORMAT} or less: update"):
        read_state(tmp_path)
    for foreign in ([1], {"model": {}}, {**whole, "model": 3}):
        torch.save(foreign, tmp_path / STATE)
        with pytest.raises(ValueError, match="is not the state of a run: it lacks"):
            read_state(tmp_path)


@pytest.mark.parametrize("raised", [None, signal.SIGINT, signal.SIGTERM])
def test_the_handlers_of_both_signals_are_restored(raised):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with stop_signals() as asked:
        assert all(signal.getsignal(number) is not handler for number, handler in before.items())
        if raised:
            signal.raise_signal(raised)
        assert asked.is_set() is (raised is not None)
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_state_that_is_a_named_pipe_is_refused(tmp_path):
    write_state(tmp_path, {"progress": {}, "model": {}, "optimizer": {}})
    with named_pipe(tmp_path / STATE) as pipe, pytest.raises(ValueError, match=f"{pipe} is not a regular file"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state["progress"].update(epoch="one"),
        lambda state: state["progress"].pop("batch"),
        lambda state: state["progress"].update(color=1),
        lambda state: state["model"].popitem(),
        lambda state: state["model"].update(extra=torch.zeros(1)),
        lambda state: state["optimizer"].pop("param_groups"),
        lambda state: state["optimizer"]["param_groups"].pop(),
        lambda state: state.update(totals=[[1]]),
        lambda state: state.update(data=[]),
        lambda state: state.update(environment=3),
    ],
)
def test_a_state_that_does_not_fit_the_run_is_refused_by_name(begun, damage):
    path = Path(begun.output) / STATE
    state = torch.load(path, weights_only=True)
    damage(state)
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"state\.pt .*does not fit"):
        train(begun, crash)


@given(st.data())
def test_any_bytes_are_a_state_or_an_error_that_names_the_file(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("state")
    write_state(folder, {"progress": {"epoch": 1}, "model": {"w": torch.arange(3.0)}, "optimizer": {}})
    content = bytearray((folder / STATE).read_bytes())
    if data.draw(st.booleans()):
        content = bytearray(data.draw(st.binary(max_size=200)))
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        del content[data.draw(st.integers(1, len(content))) :]
    (folder / STATE).write_bytes(content)
    try:
        found = read_state(folder)
    except ValueError as error:
        found = str(error)
    assert isinstance(found, dict) or "state.pt" in found
