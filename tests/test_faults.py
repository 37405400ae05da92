"""A sample of the rounds of benchmarks/faults.py, and what its checks must find."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm

import repmlp
from weights import randomize

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ROUNDS = """
import json, sys, tempfile
from pathlib import Path
import faults

todo = json.loads(sys.argv[1])
with tempfile.TemporaryDirectory() as base:
    rounds = faults.Rounds(Path(base), sorted({name for _, name, _, _ in todo}))
    for number, name, kind, planted in todo:
        rounds.planted = planted
        print("ROUND", json.dumps(rounds.round(number, 0, name, kind)))
"""


def rounds(*todo: tuple[int, str, str, str | None]) -> list[dict]:
    """Rounds by number, case, kind and planted fault, in a process of their own: this one may not be forked."""
    path = os.pathsep.join([str(BENCHMARKS), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, json.dumps(todo)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    lines = [line.removeprefix("ROUND ") for line in done.stdout.splitlines() if line.startswith("ROUND ")]
    assert len(lines) == len(todo), done.stderr
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_run_survives_a_race_and_a_kill():
    race, kill = rounds((0, "train", "race", None), (1, "train", "kill", None))
    assert race["faults"] == kill["faults"] == []
    assert sorted(race["status"]) == [0, 2]  # exactly one of them trains


@pytest.mark.slow
def test_a_sample_of_all_faults():
    names = ("train --overwrite", "train --resume", "convert", "convert --overwrite", "save_model", "export torch")
    kinds = ("kill", "term", "int", "full", "perms", "race")
    todo = [(i, name, kind, None) for i, (name, kind) in enumerate((n, k) for n in names for k in kinds)]
    assert [row for row in rounds(*todo) if row["faults"]] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planted", "name", "kind", "found"),
    [
        ("written in place", "save_model", "kill", "again: save_model"),
        ("strangers deleted", "train --resume", "int", "not the command's, is gone"),
        ("rows lost", "train --resume", "kill", "not that of an undisturbed command"),
    ],
)
def test_faults_of_our_own_are_found(planted, name, kind, found):
    rows = rounds(*((i, name, kind, planted) for i in range(8)))
    assert any(found in fault for row in rows for fault in row["faults"]), rows


@pytest.fixture(scope="module")
def check():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import faults_check

        yield faults_check
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def work(tmp_path, check):
    """A folder in which m was replaced as it should be, next to a stranger's file; and the check of it."""
    model = randomize(timm.create_model("repmlp_cifar", channels=[4], img_size=8, partition_size=4, kernel_sizes=[1]))
    old = check.tree(repmlp.save_model(model, tmp_path / "old").parent)
    shutil.rmtree(tmp_path / "old")
    repmlp.save_model(randomize(model, 1), tmp_path / "m", data_config={"crop_pct": 0.5})
    new = check.tree(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".repmlp-partial-x").mkdir()
    (tmp_path / ".repmlp-partial-x" / "f").write_text("half")
    old = {name.replace("old", "m"): content for name, content in old.items()}
    return check.Check({"notes.txt": b"mine"}, old, new, grows=False), tmp_path, old


def test_what_is_whole_and_old_or_new_or_partial_is_not_a_fault(work, check):
    checks, folder, old = work
    assert checks.examine(folder) == ("new", [])
    for name, content in old.items():
        (folder / name).write_bytes(content)
    assert checks.examine(folder) == ("old", [])
    (folder / "m").rename(folder / ".repmlp-replaced-m")
    assert check.restore(folder) == [folder / "m"]
    assert checks.examine(folder) == ("old", [])


def test_what_the_other_command_of_a_race_wrote_is_whole_too(work):
    checks, folder, old = work
    checks.rival, checks.old = old, {}
    for name, content in old.items():
        (folder / name).write_bytes(content)
    assert checks.examine(folder) == ("rival", [])
    checks.rival = None
    assert "the output is neither old nor new" in checks.examine(folder)[1][0]


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda folder, old: (folder / "notes.txt").unlink(), "notes.txt, not the command's, is gone"),
        (lambda folder, old: (folder / "notes.txt").write_text("yours"), "notes.txt, not the command's, is changed"),
        (lambda folder, old: (folder / "m" / "x.tmp").touch(), "m/x.tmp is neither old, new nor named as partial"),
        (lambda folder, old: (folder / "m" / "config.json").unlink(), "the output is neither old nor new"),
        (
            lambda folder, old: (folder / "m/model.safetensors").write_bytes(old["m/model.safetensors"]),
            "the output is neither old nor new",
        ),
        (lambda folder, old: os.truncate(folder / "m/model.safetensors", 900), "the output is neither old nor new"),
    ],
)
def test_what_is_not_is_found(work, spoil, found):
    checks, folder, old = work
    spoil(folder, old)
    assert any(found in fault for fault in checks.examine(folder)[1])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run/metrics.csv", b""),
        ("run/metrics.csv", b"epoch,lr\n2,0.1\n"),
        ("run/metrics.csv", b"epoch,lr\n1,0."),
        ("run/test.json", b""),
        ("run/config.yaml", b"epochs: ["),
        ("run/state/state.pt", b"half"),
        ("run/model/model.safetensors", b"half"),
        ("run/curves.png", b"half"),
    ],
)
def test_files_of_a_run_that_are_not_whole_are_found(tmp_path, check, name, content):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(content)
    assert [fault.partition(" ")[0] for fault in check.damaged(tmp_path, [name])] == [name]


def test_a_traceback_in_the_results_names_no_folder(check):
    line = 'File "/home/me/.venv/lib/torch/storage.py", line 536, in _share File "/opt/a b/x.py", line 2'
    assert check.without_folders(line) == 'File "storage.py", line 536, in _share File "x.py", line 2'
