"""What a run is resumed from: any bytes give a state, settings, or an error that names the file."""

import json
import os
import re
import shutil
import signal
import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from pipes import named_pipe

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import repmlp
import repmlp.training.loop as loop
from elsewhere import claimed_elsewhere
from pictures import picture
from repmlp.checkpoint import MODEL_FILES
from repmlp.files import foreign_names
from repmlp.training import absolute_paths, read_settings, train
from repmlp.training.config import FORMAT as CONFIG_FORMAT
from repmlp.training.config import write_settings
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
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        train(begun, crash)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Crash):
        train(replace(begun, data="folder:elsewhere"), crash)
    with pytest.raises(ValueError, match=r"its own settings, and its lr is 0[.]1, not 0[.]3"):
        train(replace(begun, data="folder:elsewhere", lr=0.3), crash)


def test_paths_are_kept_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub").mkdir()
    given = Train(output="r", data="wds/shards", weights="w.pth", data_root="root")
    assert absolute_paths(given) == replace(
        given, data=f"wds/{tmp_path}/shards", weights=f"{tmp_path}/w.pth", data_root=f"{tmp_path}/root"
    )
    assert absolute_paths(Train(output="r", data="torch/cifar10")).data_root == f"{tmp_path}/data"
    assert absolute_paths(Train(output="r", data="hfds/hub")).data == f"hfds/{tmp_path}/hub"
    for data in ("digits", "hfds/user/name"):
        assert absolute_paths(Train(output="r", data=data)) == Train(output="r", data=data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: picture(9, 8, 8).save(folder / "train/red/9.png"), "6 train images of red are now 7"),
        (lambda folder: (folder / "val/blue/0.png").unlink(), "2 test images of blue are now 1"),
        (
            lambda folder: (folder / "train/red/0.png").rename(folder / "train/red/new.png"),
            "as many train images, but some have another name, size or class",
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
    with pytest.raises(ValueError, match=f"the data is not what the run has been trained on: .*{message}"):
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


def message_of(read, path, kind):
    """The ValueError of reading, or the name of what was read."""
    try:
        found = read(path)
    except ValueError as error:
        return str(error)
    return {dict: "state.pt", Train: "config.yaml"}[kind] if isinstance(found, kind) else repr(found)


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
    assert "state.pt" in message_of(read_state, folder, dict)


TEXTS = st.text() | st.binary().map(lambda raw: raw.decode("latin-1"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(
    TEXTS
    | st.dictionaries(st.sampled_from(sorted(asdict(Train(output="r")))) | st.text(max_size=5), VALUES).map(
        yaml.safe_dump
    )
)
def test_any_text_is_settings_or_an_error_that_names_the_file(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    assert "config.yaml" in message_of(read_settings, path, Train)


#: A value of 2^99 numbers in a text of 100 lines.
BOMB = "\n".join(["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 99))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB.replace("a98:", "lr:"), "a0'"),
        (f"weights:\n{textwrap.indent(BOMB, ' ')}", "weights is a mapping, {'a0': "),
        ("lr: [", "cannot be read as settings of a run"),
        ("- lr", "holds a list, not the settings of a run by name"),
        ("", "holds nothing, not the settings"),
        ("learning_rate: 1", "holds 'learning_rate', which is not a setting of a run"),
        ("epoch: 1", "holds 'epoch', which is not a setting of a run: did you mean epochs?"),
        ("epochs: many", "epochs is a text, 'many', but has to be int"),
        ("epochs: true", "epochs is true or false, True, but has to be int"),
        ("model_args: 3", "model_args is a int, 3, but has to be dict"),
        ("precision: fp64", "precision is a text, 'fp64', but has to be Literal"),
        (
            f"# settings of a run of repmlp train, format {CONFIG_FORMAT + 1}\nlr: 1",
            "its format is 2, and this version reads 1",
        ),
        ("a: " + "[" * 3000, "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_config_is_said(begun, text, message):
    (Path(begun.output) / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.yaml.*{re.escape(message)}"):
        train(begun)


def test_settings_are_read_as_they_were_written(tmp_path):
    settings = Train(output="a: [b]", model_args={"channels": [4], "kernel_sizes": None}, img_size=[32, 64], lr=1e-5)
    write_settings(tmp_path / "config.yaml", settings)
    assert read_settings(tmp_path / "config.yaml") == settings
    (tmp_path / "config.yaml").write_text("lr: 1\nweights: null\n")  # written by hand
    assert read_settings(tmp_path / "config.yaml").lr == 1
