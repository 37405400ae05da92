"""The examples run, and show what they say."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_converted_encoder_gives_the_same_masks(capsys):
    pytest.importorskip("segmentation_models_pytorch")
    spec = importlib.util.spec_from_file_location("segmentation", EXAMPLES / "segmentation.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(steps=2, size=64)
    shown = capsys.readouterr().out
    assert "; equal within" in shown
    assert "100.0000% of the pixels have the same class" in shown
    assert shown.count("relative difference") == 5
