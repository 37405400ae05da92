"""Files next to an exported file that show, on any machine, whether its outputs are still the same.

``FILE.check.npz`` holds eight random images, the outputs of the network for them computed in float64, and the largest
error allowed, relative to how much the outputs differ between images. ``FILE.check.py`` runs the file on the images and
compares; it needs only NumPy and the engine.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..conversion import example_inputs
from ..conversion.rounding import largest_deviation
from .engines import Engine, output_names
from .runtime import ExportedModel

CHECK_SUFFIXES = (".check.py", ".check.npz")
IMAGES = 8
#: Another machine may sum in another order: float32 may be off by this much, or this many times as much as here.
FLOAT32_ERROR, FLOAT32_MARGIN = 1e-5, 10.0
#: int8 is off by its rounding, about as much on every machine.
INT8_MARGIN = 2.0


def outputs_of(output: Any) -> list[Tensor]:
    """The tensors that a network returns: logits, or maps as a list or dict.

    Raises:
        ValueError: if it returns something else.
    """
    outputs = [output] if isinstance(output, Tensor) else list(output.values() if isinstance(output, dict) else output)
    if not all(isinstance(tensor, Tensor) for tensor in outputs):
        raise ValueError("the network returns nested outputs: export one that returns a tensor or a list of tensors")
    return outputs


@torch.no_grad()
def write_check_files(file: Path, engine: Engine, model: nn.Module, exported: ExportedModel) -> float:
    """Write both files next to ``file``; returns the relative error (norm over norm) for these images.

    Args:
        file: where the network was written.
        engine: its engine.
        model: the network, of any dtype: the reference.
        exported: that file, opened.
    """
    model = copy.deepcopy(model).to("cpu", torch.float64).eval()
    x = example_inputs(model, IMAGES).float()  # (8, C, H, W)
    expected = outputs_of(model(x.double()))
    outputs = outputs_of(exported(x))
    error = max(map(_error, expected, outputs))
    bound = INT8_MARGIN * error if "int8" in exported.metadata else max(FLOAT32_MARGIN * error, FLOAT32_ERROR)
    arrays = {f"output:{name}": y.numpy() for name, y in zip(output_names(exported.metadata), expected, strict=True)}
    script, data = (file.with_name(file.name + suffix) for suffix in CHECK_SUFFIXES)
    np.savez_compressed(data, images=x.numpy(), bound=np.float64(bound), **arrays)  # type: ignore[arg-type]
    text = _SCRIPT.format(runtime=engine.runtime, file=ascii(file.name), run=engine.check.strip())
    script.write_text(text, encoding="utf-8")
    return largest_deviation(expected, outputs).relative


def _error(expected: Tensor, output: Tensor) -> float:
    """As in the script: constant parts, which an error hardly changes, do not count."""
    spread = (expected - expected.mean(0)).norm().item() or expected.norm().item() or 1.0
    return (output - expected).norm().item() / spread


_SCRIPT = '''"""Check that an exported network still computes what the original network computed, on this machine.

    python THIS_FILE

It needs NumPy and {runtime}, and the .check.npz next to it. Exits with 0 if the outputs are the same, with 1 if not.
"""

import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).resolve().with_name({file})


{run}


def main():
    check = np.load(Path(__file__).resolve().with_suffix(".npz"))
    bound = float(check["bound"])
    names = [name for name in check.files if name.startswith("output:")]
    try:
        outputs = run(FILE, check["images"])
    except Exception as error:
        print(f"{{FILE.name}} DOES NOT RUN: {{error}}")
        return 1
    same = len(outputs) == len(names)
    for name, output in zip(names, outputs):
        expected = check[name]
        error = float("inf")
        if output.shape == expected.shape and np.isfinite(output).all():
            spread = np.linalg.norm(expected - expected.mean(0)) or np.linalg.norm(expected) or 1.0
            error = float(np.linalg.norm(output - expected) / spread)
        same = same and error <= bound
        print(f"{{name[7:]}}: error {{error:.1e}} of the outputs' spread, at most {{bound:.1e}} allowed")
    print(f"{{FILE.name}} {{'computes the same outputs' if same else 'DOES NOT COMPUTE THE SAME OUTPUTS'}}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
'''
