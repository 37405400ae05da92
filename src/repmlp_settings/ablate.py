"""Settings of an ablation."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ablate:
    """Repeat the paper's ablation: train with and without each part of RepMLP, for several seeds, and make a table.

    Rerun the command to resume interrupted runs, train missing ones and rebuild the table. If you start it several
    times, the processes share the runs.

    Args:
        recipe: YAML file of settings of `repmlp train` for the network repmlp_cifar; all rows are trained with it.
        output: Folder to write: a run folder for each row and seed, and ablation.md, ablation.json, ablation.png,
            report.html.
        rows: Rows to train, by default all: pure-mlp (also gives row A), no-local, no-global, conv9-for-fc3, conv9,
            wide-convnet.
        seeds: Train each row once with each of these seeds (a list, not their number): --seeds 0,1,2.
        images: Train each row on subsets of these sizes, drawn by class and seed, for example 1000,5000,20000.
        steps: With --images: optimizer steps of each run, rounded up to whole epochs.
        data: Data set, instead of the recipe's; see `repmlp train --help`.
        data_root: Folder that holds the data set.
        download: Download the data set into data_root if needed.
        epochs: Passes over the training images, instead of the recipe's.
        batch_size: Images per optimizer step, instead of the recipe's.
        cpu: Use the CPU even if there is a GPU.
        table: Only rebuild the table from the finished runs and list the others, without training.
        plan: Only list the runs that are left, with their time as estimated from a few steps; nothing is written.
    """

    recipe: str
    output: str
    rows: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    images: list[int] = field(default_factory=list)
    steps: int = 1500
    data: str | None = None
    data_root: str | None = None
    download: bool = False
    epochs: int | None = None
    batch_size: int | None = None
    cpu: bool = False
    table: bool = False
    plan: bool = False
