"""Pictures."""

from .curves import plot_curves
from .fc3 import plot_fc3

__all__ = ["plot_curves", "plot_fc3"]
