"""docs/your-own-block.md: its code runs, and the bug that it describes is found where the page says."""

import re
from pathlib import Path

import pytest
import torch

from repmlp.conversion import Reparameterizable
from repmlp.conversion.rounding import LIMIT

TEXT = (Path(__file__).parents[1] / "docs" / "your-own-block.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
BUG = "        large.bias += small.bias\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def test_the_code_of_the_page_runs():
    names = {}
    for code in CODE:
        exec(code, names)
    assert isinstance(names["TwoConvs"](4), Reparameterizable)
    (block,) = re.findall(r"class TwoConvs.*", CODE[0], re.DOTALL)
    assert len(block.strip().splitlines()) <= 24  # blank lines included


def test_the_bug_is_found_in_its_block():
    names = {}
    block, convert, _ = CODE
    assert BUG in block
    with pytest.raises(AssertionError):
        exec(block.replace(BUG, "") + convert, names)
    report = names["report"]
    assert {row.name for row in report.blocks if row.ratio > LIMIT} == {"1", "3"}
    shown = re.search(r"    (First difference in .*? channel) ", TEXT)[1]
    assert report.where().startswith(shown)
