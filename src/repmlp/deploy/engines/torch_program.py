"""Programs of ``torch.export``: .pt2 files, run by PyTorch."""

import json
import os
from io import BytesIO
from pathlib import Path

import torch

from .engine import METADATA, Forward, Metadata, Program, TorchEngine


class TorchProgram(TorchEngine):
    format = "torch"
    runtime = "torch"
    suffix = ".pt2"
    check = """
def run(file, images):
    import os

    import torch

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # or PyTorch may unpickle, and so execute, what it does not know
    network = torch.export.load(file).module()
    with torch.no_grad():
        outputs = network(torch.from_numpy(images))
    return [output.numpy() for output in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)]
"""

    def write(self, program: Program, file: Path, metadata: Metadata, opset: int | None = None) -> None:
        archive = BytesIO()  # not the file: PyTorch aborts the process if the disk is full
        torch.export.save(program, archive, extra_files={f"{METADATA}.json": json.dumps(metadata)})
        file.write_bytes(archive.getbuffer())

    def load(self, file: Path) -> tuple[Forward, str]:
        extra = {f"{METADATA}.json": ""}
        force, before = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
        os.environ[force] = "1"  # or PyTorch may unpickle, and so execute, what it does not know
        try:
            module = torch.export.load(file, extra_files=extra).module()
        finally:
            os.environ.pop(force) if before is None else os.environ.update({force: before})
        # A function, not the module: that refuses train() and eval().
        return lambda x: module(x), extra[f"{METADATA}.json"]
