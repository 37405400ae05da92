"""A run is never lost: killed at any moment it goes on bit for bit, and what is on disk is always whole."""

import csv
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

import repmlp.training.loop as loop
import repmlp.training.setup as setup
from repmlp.training import Stopped, train
from repmlp.training.state import STATE, read_state, write_state
from repmlp_settings import Train

TINY = {
    "model_args": {"channels": [4, 8], "partition_size": 4, "kernel_sizes": [1, 3], "drop_rate": 0.2},
    "img_size": 8,
    "epochs": 3,
    "batch_size": 64,
    "lr": 0.1,
    "cpu": True,
}
#: All that has a state or draws at random.
EVERYTHING = {
    "ema": 0.9,
    "mixup": 0.4,
    "cutmix": 1.0,
    "random_erasing": 0.3,
    "warmup_epochs": 1,
    "accumulation": 2,
    "clip": 5.0,
    "state_every": 4,
}


@pytest.fixture(autouse=True)
def _any_precision():
    """accelerate allows one precision per process, until it is told that it may be another."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


class Crash(Exception):
    pass


def crash_at(wanted):
    def on_step(step):
        if step.step == wanted:
            raise Crash

    return on_step


def weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


def metrics(folder):
    with (Path(folder) / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def assert_same_run(a, b):
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert metrics(a) == metrics(b)
    assert (Path(a) / "test.json").read_text() == (Path(b) / "test.json").read_text()


few_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")


@few_cores
@pytest.mark.parametrize(
    "changes",
    [
        EVERYTHING,
        pytest.param({**EVERYTHING, "opt": "adamw", "lr": 1e-3, "precision": "bf16"}, marks=pytest.mark.slow),
        pytest.param(
            {"augment": "resized-crop", "auto_augment": "rand-m9-mstd0.5", "workers": 2, "state_every": 7},
            marks=pytest.mark.slow,
        ),
        {"qat": True, "qat_fraction": 0.5, "ema": 0.9, "state_every": 7},
        pytest.param(
            {"accumulation": 4, "batch_size": 48, "ema": 0.9, "state_every": 5, "freeze": "all-but-blocks"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["everything", "adamw", "workers", "qat", "left-over micro-batches"],
)
def test_a_run_that_crashed_twice_ends_as_if_it_had_not(tmp_path, changes):
    train(Train(output=str(tmp_path / "whole"), **{**TINY, **changes}))
    settings = Train(output=str(tmp_path / "broken"), **{**TINY, **changes})
    with pytest.raises(Crash):
        train(settings, crash_at(11))
    with pytest.raises(Crash):
        train(Train(output=settings.output, resume=True), crash_at(49))
    train(Train(output=settings.output, resume=True))
    assert_same_run(tmp_path / "whole", settings.output)


def test_a_run_that_crashed_before_its_first_state_starts_again(tmp_path):
    train(Train(output=str(tmp_path / "whole"), **TINY))
    with pytest.raises(Crash):
        train(Train(output=str(tmp_path / "broken"), **TINY), crash_at(3))
    train(Train(output=str(tmp_path / "broken"), resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_run_whose_folder_has_moved_goes_on_where_it_is_now(tmp_path):
    train(Train(output=str(tmp_path / "whole"), **TINY))
    with pytest.raises(Crash):
        train(Train(output=str(tmp_path / "old"), **TINY), crash_at(23))
    (tmp_path / "old").rename(tmp_path / "new")
    done = train(Train(output=str(tmp_path / "new"), resume=True))
    assert done.folder == tmp_path / "new"
    assert not (tmp_path / "old").exists()
    assert_same_run(tmp_path / "whole", tmp_path / "new")


def test_a_run_that_crashed_between_its_row_and_its_state_has_no_row_twice(tmp_path):
    def on_epoch(row):
        if row.epoch == 2:
            raise Crash

    train(Train(output=str(tmp_path / "whole"), **TINY))
    with pytest.raises(Crash):
        train(Train(output=str(tmp_path / "broken"), **TINY), on_epoch=on_epoch)
    train(Train(output=str(tmp_path / "broken"), resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@few_cores
def test_the_number_of_workers_changes_nothing(tmp_path):
    for workers in (0, 2):
        settings = {"augment": "resized-crop", "epochs": 1, "workers": workers}
        train(Train(output=str(tmp_path / str(workers)), **{**TINY, **settings}))
    assert_same_run(tmp_path / "0", tmp_path / "2")


def start(*arguments):
    command = [sys.executable, "-m", "repmlp_cli", "train", *arguments]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # another number of them sums in another order
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **threads}
    )


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def written(folder):
    """When the state was last written; None for never."""
    return (folder / STATE).stat().st_mtime_ns if (folder / STATE).exists() else None


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_nothing(tmp_path):
    long = {**TINY, "epochs": 20, "ema": 0.99, "mixup": 0.2, "state_every": 10}
    train(Train(output=str(tmp_path / "whole"), **long))
    folder = tmp_path / "killed"
    flags = [f"--{key}={value}".replace("'", '"') for key, value in long.items()]
    moments = random.Random(os.getpid())  # other moments in every run of this test
    before = None
    for attempt in range(3):
        process = start("--resume", str(folder)) if attempt else start(*flags, str(folder))
        wait_for(
            lambda before=before: (folder / STATE).exists() and (folder / STATE).stat().st_mtime != before, process
        )
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run was over before it was killed"
        before = written(folder)
        assert read_state(folder) is not None  # whole, at whatever moment
    train(Train(output=str(folder), resume=True))
    assert_same_run(tmp_path / "whole", folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_write_the_state_and_leave(tmp_path, number):
    train(Train(output=str(tmp_path / "whole"), **TINY))

    def on_step(step):
        if step.step == 23:
            os.kill(os.getpid(), number)

    folder = tmp_path / "stopped"
    with pytest.raises(Stopped, match=r"stopped in epoch 2, step 23 of 60; .* train again with resume=True$"):
        train(Train(output=str(folder), **TINY), on_step)
    progress = read_state(folder)["progress"]
    assert (progress["epoch"], progress["batch"]) == (2, 3)
    train(Train(output=str(folder), resume=True))
    assert_same_run(tmp_path / "whole", folder)


@pytest.fixture
def interrupts():
    """Python's own handler of SIGINT, which a shell's background jobs do not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_a_second_signal_stops_at_once_and_handlers_are_restored(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def on_step(step):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stop:
        train(Train(output=str(tmp_path / "r"), **TINY), on_step)
    assert stop.type is KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is before


def test_training_works_where_signals_cannot_be_caught(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(train(Train(output=str(tmp_path / "r"), **TINY))))
    thread.start()
    thread.join()
    assert done[0].epoch >= 1


def test_a_full_disk_stops_the_run_and_keeps_the_last_state(tmp_path, monkeypatch):
    train(Train(output=str(tmp_path / "whole"), **TINY))
    writes = []

    def save(state, file):
        writes.append(1)
        if len(writes) == 2:
            file.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        torch_save(state, file)

    torch_save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(OSError, match=r"No space left on device.*what was there is kept: resume the run when"):
            train(Train(output=str(tmp_path / "full"), **TINY))
    assert [path.name for path in (tmp_path / "full" / "state").iterdir()] == ["state.pt"]
    assert read_state(tmp_path / "full")["progress"]["epoch"] == 2
    train(Train(output=str(tmp_path / "full"), resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "full")


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(tmp_path, monkeypatch):
    class Poisoned(nn.CrossEntropyLoss):
        calls = 0

        def forward(self, logits, target):
            self.calls += 1
            return super().forward(logits, target) * (float("nan") if self.calls > 30 else 1.0)

    poisoned = Poisoned()
    monkeypatch.setattr(setup, "build_loss", lambda settings, classes: ((lambda x, y: (x, y)), poisoned))
    with pytest.raises(FloatingPointError, match=r"the loss became nan in epoch 2: lower lr \(0.1\)"):
        train(Train(output=str(tmp_path / "r"), state_every=7, **TINY))
    state = read_state(tmp_path / "r")
    assert (state["progress"]["epoch"], state["progress"]["batch"]) == (2, 8)  # step 28 of 7, 14, 21, 28
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    assert len(metrics(tmp_path / "r")) == 1


def test_weights_that_are_no_numbers_are_not_written_either(tmp_path, monkeypatch):
    """As after an infinite gradient of a finite loss: the next loss would tell, but the state comes before it."""

    def on_step(step):
        if step.step == 28:
            with torch.no_grad():
                trained[0].head.fc.weight[0, 0] = float("nan")

    trained = []
    build = loop.build_model
    monkeypatch.setattr(loop, "build_model", lambda *args, **kw: trained.append(build(*args, **kw)) or trained[0])
    with pytest.raises(FloatingPointError, match=r"the weights are no longer finite in epoch 2"):
        train(Train(output=str(tmp_path / "r"), state_every=7, **TINY), on_step)
    state = read_state(tmp_path / "r")
    assert state["progress"]["batch"] == 1  # step 21
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_a_state_is_replaced_whole_and_never_written_into(tmp_path):
    write_state(tmp_path, {"progress": 1})
    with (tmp_path / STATE).open("rb") as before:
        write_state(tmp_path, {"progress": 2})
        assert torch.load(before, weights_only=True)["progress"] == 1
    assert torch.load(tmp_path / STATE, weights_only=True)["progress"] == 2
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state.pt"]


def test_resume_says_what_it_cannot_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run to resume in .*no config.yaml"):
        train(Train(output=str(tmp_path / "none"), resume=True))
    train(Train(output=str(tmp_path / "done"), **{**TINY, "epochs": 1}))
    with pytest.raises(ValueError, match="is finished: there is nothing to resume"):
        train(Train(output=str(tmp_path / "done"), resume=True))
    with pytest.raises(Crash):
        train(Train(output=str(tmp_path / "open"), **TINY), crash_at(3))
    with pytest.raises(ValueError, match=r"its own settings: lr was 0.1, not 0.3"):
        train(Train(output=str(tmp_path / "open"), resume=True, lr=0.3))
    default = Train("").epochs
    with pytest.raises(ValueError, match=f"its own settings: epochs was 3, not {default}"):
        train(Train(output=str(tmp_path / "open"), resume=True), given={"epochs"})
    with pytest.raises(Crash):
        train(Train(output=str(tmp_path / "open"), resume=True), crash_at(4), given={"workers", "resume"})


def test_a_run_in_progress_is_not_overwritten_silently(tmp_path):
    with pytest.raises(Crash):
        train(Train(output=str(tmp_path / "r"), state_every=2, **TINY), crash_at(3))
    with pytest.raises(FileExistsError, match="exists already"):
        train(Train(output=str(tmp_path / "r"), **TINY))
    assert read_state(tmp_path / "r")["progress"]["batch"] == 2
