"""Time alternatives against each other on a machine whose speed drifts."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one call over all rounds."""

    median: float
    fastest: float
    slowest: float


def time_interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int = 20, warmup: int = 3
) -> dict[str, Timing]:
    """Call every function once per round, in turn, so that a drift of the machine's speed affects all of them.

    Args:
        functions: what to time, by name; each call does all its work before it returns.
        rounds: counted calls of each.
        warmup: calls of each before, not counted.
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}
