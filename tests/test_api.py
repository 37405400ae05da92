"""docs/api.txt is what docs/make_api.py writes, so that a change to the public surface shows in a review."""

import pkgutil
import runpy
from pathlib import Path

import pytest

import repmlp

SCRIPT = Path(__file__).parents[1] / "docs" / "make_api.py"


def test_the_list_of_public_names_is_up_to_date():
    made = runpy.run_path(str(SCRIPT))
    assert made["FILE"].read_text() == made["api"](), "run `python docs/make_api.py`, and look at what changed"


def test_it_lists_functions_flags_and_keys():
    lines = SCRIPT.with_name("api.txt").read_text().splitlines()
    assert "repmlp.reparameterize(model, inplace=False)" in lines
    assert "repmlp.functional.partition_map(x, size, pad=False)" in lines
    assert any(line.startswith("repmlp.RepMLP(in_channels, out_channels, feature_size, ") for line in lines)
    assert "train epochs = 100" in lines


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(repmlp.__path__) if module.ispkg])
def test_every_package_is_there_after_import_repmlp(name, monkeypatch):
    """The ones that ``import repmlp`` leaves out are imported when they are first used."""
    if name in repmlp.LAZY:
        monkeypatch.delattr(repmlp, name, raising=False)
    assert getattr(repmlp, name).__name__ == f"repmlp.{name}"


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'repmlp' has no attribute 'deplooy'"):
        repmlp.deplooy  # noqa: B018
