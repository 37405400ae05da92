"""A disk that is too full for an exported file is an error; PyTorch's own writers abort the process."""

import resource

import pytest
import timm

import repmlp
from repmlp.deploy import export
from repmlp.deploy.engines import QUANTIZERS


@pytest.fixture(scope="module")
def model():
    args = {"channels": [4], "img_size": 8, "partition_size": 4, "kernel_sizes": [1], "num_classes": 10}
    return repmlp.reparameterize(timm.create_model("repmlp_cifar", **args))


@pytest.fixture
def full_disk():
    """No file can grow beyond 5,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_program_on_a_full_disk(model, tmp_path, full_disk):
    with pytest.raises(OSError, match=r"x\.pt2 could not be written .*; nothing is left of it"):
        export(model, tmp_path / "x.pt2")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".repmlp-lock-")] == []


def test_a_script_on_a_full_disk(model, tmp_path, full_disk):
    with pytest.raises(OSError, match="File too large"):
        QUANTIZERS["torch"].quantize(model, tmp_path / "x.torchscript", {}, None)
