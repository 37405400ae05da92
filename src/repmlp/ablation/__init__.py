"""The paper's ablation study: the same training with and without each part of RepMLP (v1, section 4.1)."""

from .jobs import Job, plan_jobs
from .plan import Cost, measure_costs
from .results import Line, Result, Spread
from .rows import ROWS, Row, check_recipe, choose_rows
from .subsets import ImagesStudy, check_images, recipe_for_images, subset_folders
from .summary import Summary, sole_writer, summarize

__all__ = [
    "ROWS",
    "Cost",
    "ImagesStudy",
    "Job",
    "Line",
    "Result",
    "Row",
    "Spread",
    "Summary",
    "check_images",
    "check_recipe",
    "choose_rows",
    "measure_costs",
    "plan_jobs",
    "recipe_for_images",
    "sole_writer",
    "subset_folders",
    "summarize",
]
