"""Named pipes, sockets and devices among the files of a data set: refused by name or left out, never waited for."""

import socket
from pipes import named_pipe

import pytest

from repmlp.data import load_data
from repmlp.data.decoding import read_file
from repmlp.data.pixels import PIXELS
from repmlp.data.sets import CACHE
from repmlp.data.shards import INDEX

REFUSED = "is not a regular file but a named pipe, a socket or a device"


def test_a_named_pipe_is_an_image_that_cannot_be_read(folders):
    with named_pipe(folders / "val" / "cat" / "1.png") as pipe:
        with pytest.raises(ValueError, match=f"{pipe} {REFUSED}.*bad_images='skip'"):
            load_data(f"folder:{folders}")
        with pytest.warns(UserWarning, match=f"1 of 12 images cannot be read and are left out: {pipe}"):
            data = load_data(f"folder:{folders}", bad_images="skip")
        assert (len(data.train), len(data.test)) == (6, 5)


def test_a_socket_and_a_device_are_refused_and_a_link_to_a_file_is_read(folders, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(folders)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.png")
        (folders / "device.png").symlink_to("/dev/zero")
        for name in ("socket.png", "device.png"):
            with pytest.raises(ValueError, match=f"{name} {REFUSED}"):
                read_file(name)
    (folders / "link.png").symlink_to(folders / "val" / "cat" / "1.png")
    assert read_file("link.png") == (folders / "val" / "cat" / "1.png").read_bytes()


def test_a_shard_that_is_a_named_pipe_is_refused(shards):
    with named_pipe(shards / "train-000001.tar") as pipe, pytest.raises(ValueError, match=f"{pipe} {REFUSED}"):
        load_data(f"wds/{shards}")


@pytest.mark.parametrize("name", [CACHE, PIXELS])
def test_a_named_pipe_instead_of_a_file_of_ours_counts_as_none(folders, name):
    with named_pipe(folders / name):
        assert len(load_data(f"folder:{folders}").train) == 6


def test_a_named_pipe_instead_of_an_index_counts_as_none(shards):
    with named_pipe(shards / INDEX):
        assert len(load_data(f"wds/{shards}").train) == 12
