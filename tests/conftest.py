"""Settings of every test: one thread, a fixed seed, and hypothesis without a clock."""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=500)  # HYPOTHESIS_PROFILE=search: look further
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

torch.set_num_threads(1)  # tensors here are small, and tests run in several processes


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> None:
    """Fixtures that several tests share are made before a test is seeded: the same ones, whatever test comes first."""
    if fixturedef.scope != "function":
        torch.manual_seed(0)
