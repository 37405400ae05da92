"""`repmlp bench`"""

import json
from pathlib import Path

from repmlp.deploy.benchmarking import bench
from repmlp.deploy.environment import machine
from repmlp.files import atomic_write, ensure_can_write, is_json_with
from repmlp.messages import count
from repmlp.plot.throughput import plot_throughput
from repmlp_settings import Bench

from .console import say, table


def run(settings: Bench) -> int:
    output = Path(settings.output)
    for name in ("bench.json", "bench.png"):
        ensure_can_write(output / name, overwrite=True)
        if (output / name).exists() and not is_json_with(output / "bench.json", "about", "results"):
            raise FileExistsError(f"{output / name} is kept, since it is not from this command: choose another folder")
    measurements = bench(
        settings.models,
        settings.engines,
        settings.batches,
        settings.precisions,
        threads=settings.threads,
        rounds=settings.rounds,
        warmup=settings.warmup,
        memory=settings.memory,
        report=say,
    )
    about = {**machine(), "warmup": settings.warmup, "rounds": settings.rounds}
    # Each row is compared with the first row of the same batch size and precision: int8 with int8, bf16 with bf16.
    first = {(m.batch, m.precision): m.seconds.median for m in reversed(measurements)}
    rows = [
        [
            m.model,
            m.engine,
            m.precision,
            str(m.batch),
            f"{m.seconds.median * 1e3:.1f}",
            f"{m.seconds.fastest * 1e3:.1f}..{m.seconds.slowest * 1e3:.1f}",
            f"{m.images_per_second:.1f}",
            f"{first[m.batch, m.precision] / m.seconds.median:.2f}x",
            *([f"{(m.peak_memory or 0) / 2**20:.0f}"] if settings.memory else []),
            f"{m.complexity.macs / 1e6:.0f}" if m.complexity else "",
        ]
        for m in measurements
    ]
    header = ["model", "engine", "precision", "batch", "ms", "range", "images/s", "speed"]
    header += [*(["peak MiB"] if settings.memory else []), "M MACs"]
    where = f"{about['cpu']}, {count(about['threads'], 'thread')}"
    table(f"{where}, median of {settings.rounds} interleaved rounds", header, rows)
    results = {"about": about, "results": [m.to_dict() for m in measurements]}
    atomic_write(output / "bench.json", json.dumps(results, indent=1) + "\n")
    plot_throughput(measurements, output / "bench.png")
    say(f"wrote {output}/bench.json and bench.png")
    return 0
