"""Pictures."""

from .ablation import plot_ablation, plot_images_study
from .curves import plot_curves
from .energy import plot_energy
from .fc3 import plot_fc3
from .token_mixing import plot_token_mixing

__all__ = ["plot_ablation", "plot_curves", "plot_energy", "plot_fc3", "plot_images_study", "plot_token_mixing"]
