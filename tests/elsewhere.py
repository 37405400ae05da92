"""What another process holds: in tests it is another thread, for which claims do not nest either."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from repmlp.files import claim


@contextmanager
def claimed_elsewhere(path: Path) -> Iterator[None]:
    claimed, done = Event(), Event()

    def hold() -> None:
        with claim(path):
            claimed.set()
            done.wait()

    thread = Thread(target=hold)
    thread.start()
    claimed.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()
