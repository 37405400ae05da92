"""Named pipes in place of files: code that opens one gets an empty file, so that its test fails instead of waiting."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread


@contextmanager
def named_pipe(path: Path) -> Iterator[Path]:
    path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pipe = Path(folder) / "pipe"  # a second name: the tested code may replace the first
        os.mkfifo(pipe)
        os.link(pipe, path)
        writer = Thread(target=pipe.write_bytes, args=(b"",))  # waits until somebody reads
        writer.start()
        try:
            yield path
        finally:
            while writer.is_alive():
                os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
                writer.join(0.01)
