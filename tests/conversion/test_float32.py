"""`verify` and the ablation compare float32 in full, whatever the user set for TF32; their settings come back."""

import subprocess
import sys

import pytest

SETTINGS = {
    "the defaults": "",
    "older, off": "B.cudnn.allow_tf32 = False",
    "older, for products": "torch.set_float32_matmul_precision('medium')",
    "newer, for all": "B.fp32_precision = 'tf32'",
    "newer, for convs": "B.cudnn.conv.fp32_precision = 'ieee'",
    "none may be changed": "B.disable_global_flags()",
    "both": "torch.set_float32_matmul_precision('high'); B.fp32_precision = 'tf32'",
}
CHECK = """
import torch
B = torch.backends
{setting}
from repmlp import RepMLP, reparameterize, verify
from torch import nn

operations = (B.cudnn.conv, B.cudnn.rnn, B.cuda.matmul, B.mkldnn.conv, B.mkldnn.rnn, B.mkldnn.matmul)
read = lambda: [operation.fp32_precision for operation in operations]
readable = lambda: [legible(lambda: B.cudnn.allow_tf32), legible(torch.get_float32_matmul_precision)]

def legible(setting):
    try:
        return setting()
    except RuntimeError:
        return "contradicts the newer settings"

class Spy(nn.Module):
    def forward(self, x):
        seen.append((read(), readable()))
        return x

before, seen = (read(), readable()), []
assert verify(Spy(), Spy(), torch.ones(2, 3))
assert seen and all(newer == ["ieee"] * 6 for newer, _ in seen), seen
if "contradicts" not in str(before):
    assert all(older == [False, "highest"] for _, older in seen), seen
assert (read(), readable()) == before, (read(), readable(), before)
block = RepMLP(4, 4, 8, 4, (1, 3))
assert verify(block, reparameterize(block))
if {inherits}:  # what was inherited follows its source afterwards
    B.fp32_precision = "tf32" if before[0][2] != "tf32" else "ieee"
    assert B.cuda.matmul.fp32_precision == B.mkldnn.conv.fp32_precision == B.fp32_precision
"""


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_float32_is_not_rounded_and_settings_are_restored(setting):
    # In a process of its own: PyTorch cannot forget that the newer settings were used.
    child = subprocess.run(
        [sys.executable, "-c", CHECK.format(setting=setting, inherits=setting in ("", SETTINGS["newer, for all"]))],
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
