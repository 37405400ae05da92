"""Programs of ``torch.export`` compiled to machine code, for CPUs like this one: .aoti.pt2 files.

Open them only if you trust their origin. Writing them takes a C++ compiler.
"""

import json
from io import BytesIO
from pathlib import Path

from .engine import METADATA, Forward, Metadata, Program, TorchEngine


class AOTI(TorchEngine):
    format = "aoti"
    runtime = "aoti"
    suffix = ".aoti.pt2"
    check = """
def run(file, images):
    import torch
    from torch._inductor import aoti_load_package

    with torch.no_grad():
        outputs = aoti_load_package(str(file))(torch.from_numpy(images))
    return [output.numpy() for output in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)]
"""

    def write(self, program: Program, file: Path, metadata: Metadata, opset: int | None = None) -> None:
        from torch._inductor import aoti_compile_and_package

        configs = {
            "aot_inductor.metadata": {METADATA: json.dumps(metadata)},
            "cpp.dynamic_threads": True,  # or the number of threads of this process is compiled in
        }
        archive = BytesIO()  # not the file: PyTorch aborts the process if the disk is full
        aoti_compile_and_package(program, package_path=archive, inductor_configs=configs)
        file.write_bytes(archive.getbuffer())

    def load(self, file: Path) -> tuple[Forward, str]:
        from torch._inductor import aoti_load_package

        compiled = aoti_load_package(str(file))
        return compiled, compiled.get_metadata().get(METADATA, "")
