"""Training form to deploy form, for any model, and how to check that both compute the same."""

from .equivalence import EquivalenceReport, example_inputs, verify
from .reparameterization import convertible_modules, is_reparameterized, reparameterize

__all__ = [
    "EquivalenceReport",
    "convertible_modules",
    "example_inputs",
    "is_reparameterized",
    "reparameterize",
    "verify",
]
