"""Files and folders are written whole or not at all, whatever happens meanwhile."""

import os
import resource
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from repmlp.files import atomic_file, atomic_folder, atomic_write, ensure_can_write, ensure_folder
from trees import OURS, put, start, tree


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


@pytest.fixture
def calls(monkeypatch):
    """What is flushed to disk and what is renamed, by name, in order."""
    calls, fsync = [], os.fsync

    def flushed(descriptor):
        calls.append(("flush", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flushed)

    def recorded(rename):
        def renamed(self, target):
            calls.append(("rename", target.name))
            return rename(self, target)

        return renamed

    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, recorded(getattr(Path, name)))
    return calls


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_file_is_flushed_then_renamed_then_its_folder_is_flushed(tmp_path, calls):
    put(tmp_path / "a.xml")
    with atomic_file(tmp_path / "a.xml") as new:
        put(new.with_suffix(".bin"), "more")
        put(new, "new")
        written = os.stat(new).st_ino
    assert os.stat(tmp_path / "a.xml").st_ino == written  # renamed, not copied: no moment with half of it
    flushed = [("flush", "a.bin"), ("flush", "a.xml")]
    assert calls == [*flushed, ("rename", "a.bin"), ("rename", "a.xml"), ("flush", tmp_path.name)]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_folder_is_flushed_then_renamed_then_its_parent_is_flushed(tmp_path, calls):
    put(tmp_path / "m" / "a")
    with atomic_folder(tmp_path / "m") as new:
        put(new / "a", "new")
        written = os.stat(new).st_ino
    assert os.stat(tmp_path / "m").st_ino == written
    renamed = [("rename", ".repmlp-replaced-m"), ("rename", "m")]
    assert calls == [("flush", "a"), ("flush", "m"), *renamed, ("flush", tmp_path.name)]


def test_a_named_pipe_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(FileExistsError, match="pipe is a named pipe, a socket or a device, which is not replaced"):
            atomic_write(tmp_path / name, "new")
    assert (tmp_path / "pipe").is_fifo()


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


def test_tensors_written_so_are_read(tmp_path):
    with atomic_file(tmp_path / "w.safetensors") as path:
        safetensors.torch.save_file({"a": torch.arange(3)}, path)
    assert safetensors.torch.load_file(tmp_path / "w.safetensors")["a"].tolist() == [0, 1, 2]
