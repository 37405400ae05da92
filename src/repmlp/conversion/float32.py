"""Float32 in full, where PyTorch may round the factors of convs and products to TF32 (10 bits) or bfloat16 (7)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 convs and products without rounding their factors first, whatever the user's settings are.

    By default a GPU rounds the factors of convs to TF32. PyTorch has two generations of settings for this, and reading
    an older one raises RuntimeError where it contradicts a newer one. Both are set here, the older ones where they can
    be read, and put back afterwards.
    """
    backends: Any = torch.backends
    older: dict[Callable[[Any], None], tuple[Any, Any]] = {}
    if allowed := _readable(lambda: backends.cudnn.allow_tf32):
        older[lambda value: setattr(backends.cudnn, "allow_tf32", value)] = (allowed, False)
    if (matmul := _readable(torch.get_float32_matmul_precision)) not in (None, "highest"):
        older[torch.set_float32_matmul_precision] = (matmul, "highest")
    operations = [getattr(b, name) for b in (backends.cudnn, backends.mkldnn) for name in ("conv", "rnn")]
    operations += [backends.cuda.matmul, backends.mkldnn.matmul]
    own, everywhere = [operation.fp32_precision for operation in operations], backends.fp32_precision
    with backends.__allow_nonbracketed_mutation():  # also after torch.backends.disable_global_flags()
        for change, (_, full) in older.items():
            change(full)
        backends.fp32_precision = "ieee"
        # Those that did not follow have a setting of their own.
        changed = [(o, before) for o, before in zip(operations, own, strict=True) if o.fp32_precision != "ieee"]
        for operation, _ in changed:
            operation.fp32_precision = "ieee"
    try:
        yield
    finally:
        with backends.__allow_nonbracketed_mutation():
            for change, (before, _) in older.items():
                change(before)
            for operation, value in changed:
                operation.fp32_precision = value
            backends.fp32_precision = everywhere


def _readable(setting: Callable[[], Any]) -> Any:
    try:
        return setting()
    except RuntimeError:
        return None
