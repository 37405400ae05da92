"""The code on the page about timm: the example works, and each fault that it names is there."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "timm.md").read_text()
CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(1, len(CODE)))
def test_each_fault_shows(number):
    exec(compile(CODE[number], f"docs/timm.md, code {number}", "exec"), {"__name__": "page"})


@pytest.mark.slow
def test_the_example_runs(capsys):
    exec(compile(CODE[0], "docs/timm.md, code 0", "exec"), {"__name__": "page"})
    assert "EQUAL" in capsys.readouterr().out.upper()


def test_there_are_faults_to_show():
    assert len(CODE) == 8
