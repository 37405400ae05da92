"""docs/api.txt is what docs/make_api.py writes, so that a change to the public surface shows in a review."""

import runpy
from pathlib import Path

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
