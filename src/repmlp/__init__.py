"""RepMLP: fully-connected layers for image recognition, trained with convolutions, deployed without.

Importing the package registers its networks in timm: ``timm.create_model("repmlp_cifar")``.
"""

import importlib
from types import ModuleType

from . import functional, layers, models, official
from .checkpoint import load_model, save_model
from .conversion import fold_norms, is_reparameterized, reparameterize
from .conversion.equivalence import verify
from .conversion.report import EquivalenceReport
from .counting import Complexity, complexity
from .layers import RepMLP
from .locality import inject_locality
from .resizing import Resized, resize

#: Packages that are imported when they are first used, since they take time.
LAZY = ("ablation", "data", "deploy", "plot", "report", "training")

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


def __getattr__(name: str) -> ModuleType:
    if name in LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
