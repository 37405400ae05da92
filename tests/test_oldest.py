"""`make test-oldest` installs the oldest versions that pyproject.toml allows."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BOUND, PIN = r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)"', r"^([\w-]+)==([\d.]+)$"


def test_the_oldest_versions_are_those_that_are_allowed():
    project = (ROOT / "pyproject.toml").read_text()
    runtime = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)[1]
    demo = re.search(r"^demo = (.*)$", project, re.MULTILINE)[1]
    allowed = dict(re.findall(BOUND, runtime + demo))
    pinned = dict(re.findall(PIN, (ROOT / "tests" / "oldest.txt").read_text(), re.MULTILINE))
    assert allowed.keys() | {"numpy", "pyparsing"} == pinned.keys()
    for name, bound in allowed.items():  # of "6", 6.0.1 may be the oldest that installs; of "3.1", 3.1.0
        assert f"{pinned[name]}.".startswith(f"{bound}."), name
