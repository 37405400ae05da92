"""ONNX files, run by onnxruntime; int8 by onnxruntime's quantizer."""

import json
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .engine import INPUT, METADATA, Engine, Metadata, Program, Run, engine_errors, output_names, trace

#: The first opset with GELU as one operator; PyTorch's exporter writes 18 and later.
OPSET, OLDEST_OPSET = 20, 18
#: What static int8 rounds: products and what lies between them. Not batch norms: that would round each of their four
#: vectors to 8 bits.
STATIC_OPERATORS = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Sigmoid", "AveragePool", "GlobalAveragePool", "MaxPool"),
    *("Concat", "Split", "Reshape", "Transpose", "Pad"),
)


class ONNX(Engine):
    format = "onnx"
    runtime = "onnxruntime"
    suffix = ".onnx"
    extra = "onnx"
    writers = ("onnxruntime", "onnx", "onnxscript")
    readers = ("onnxruntime",)
    int8_methods = ("static", "dynamic", "weights")
    check = """
def run(file, images):
    import os

    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it reports its use over the net
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})
"""

    def load_package(self, module: str) -> Any:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at import; else it reports its use over the net
        return super().load_package(module)

    def resolve_opset(self, opset: int | None) -> int:
        if opset is not None and opset < OLDEST_OPSET:
            raise ValueError(
                f"ONNX opset {opset} is too old for this exporter: use {OLDEST_OPSET} or later, {OPSET} if unsure"
            )
        return opset or OPSET

    def write(self, program: Program, file: Path, metadata: Metadata, opset: int | None = None) -> None:
        opset = self.resolve_opset(opset)
        onnx = torch.onnx.export(
            program,
            (),
            input_names=[INPUT],
            output_names=output_names(metadata),
            dynamic_shapes=({0: "batch"},),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
        assert onnx is not None
        written = onnx.model.opset_imports[""]
        if written != opset:  # the exporter only warns of it
            raise ValueError(f"the exporter cannot write opset {opset}, only {written}")
        for node in onnx.model.graph:
            node.metadata_props.clear()  # how it came from PyTorch's graph: as long as the graph itself
        onnx.model.metadata_props[METADATA] = json.dumps(metadata)
        onnx.save(file, external_data=False)

    def open(self, file: Path, threads: int | None, precision: str = "float32") -> tuple[Run, str]:
        onnxruntime = self.load_package("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        metadata = session.get_modelmeta().custom_metadata_map.get(METADATA, "")
        return lambda x: [torch.from_numpy(y) for y in session.run(None, {name: x.numpy()})], metadata

    def weight_bits(self, method: str, reduce_range: bool) -> int:
        return 7 if method != "weights" and (reduce_range or cpu_lacks_vnni()) else 8

    def quantize(self, model: nn.Module, file: Path, metadata: Metadata, calibration: Tensor | None) -> None:
        quantization = self.load_package("onnxruntime.quantization")
        scheme = metadata["int8"]
        options = {
            "per_channel": True,
            "reduce_range": scheme["weight_bits"] == 7,
            "weight_type": quantization.QuantType.QInt8,
        }
        with (
            engine_errors(f"onnxruntime cannot quantize this {type(model).__name__}"),
            tempfile.TemporaryDirectory() as scratch,
        ):
            plain, prepared = Path(scratch) / "float32.onnx", Path(scratch) / "prepared.onnx"
            self.write(trace(model), plain, metadata)
            if scheme["method"] == "weights":
                round_weights(self.load_package("onnx"), plain, file)
                return
            quantization.quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            if scheme["method"] == "static":
                assert calibration is not None
                quantization.quantize_static(
                    prepared,
                    file,
                    _Batches(calibration),
                    op_types_to_quantize=list(STATIC_OPERATORS),
                    activation_type=quantization.QuantType.QUInt8,
                    # An FC's output is rounded where the next layer wants it so; logits stay as they are.
                    extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
                    **options,
                )
            else:
                # Convs have no dynamic kernel with a scale per channel.
                quantization.quantize_dynamic(prepared, file, op_types_to_quantize=["MatMul", "Gemm"], **options)
        self._tidy(file, metadata)

    def _tidy(self, file: Path, metadata: Metadata) -> None:
        """Leave only the opsets that are used, and our metadata."""
        onnx = self.load_package("onnx")
        written = onnx.load(file)
        used = {node.domain for node in written.graph.node}
        opsets = [opset for opset in written.opset_import if opset.domain in used]
        del written.opset_import[:], written.metadata_props[:]
        written.opset_import.extend(opsets)
        written.metadata_props.add(key=METADATA, value=json.dumps(metadata))
        onnx.save(written, file)


def cpu_lacks_vnni() -> bool:
    """Whether this is an x86 CPU without VNNI, or PyTorch cannot tell.

    Such a CPU adds two 8-bit products in 16 bits and saturates without a word: its weights get 7 bits.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False  # ARM and others add them in 32 bits
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return not (capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))


def round_weights(onnx: Any, source: Path, target: Path) -> None:
    """Round the weights of FCs to int8, one scale per output; all else stays as it is.

    Each FC becomes MatMul(x, DequantizeLinear(weight)) + bias, which engines run as one product that reads int8
    weights. Convs stay float32: engines would expand their weights again at each call.
    """
    model = onnx.load(source)
    graph, make = model.graph, onnx.helper.make_node
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes, added = [], {}
    for node in graph.node:
        weight = constants.get(node.input[1]) if node.op_type in ("Gemm", "MatMul") else None
        if weight is None or len(weight.dims) != 2:
            nodes.append(node)
            continue
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        name, (x, _, *bias), (output,) = f"{weight.name}{'.T' * transposed}", node.input, node.output
        if name not in added:
            matrix = onnx.numpy_helper.to_array(weight)
            rounded, scale = _round(matrix.T if transposed else matrix)
            added[name] = [onnx.numpy_helper.from_array(rounded, f"{name}_int8")]
            added[name].append(onnx.numpy_helper.from_array(scale, f"{name}_scale"))
        product = f"{output}_product" if bias else output
        nodes.append(make("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [f"{output}_weight"], axis=1))
        nodes.append(make("MatMul", [x, f"{output}_weight"], [product]))
        if bias:
            nodes.append(make("Add", [product, *bias], [output]))
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *(tensor for pair in added.values() for tensor in pair)])
    onnx.save(model, target)


def _round(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix (I, Q) in int8, and its scales (Q,)."""
    scale = np.maximum(np.abs(matrix).max(0), np.finfo(np.float32).tiny) / 127
    return np.ascontiguousarray(np.round(matrix / scale).astype(np.int8)), scale.astype(np.float32)


class _Batches:
    """Calibration images as onnxruntime reads them."""

    def __init__(self, images: Tensor) -> None:
        self.batches: Iterator[Tensor] = iter(images.float().split(32))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.numpy()}
