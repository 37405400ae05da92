"""A network as a program of PyTorch's operators: what all formats are made from."""

import torch
from torch import nn

from ...conversion import example_inputs


@torch.no_grad()
def trace(model: nn.Module) -> torch.export.ExportedProgram:
    """Trace a network into a program that takes batches of any size."""
    example = example_inputs(model, batch_size=2)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which would get into the file
    return program
