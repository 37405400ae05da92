"""Programs of PyTorch: compiled ones, and ones that somebody put a pickle into."""

import io
import os
import shutil
import zipfile

import pytest
import timm
import torch
from torch import nn

import repmlp
from repmlp.deploy import export, load_exported
from weights import randomize


def deployed() -> nn.Module:
    args = {"channels": (4,), "img_size": 8, "partition_size": 4, "kernel_sizes": (1, 3), "num_classes": 3}
    cfg = {"label_names": ["a", "b", "c"]}
    return repmlp.reparameterize(randomize(timm.create_model("repmlp_cifar", pretrained_cfg_overlay=cfg, **args)))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_a_compiled_program(tmp_path):
    model = deployed()
    done = export(model, tmp_path / "a.aoti.pt2")
    exported = load_exported(done.file)
    assert exported.format == done.format == "aoti"
    assert exported.metadata["label_names"] == ["a", "b", "c"]
    for n in (1, 2, 5):
        x = torch.randn(n, 3, 8, 8)
        with torch.no_grad():
            assert (exported(x) - model(x)).norm() < 1e-4 * model(x).norm()
    damaged = tmp_path / "b.aoti.pt2"
    damaged.write_bytes(done.file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged, or its format is not aoti"):
        load_exported(damaged)


class RunsCode:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def test_a_pickle_in_a_program_is_not_executed(tmp_path, monkeypatch):
    proof, file = tmp_path / "proof", tmp_path / "net.pt2"
    export(deployed(), file)
    evil = io.BytesIO()
    torch.save(RunsCode(proof), evil)
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(name, evil.getvalue() if name.endswith("sample_inputs/model.pt") else data)
    before = dict(os.environ)
    with pytest.raises(ValueError, match="is damaged, or its format is not torch"):
        load_exported(file)
    assert not proof.exists()
    assert dict(os.environ) == before
    monkeypatch.setattr("torch._export.serde.serialize.log.disabled", True)  # its warning is malformed
    with pytest.raises(AssertionError, match="expected tuple or dict"):  # the file is dangerous indeed
        torch.export.load(file)
    assert proof.exists()
