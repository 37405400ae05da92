"""A sample of what benchmarks/mutations.py counts: single random errors are found, exact conversions accepted."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def mutations():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("mutations", BENCHMARKS / "mutations.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_random_errors_are_found(mutations):
    seeds = (20, 41, *range(1000, 1008))  # the first two change units that are seldom active, behind a pooled mean
    results = [row for seed in seeds for row in mutations.run_mutations(*mutations.small(seed), 2, seed)]
    assert [row for row in results if row["outcome"] == "missed"] == []
    assert sum(row["outcome"] == "rejected" for row in results) >= 16


def test_exact_conversions_are_accepted(mutations):
    results = [row for number in range(16) for row in mutations.run_exact(number)]
    assert all(row["outcome"] == "accepted" for row in results)
    assert {row["change"].partition(",")[0] for row in results} == {"float64", "float32", "bfloat16", "float16"}
    assert max(float(row["ratio"]) for row in results) > 0.1  # they do round


@pytest.mark.slow
def test_random_errors_in_networks_are_found(mutations):
    for name, build in mutations.networks().items():
        results = mutations.run_mutations(name, build(), 3, seed=7)
        assert [row for row in results if row["outcome"] == "missed"] == []
