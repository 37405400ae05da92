"""Files and folders: written whole or not at all, only ours replaced, one writer at a time."""

import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

import repmlp.files
from repmlp.files import (
    MAX_NAME,
    atomic_file,
    atomic_folder,
    atomic_write,
    claim,
    claim_to_write,
    ensure_can_write,
    ensure_folder,
    foreign_names,
    is_claimed,
    is_sealed,
    rmtree_if_exists,
    seal,
)

OURS = ("config.json", "model/weights", "*.png", "state/*")


def put(path: Path, text: str = "old") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def start(code: str, *args: Path) -> subprocess.Popen:
    """Another process that runs ``code``; it imports the one module, not PyTorch."""
    environment = {**os.environ, "PYTHONPATH": str(Path(repmlp.files.__file__).parent)}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = put(tmp_path / "new folder" / "a.xml")
    with atomic_file(path) as new:
        assert new.name == "a.xml"
        put(new, "new")
        put(new.with_suffix(".bin"), "more")
        assert tree(path.parent)["a.xml"] == "old"
    assert tree(tmp_path) == {"new folder/a.xml": "new", "new folder/a.bin": "more"}


def test_a_text_is_written_whole_and_in_utf8(tmp_path):
    path = put(tmp_path / "a.json")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "half of it \ud800")
    assert tree(tmp_path) == {"a.json": "old"}
    atomic_write(path, "π")
    assert path.read_bytes() == b"\xcf\x80"


def test_a_folder_is_replaced_when_the_block_ends(tmp_path):
    put(tmp_path / "m" / "gone")
    with atomic_folder(tmp_path / "m") as new:
        put(new / "a" / "b", "new")
        assert tree(tmp_path / "m") == {"gone": "old"}
    assert tree(tmp_path) == {"m/a/b": "new"}
    assert os.stat(tmp_path / "m").st_mode == os.stat(tmp_path / "m" / "a").st_mode  # not that of a temporary folder


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("no"), KeyboardInterrupt()])
def test_if_the_block_raises_nothing_changes(tmp_path, atomic, existing, error):
    path = tmp_path / "x"
    if existing:
        put(path if atomic is atomic_file else path / "file")
    before = tree(tmp_path)
    with pytest.raises(type(error)) as raised, atomic(path) as new:  # noqa: PT012
        put(new if atomic is atomic_file else new / "file", "half")
        raise error
    assert raised.value is error
    assert tree(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["x"] if existing else [])


@pytest.fixture
def small_files():
    """The system refuses to write more than 10,000 bytes to a file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(100_000)),
        lambda path: torch.save({"a": torch.zeros(100_000)}, path),
        lambda path: safetensors.torch.save_file({"a": torch.zeros(100_000)}, path),
    ],
    ids=["bytes", "torch", "safetensors"],
)
def test_a_full_disk_is_an_os_error_that_says_what_is_kept(tmp_path, small_files, write, existing):
    if existing:
        put(tmp_path / "x")
    kept = "what was there is kept" if existing else "nothing is left of it"
    with (
        pytest.raises(OSError, match=rf"{tmp_path / 'x'} could not be written .*; {kept}"),
        atomic_file(tmp_path / "x") as path,
    ):
        write(path)
    assert tree(tmp_path) == ({"x": "old"} if existing else {})
    assert [p.name for p in tmp_path.iterdir()] == (["x"] if existing else [])


def test_a_readme_is_carried_over(tmp_path):
    put(tmp_path / "m" / "README.md", "mine")
    with atomic_folder(tmp_path / "m") as new:
        put(new / "config.json")
    assert tree(tmp_path / "m") == {"README.md": "mine", "config.json": "old"}


def test_what_is_not_ours_is_carried_over(tmp_path):
    for name in ("config.json", "notes.txt", "model/weights", "model/mine/a"):
        put(tmp_path / "m" / name, name)
    (tmp_path / "m" / "empty").mkdir()
    (tmp_path / "m" / "link").symlink_to("nowhere")
    with atomic_folder(tmp_path / "m", OURS) as new:
        put(new / "config.json", "new")
    assert tree(tmp_path / "m") == {"config.json": "new", "notes.txt": "notes.txt", "model/mine/a": "model/mine/a"}
    assert os.readlink(tmp_path / "m" / "link") == "nowhere"
    assert (tmp_path / "m" / "empty").is_dir()


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    put(tmp_path / "disk" / "m" / "config.json")
    put(tmp_path / "disk" / "f")
    (tmp_path / "m").symlink_to(tmp_path / "disk" / "m")
    (tmp_path / "f").symlink_to(tmp_path / "disk" / "f")
    ensure_can_write(tmp_path / "m", OURS, overwrite=True)
    with atomic_folder(tmp_path / "m") as new:
        put(new / "config.json", "new")
    with atomic_file(tmp_path / "f") as new:
        put(new, "new")
    assert (tmp_path / "m").is_symlink()
    assert (tmp_path / "f").is_symlink()
    assert tree(tmp_path / "disk") == {"m/config.json": "new", "f": "new"}


def test_a_process_killed_between_the_renames_loses_nothing_and_is_reported(tmp_path):
    put(tmp_path / "m" / "config.json")
    code = """
import os, sys, pathlib
from files import atomic_folder
rename = pathlib.Path.rename
def killed_after_one(self, target):
    rename(self, target)
    os.kill(os.getpid(), 9)
pathlib.Path.rename = killed_after_one
with atomic_folder(sys.argv[1]) as new:
    (new / "config.json").write_text("new")
"""
    process = start(code, tmp_path / "m")
    process.communicate()
    assert process.returncode == -9
    aside = tmp_path / ".repmlp-replaced-m"
    assert tree(aside) == {"config.json": "old"}
    for check in (lambda p: ensure_folder(p, "model folder"), lambda p: ensure_can_write(p, OURS, overwrite=True)):
        with pytest.raises(OSError, match=f"set .* aside as {aside}: rename that back"):
            check(tmp_path / "m")
    aside.rename(tmp_path / "m")
    ensure_folder(tmp_path / "m", "model folder")
    ensure_can_write(tmp_path / "m", OURS, overwrite=True)


def test_a_process_killed_after_the_renames_leaves_the_new_folder_and_the_next_write_clears_up(tmp_path):
    put(tmp_path / "m" / "config.json", "new")
    put(tmp_path / ".repmlp-replaced-m" / "config.json")
    ensure_can_write(tmp_path / "m", OURS, overwrite=True)
    with atomic_folder(tmp_path / "m") as new:
        put(new / "config.json", "newer")
    assert tree(tmp_path) == {"m/config.json": "newer"}


@pytest.mark.parametrize("error", [PermissionError("no"), KeyboardInterrupt()])
def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch, error):
    put(tmp_path / "m" / "config.json")
    rename = Path.rename

    def fails_for_the_new_one(self, target):
        if ".repmlp-partial-" in str(self):
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_new_one)
    with pytest.raises((OSError, KeyboardInterrupt)) as raised, atomic_folder(tmp_path / "m"):
        pass
    assert isinstance(error, KeyboardInterrupt) or "what was there is kept" in str(raised.value)
    assert tree(tmp_path) == {"m/config.json": "old"}


def test_ctrl_c_right_after_the_renames_leaves_the_new_folder_alone(tmp_path, monkeypatch):
    put(tmp_path / "m" / "config.json")
    rename = Path.rename

    def stopped_after_the_new_one(self, target):
        rename(self, target)
        if ".repmlp-partial-" in str(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", stopped_after_the_new_one)
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "m") as new:
        put(new / "config.json", "new")
    assert tree(tmp_path) == {"m/config.json": "new"}


def test_ctrl_c_while_the_temporary_folder_is_deleted_does_not_leave_it(tmp_path, monkeypatch):
    rmtree, calls = shutil.rmtree, []

    def stopped_once(folder, **options):
        calls.append(folder)
        if len(calls) == 1:
            raise KeyboardInterrupt
        rmtree(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", stopped_once)
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "f") as new:
        put(new, "new")
    assert tree(tmp_path) == {"f": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_folder_that_becomes_read_only_between_the_renames_is_named(tmp_path, monkeypatch):
    put(tmp_path / "m" / "config.json")
    rename, calls = Path.rename, []

    def only_once(self, target):
        calls.append(self)
        if len(calls) > 1:
            raise PermissionError("no")
        return rename(self, target)

    aside = tmp_path / ".repmlp-replaced-m"
    monkeypatch.setattr(Path, "rename", only_once)
    with (
        pytest.raises(OSError, match=f"what was there is now {aside}: rename that back"),
        atomic_folder(tmp_path / "m"),
    ):
        pass
    assert tree(tmp_path) == {".repmlp-replaced-m/config.json": "old"}


def test_writing_anyway_replaces_the_folder_that_was_set_aside(tmp_path):
    """As a resumed run does with its model: a stranger's file was set aside with it."""
    for name in ("config.json", "notes.txt"):
        put(tmp_path / ".repmlp-replaced-m" / name)
    with atomic_folder(tmp_path / "m", OURS) as new:
        put(new / "config.json", "new")
    assert tree(tmp_path) == {"m/config.json": "new", "m/notes.txt": "old"}


@pytest.mark.parametrize("ours", [None, OURS])
def test_what_does_not_exist_can_be_written(tmp_path, ours):
    for name in ("x", "a/b/x", "with spaces", "имя 名前", "x" * MAX_NAME):
        ensure_can_write(tmp_path / name, ours)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_can_be_written(tmp_path):
    (tmp_path / "m").mkdir()
    ensure_can_write(tmp_path / "m", OURS)


@pytest.mark.parametrize(
    "foreign",
    ["data.csv", "model/notes.txt", "state/", "src/", "weights", "model/README.md", "src/a.png", "state/a/b"],
)
def test_only_ours_is_replaced(tmp_path, foreign):
    folder = tmp_path / "m"
    for name in ("config.json", "model/weights", "a.png", "README.md", ".repmlp-lock-x", "model/.repmlp-partial-x/y"):
        put(folder / name)
    with pytest.raises(FileExistsError, match=r"exists already: .* pass overwrite=True to replace it"):
        ensure_can_write(folder, OURS)
    ensure_can_write(folder, OURS, overwrite=True)
    if foreign == "state/":  # an empty folder that is ours
        (folder / foreign).mkdir()
        ensure_can_write(folder, OURS, overwrite=True)
        return
    (folder / foreign).mkdir(parents=True) if foreign.endswith("/") else put(folder / foreign)
    with pytest.raises(FileExistsError, match=f"is not replaced, since it holds .*: {foreign}. Move it"):
        ensure_can_write(folder, OURS, overwrite=True)


def test_a_link_in_a_folder_is_not_ours_even_where_a_folder_of_ours_could_be(tmp_path):
    put(tmp_path / "elsewhere" / "weights")
    put(tmp_path / "m" / "config.json")
    (tmp_path / "m" / "model").symlink_to(tmp_path / "elsewhere")
    assert foreign_names(tmp_path / "m", OURS) == ["model"]


def test_many_foreign_names_are_counted(tmp_path):
    for i in range(7):
        put(tmp_path / "m" / f"{i}.py")
    with pytest.raises(FileExistsError, match=r"0\.py, 1\.py, 2\.py, 3\.py, 4\.py and 2 more"):
        ensure_can_write(tmp_path / "m", OURS, overwrite=True)


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_cannot_be_written_is_refused_before_any_work(tmp_path, overwrite):
    file, folder = put(tmp_path / "file"), tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, ours, error, message in (
        (folder, None, FileExistsError, "is a folder"),
        (file, OURS, FileExistsError, "is not a folder"),
        (file / "m", OURS, OSError, "is not a folder"),
        (tmp_path / "loop", OURS, OSError, "is a link to itself"),
        (tmp_path / ("x" * (MAX_NAME + 1)), OURS, ValueError, "longer than 238 bytes"),
        (tmp_path / ("名" * 80), None, ValueError, "longer than 238 bytes"),
        (Path("/proc/x"), None, OSError, "cannot be written"),
        (Path("/proc/x/y"), OURS, OSError, "cannot be written"),
    ):
        with pytest.raises(error, match=message):
            ensure_can_write(path, ours, overwrite)


def test_a_file_is_not_overwritten_unless_asked(tmp_path):
    file = put(tmp_path / "file")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        ensure_can_write(file)
    ensure_can_write(file, overwrite=True)


def test_ensure_folder(tmp_path):
    ensure_folder(tmp_path, "run")
    with pytest.raises(FileNotFoundError, match=f"there is no run {tmp_path / 'x'}$"):
        ensure_folder(tmp_path / "x", "run")


def test_one_process_at_a_time_and_the_other_hears_which(tmp_path):
    code = """
import sys
from files import claim
with claim(sys.argv[1]):
    print(flush=True)
    sys.stdin.read()
"""
    process = start(code, tmp_path / "m")
    process.stdout.readline()
    assert is_claimed(tmp_path / "m")
    assert not is_claimed(tmp_path / "other")
    with pytest.raises(BlockingIOError, match=f"is being written by process {process.pid} on "), claim(tmp_path / "m"):
        pass
    process.kill()
    process.communicate()
    assert not is_claimed(tmp_path / "m")
    with claim(tmp_path / "m"), claim(tmp_path / "m"):  # a run of an ablation claims its folder, and training again
        pass
    assert not is_claimed(tmp_path / "m")


def test_what_cannot_be_claimed_is_an_error_that_names_it():
    with pytest.raises(OSError, match=r"^/proc/x cannot be written: "), claim("/proc/x"):
        pass


def test_what_another_process_wrote_before_the_claim_is_not_overwritten(tmp_path, monkeypatch):
    file = tmp_path / "f"

    @contextmanager
    def after_the_other(path):
        put(file, "theirs")
        with claim(path):
            yield

    with claim_to_write(file):  # nothing came in between
        put(file, "ours")
    file.unlink()
    monkeypatch.setattr(repmlp.files, "claim", after_the_other)
    with pytest.raises(FileExistsError, match="exists already"), claim_to_write(file):
        pass
    assert file.read_text() == "theirs"
    with claim_to_write(file, overwrite=True):
        put(file, "ours")


def test_rmtree_if_exists(tmp_path):
    put(tmp_path / "m" / "a")
    rmtree_if_exists(tmp_path / "m")
    rmtree_if_exists(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_tensors_written_so_are_read(tmp_path):
    with atomic_file(tmp_path / "w.safetensors") as path:
        safetensors.torch.save_file({"a": torch.arange(3)}, path)
    assert safetensors.torch.load_file(tmp_path / "w.safetensors")["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("ours", "mine"),
        lambda text: f"mine\n{text}",
        lambda text: f"{text}mine\n",
        lambda text: text[:-1],
        lambda text: text.partition("\n<!--")[0],
        lambda text: f"{text}{text}",
        lambda text: "",
    ],
)
def test_a_sealed_text_is_ours_until_somebody_edits_it(tmp_path, edit):
    file = tmp_path / "README.md"
    file.write_text(seal("ours\n"))
    assert is_sealed(file)
    (tmp_path / "link").symlink_to(file)
    assert not is_sealed(tmp_path / "link")
    file.write_text(edit(seal("ours\n")))
    assert not is_sealed(file)


def test_what_is_no_text_is_not_sealed(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff" + seal("ours").encode())
    (tmp_path / "b").mkdir()
    assert not any(is_sealed(tmp_path / name) for name in ("a", "b", "nothing"))


def test_a_sealed_readme_goes_with_the_folder_it_describes(tmp_path):
    folder = tmp_path / "m"
    for name in ("README.md", "model/README.md"):
        put(folder / name, seal("the card of the old weights\n"))
    put(folder / "config.json")
    assert foreign_names(folder, OURS) == []
    ensure_can_write(folder, OURS, overwrite=True)
    put(folder / "model" / "README.md", seal("ours\n") + "mine")
    assert foreign_names(folder, OURS) == ["model/README.md"]
    (folder / "model" / "README.md").unlink()
    with atomic_folder(folder) as new:
        put(new / "config.json", "new")
    assert tree(folder) == {"config.json": "new"}
