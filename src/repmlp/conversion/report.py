"""What :func:`repmlp.verify` found, as numbers, as a table and as one sentence."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from .rounding import LIMIT, Deviation

HEADER = ("block", "max abs", "relative", "relative (float64)", "times rounding")
NETWORK = "whole network"


@dataclasses.dataclass(frozen=True)
class BlockDeviation:
    """How far a module, or the whole network, is from its reference.

    Attributes:
        name: of the module; of its first and last one where several in a row are compared as one.
        native: in the model's dtype, arithmetic included.
        float64: with the same weights, in float64.
        ratio: the float64 difference of the worst channel over what one random rounding of the weights does to it.
        output: where in the outputs that channel is, as in ``[0]['logits']``; empty if there is one output only.
        channel: its index.
        tensor: name of the tensor that is wrong, if it is known.
        note: why there is nothing to measure, for example NaN.
    """

    name: str
    native: Deviation
    float64: Deviation
    ratio: float
    output: str = ""
    channel: int | None = None
    tensor: str | None = None
    note: str = ""


def is_equal(row: BlockDeviation, tolerance: float | None = None) -> bool:
    """The verdict on one row: by its ratio, or by its relative deviations if there is a tolerance for them."""
    if tolerance is None:
        return row.ratio <= LIMIT
    return max(row.native.relative, row.float64.relative) <= tolerance and not row.note


@dataclasses.dataclass(frozen=True)
class EquivalenceReport:
    """The result of :func:`verify`. ``str(report)`` is a table; ``bool(report)`` is the verdict.

    Attributes:
        blocks: every block, and every other module that had to be compared, in the order of the model.
        network: the whole model.
        num_agree, num_images: how many top-1 predictions are the same, of how many (0 of 0 without class logits).
        dtype: of the weights, the coarser one of the two models.
        tolerance: largest relative deviation, if the caller gave one; it then decides instead of ``LIMIT``.
    """

    blocks: tuple[BlockDeviation, ...]
    network: BlockDeviation
    num_agree: int
    num_images: int
    dtype: str
    tolerance: float | None = None

    @property
    def equal(self) -> bool:
        return all(is_equal(row, self.tolerance) for row in (*self.blocks, self.network))

    def __bool__(self) -> bool:
        return self.equal

    @property
    def first_difference(self) -> BlockDeviation | None:
        """The first row that is not equal, which is where to look for the error."""
        return next((row for row in (*self.blocks, self.network) if not is_equal(row, self.tolerance)), None)

    @property
    def worst_block(self) -> BlockDeviation | None:
        return max(self.blocks, key=lambda block: block.ratio, default=None)

    def to_dict(self) -> dict[str, Any]:
        first = self.first_difference
        return {
            **dataclasses.asdict(self),
            "equal": self.equal,
            "first_difference": dataclasses.asdict(first) if first else None,
        }

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The cells of the table under ``HEADER``."""
        for row in (*self.blocks, self.network):
            native, exact = row.native, row.float64
            numbers = (native.maximum, native.relative, exact.relative)
            yield row.name, *(f"{number:.1e}" for number in numbers), f"{row.ratio:.3g}"

    def verdict(self) -> str:
        """One or two sentences: equal or not, by which measure, and where the first difference is."""
        agree = f", {self.num_agree} of {self.num_images} top-1 predictions agree" if self.num_images else ""
        if self.tolerance is None:
            bound = f"{LIMIT:g} times the effect of rounding the {self.dtype} weights once"
        else:
            bound = f"a relative deviation of {self.tolerance:.0e}"
        if self.equal:
            return f"equal within {bound}{agree}"
        return f"NOT EQUAL within {bound}{agree}. {self.where()}"

    def where(self) -> str:
        """A sentence that names the first module that differs, its worst channel and, if known, the tensor."""
        row = self.first_difference
        if row is None:
            return "Nothing differs."
        if row.note:
            return f"First difference in {row.name}: {row.note}."
        of = f" of {row.output}" if row.output else ""
        place = "" if row.channel is None else f", worst in output channel {row.channel}{of}"
        tensor = f", in tensor {row.tensor}" if row.tensor else ""
        return f"First difference in {row.name}{tensor}{place}: {row.ratio:.3g} times the effect of one rounding."

    def __str__(self) -> str:
        lines = [HEADER, *self.rows()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
        table = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
        return "\n".join([*table, self.verdict()])
