"""PyTorch's int8: FCs with weights in int8, activations rounded while the network runs; .torchscript files.

``torch.export`` cannot hold the packed weights of PyTorch's int8 layers. PyTorch has announced that it will drop both
these layers and TorchScript, but has nothing else that is as fast on CPUs.
"""

import json
import warnings
import zipfile
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from .engine import METADATA, Forward, Metadata, TorchEngine, engine_errors


class TorchScript(TorchEngine):
    format = None
    runtime = "torch"
    suffix = ".torchscript"
    int8_methods = ("dynamic",)
    check = """
def run(file, images):
    import torch

    with torch.no_grad():
        return [torch.jit.load(str(file), map_location="cpu")(torch.from_numpy(images)).numpy()]
"""

    def load(self, file: Path) -> tuple[Forward, str]:
        extra = {f"{METADATA}.json": b""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecation
            module = torch.jit.load(str(file), map_location="cpu", _extra_files=extra)
        return lambda x: module(x), extra[f"{METADATA}.json"].decode()

    def quantize(self, model: nn.Module, file: Path, metadata: Metadata, calibration: Tensor | None) -> None:
        message = f"PyTorch {torch.__version__} cannot quantize this {type(model).__name__}, use onnxruntime"
        with engine_errors(message), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecation
            from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

            script = torch.jit.script(quantize_dynamic(model, {nn.Linear: per_channel_dynamic_qconfig}))
            whole = BytesIO()
            torch.jit.save(script, whole, _extra_files={f"{METADATA}.json": json.dumps(metadata)})
            with zipfile.ZipFile(whole) as source, zipfile.ZipFile(file, "w") as target:
                for name in source.namelist():
                    if not name.endswith(".debug_pkl"):  # source lines with paths of this machine
                        target.writestr(name, source.read(name))
