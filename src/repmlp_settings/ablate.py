"""What can be set of an ablation."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ablate:
    """The paper's ablation: the same training with and without each part of RepMLP, for several seeds, as one table.

    Started again, the command goes on where it was, and with nothing left to train it makes the table again.
    Started several times at once, its processes share the runs among them.

    Args:
        recipe: YAML file of settings of `repmlp train`, for the network repmlp_cifar; all rows are trained by it.
        output: Folder to write: a run folder for each row and seed, and ablation.md, ablation.json, ablation.png.
        rows: By default all: pure-mlp (gives row A too), no-local, no-global, conv9-for-fc3, conv9, wide-convnet.
        seeds: Each row is trained once with each, for example --seeds 0,1,2.
        images: Train each row on subsets of these sizes, drawn by class and seed, for example 1000,5000,20000.
        steps: With --images: steps of the optimizer in each run, rounded up to whole epochs.
        data: Data set in place of the recipe's; see `repmlp train --help`.
        data_root: Folder that holds the data set.
        download: Let the data set be downloaded into data_root.
        epochs: Passes over the training images, in place of the recipe's.
        batch_size: Images per step of the optimizer, in place of the recipe's.
        cpu: Use the CPU even if there is a GPU.
        table: Only make the table again from the runs that are finished, and name the others; trains nothing.
        plan: Only print what is left to run, and how long it will take by a few measured steps; writes nothing.
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
