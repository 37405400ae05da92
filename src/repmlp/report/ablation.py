"""The report of an ablation: its table, its pictures, every run."""

from pathlib import Path

from ..ablation import Summary
from ..ablation.jobs import NOT_COMPARED
from . import document
from .document import Picture, Section, Table

PICTURES = {
    "ablation.png": "Left: test accuracy of each row and seed. Right: training loss of each row over the epochs",
    "energy.png": "The share of FC3's energy within each distance of the output pixel, for each row with an FC3",
}


def write_ablation_report(summary: Summary, folder: str | Path, overwrite: bool = False) -> Path:
    """Write report.html into the folder of an ablation, with the pictures that are there, and return its path.

    Raises:
        FileExistsError: if there is a report.html that is not a report, and ``overwrite`` is False.
    """
    folder = Path(folder)
    file = folder / document.NAME
    document.ensure_can_write_report(file, folder, overwrite)
    pictures = [
        Picture((folder / name).read_bytes(), alt, alt) for name, alt in PICTURES.items() if (folder / name).is_file()
    ]
    sections = [
        Section("Results", [Table(summary.caption, summary.header, summary.rows()), *summary.remarks()]),
        *([Section("Pictures", pictures)] if pictures else []),
        Section("Every run", [Table("Test accuracy, %", *summary.every_run())]),
        document.settings_section(summary.recipe, [*NOT_COMPARED, "seed"]),
        document.machine_section(summary.about, "The machine that measured the inference times"),
    ]
    lead = f"The same training with and without each part of RepMLP, {len(summary.results)} finished runs."
    document.write_page(file, document.render(summary.title, lead, sections))
    return file
