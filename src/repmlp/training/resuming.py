"""What a resumed run is checked against: its data and the environment that it has been computed in."""

import warnings
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from ..data import ImageData


def data_fingerprint(data: ImageData) -> dict[str, Any]:
    """What a run remembers of its data: classes, images of each, names and sizes of the files; not what is in them."""
    fingerprint: dict[str, Any] = {"classes": list(data.class_names)}
    for split in ("train", "val", "test"):
        images = getattr(data, split)
        labels = np.asarray(images.labels if images else [], dtype=np.int64)  # (N)
        fingerprint[split] = {
            "images": np.bincount(labels, minlength=len(data.class_names)).tolist(),
            "order": sha256(labels.tobytes()).hexdigest(),
            "files": data.digests.get(split, ""),
        }
    return fingerprint


def check_data(then: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Raise ValueError, naming what changed, unless the data is that of the run; a state before format 2 has None."""
    if then is None or then == now:
        return
    changes = []
    for what, names in (
        ("new", [name for name in now["classes"] if name not in then["classes"]]),
        ("missing", [name for name in then["classes"] if name not in now["classes"]]),
    ):
        if names:
            changes.append(f"{what} class{'es' if len(names) > 1 else ''} {', '.join(names[:5])}")
    for split in ("train", "val", "test"):
        counts = zip(then["classes"], then[split]["images"], now[split]["images"], strict=False)
        moved = [f"{a} {split} images of {name} are now {b}" for name, a, b in counts if a != b]
        if not changes and moved:
            changes += moved[:5]
        elif not changes and then[split] != now[split]:
            changes.append(f"some {split} images have another name, size or class")
    changes = changes or ["its classes have another order"]
    raise ValueError(
        f"the data is not what the run was trained on: {'; '.join(changes)}. Restore it, or start another run"
    )


def environment(processes: int) -> dict[str, int]:
    """What decides in which order numbers are added up."""
    return {"processes": processes, "threads": torch.get_num_threads()}


def check_environment(then: dict[str, int] | None, now: dict[str, int]) -> None:
    """Warn if the resumed run will differ from an uninterrupted one by rounding."""
    if then is not None and then != now:
        changes = " and ".join(f"{now[n]} {n} instead of {then.get(n)}" for n in now if then.get(n) != now[n])
        warnings.warn(
            f"the run resumes, but not bit for bit as if it had not been stopped: {changes} round sums differently",
            stacklevel=2,
        )
