"""Only ours is replaced, what cannot be written is refused before any work, one process writes at a time."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

import repmlp.files
from repmlp.files import (
    MAX_NAME,
    atomic_folder,
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
from trees import OURS, put, start, tree


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
    os.mkfifo(tmp_path / "pipe")
    for path, ours, error, message in (
        (tmp_path / "pipe", None, FileExistsError, "pipe is a named pipe, a socket or a device, which is not replaced"),
        (tmp_path / "pipe", OURS, FileExistsError, "pipe is a named pipe"),
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


def test_looking_for_a_claim_leaves_its_file_as_it_is_and_does_not_need_to_write(tmp_path, monkeypatch):
    with claim(tmp_path / "m"):
        pass
    (file,) = tmp_path.iterdir()
    file.write_text("process 1 on another machine")
    assert not is_claimed(tmp_path / "m")
    assert file.read_text() == "process 1 on another machine"

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
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
