"""RepMLP: fully-connected layers for image recognition, trained with convolutions, deployed without."""

from . import functional, layers, models, official
from .equivalence import EquivalenceReport, verify
from .layers import RepMLP
from .reparam import is_reparameterized, reparameterize

__version__ = "0.1.0"
__all__ = [
    "EquivalenceReport",
    "RepMLP",
    "functional",
    "is_reparameterized",
    "layers",
    "models",
    "official",
    "reparameterize",
    "verify",
]
