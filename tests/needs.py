"""What a test file needs beyond the extra `dev`: without it the file is skipped, by the name of the package."""

import importlib.util

import pytest

ONNX = ("onnx", "onnxscript", "onnxruntime")
OPENVINO = ("openvino",)


def needs(*packages: str) -> None:
    """Packages are looked for, not imported: tests are about how they are imported."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed", allow_module_level=True)
