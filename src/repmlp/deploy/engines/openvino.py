"""OpenVINO: an .xml file with its weights in a .bin file."""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .engine import INPUT, METADATA, Engine, Metadata, Program, Run, engine_errors, output_names
from .onnx import ONNX


class OpenVINO(Engine):
    format = "openvino"
    runtime = "openvino"
    suffix = ".xml"
    extra = "openvino"
    writers = readers = ("openvino",)
    precisions = ("bf16",)
    int8_methods = ("static", "weights")
    check = """
def run(file, images):
    import sys

    sys.modules.setdefault("openvino_telemetry", None)  # else it reports its use over the net
    import openvino

    # Without the hint, a CPU with bfloat16 instructions computes in bfloat16.
    network = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return list(network(images).to_tuple())
"""

    def load_package(self, module: str) -> Any:
        # OpenVINO reports its use over the net, but not where this package is missing.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        return super().load_package(module)

    def load_writers(self, int8: bool = False) -> None:
        super().load_writers()
        if int8:
            ONNX().load_writers()

    def parts(self, file: Path) -> tuple[Path, ...]:
        return (file, file.with_suffix(".bin"))

    def write(self, program: Program, file: Path, metadata: Metadata, opset: int | None = None) -> None:
        self._save(self.load_package("openvino").convert_model(program), file, metadata)

    def _save(self, model: Any, file: Path, metadata: Metadata) -> None:
        model.inputs[0].get_tensor().set_names({INPUT})
        for output, name in zip(model.outputs, output_names(metadata), strict=True):
            output.get_tensor().set_names({name})
        model.reshape([-1, *metadata["input_size"]])  # -1: any batch; the converter leaves H and W open too
        model.set_rt_info(json.dumps(metadata), [METADATA])
        # Names come from a count of the process: another file for each export of one model.
        model.set_friendly_name(metadata["architecture"] or "network")
        for number, op in enumerate(model.get_ordered_ops()):
            if re.fullmatch(r"\w+_\d+", op.get_friendly_name()):
                op.set_friendly_name(f"{op.get_type_name()}_{number}")
        self.load_package("openvino").save_model(model, file, compress_to_fp16=False)

    def weight_bits(self, method: str, reduce_range: bool) -> int:
        return ONNX().weight_bits(method, reduce_range)

    def quantize(self, model: nn.Module, file: Path, metadata: Metadata, calibration: Tensor | None) -> None:
        """Convert the ONNX file that onnxruntime's quantizer makes, with its scales."""
        with tempfile.TemporaryDirectory() as scratch:
            onnx = Path(scratch) / "int8.onnx"
            ONNX().quantize(model, onnx, metadata, calibration)
            with engine_errors(f"openvino cannot express this {type(model).__name__} in int8"):
                self._save(self.load_package("openvino").convert_model(onnx), file, metadata)

    def open(self, file: Path, threads: int | None, precision: str = "float32") -> tuple[Run, str]:
        core = self.load_package("openvino").Core()
        model = core.read_model(file)
        metadata = model.get_rt_info([METADATA]).astype(str) if model.has_rt_info([METADATA]) else ""
        # By default a CPU with bf16 instructions rounds to bf16.
        config = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bf16": "bf16"}[precision]}
        if threads:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        compiled = core.compile_model(model, "CPU", config)
        return lambda x: [torch.from_numpy(y) for y in compiled(x.numpy()).to_tuple()], metadata
