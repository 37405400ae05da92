"""One HTML file about a run or an ablation. It needs no server and no network."""

from .ablation import write_ablation_report
from .run import write_run_report

__all__ = ["write_ablation_report", "write_run_report"]
