"""RepMLP: fully-connected layers for image recognition, trained with convolutions, deployed without.

Importing the package registers its networks in timm: ``timm.create_model("repmlp_cifar")``.
"""

from . import functional, layers, models, official
from .checkpoint import load_model, save_model
from .conversion import fold_norms, is_reparameterized, reparameterize
from .conversion.equivalence import verify
from .conversion.report import EquivalenceReport
from .counting import Complexity, complexity
from .layers import RepMLP
from .locality import inject_locality
from .resizing import Resized, resize

__version__ = "0.1.0"
__all__ = [
    "Complexity",
    "EquivalenceReport",
    "RepMLP",
    "Resized",
    "complexity",
    "fold_norms",
    "functional",
    "inject_locality",
    "is_reparameterized",
    "layers",
    "load_model",
    "models",
    "official",
    "reparameterize",
    "resize",
    "save_model",
    "verify",
]
