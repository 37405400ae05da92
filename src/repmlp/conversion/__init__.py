"""Training form to deploy form, for any model, and how to check that both compute the same."""

from .contract import (
    Reparameterizable,
    deploy_arguments,
    is_reparameterized,
    iter_reparameterizable,
    needs_reparameterize,
)
from .equivalence import example_inputs, verify
from .norm_folding import fold_norms
from .reparameterization import reparameterize
from .report import BlockDeviation, EquivalenceReport
from .rounding import Deviation, deviation
from .wrappers import timm_model, unwrap_model

__all__ = [
    "BlockDeviation",
    "Deviation",
    "EquivalenceReport",
    "Reparameterizable",
    "deploy_arguments",
    "deviation",
    "example_inputs",
    "fold_norms",
    "is_reparameterized",
    "iter_reparameterizable",
    "needs_reparameterize",
    "reparameterize",
    "timm_model",
    "unwrap_model",
    "verify",
]
