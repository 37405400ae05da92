"""Latency and throughput of networks, forms and engines, side by side in one run."""

import copy
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

from ..checkpoint import check_architecture, load_model
from ..conversion import fold_norms, is_reparameterized, needs_reparameterize, reparameterize
from ..counting import Complexity, complexity
from .exporting import export
from .runtime import load_exported
from .timing import Timing, time_interleaved

#: How a network can be run. All but the first run the deploy form (of a plain timm network: with its BNs folded).
ENGINES = ("training", "pytorch", "channels_last", "compile", "onnxruntime", "openvino")
EXPORTED = {"onnxruntime": ".onnx", "openvino": ".xml"}
#: Relative error against PyTorch's own result up to which two engines compute the same.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Candidate:
    """One network on one engine, ready to run."""

    model: str
    engine: str
    run: Callable[[Tensor], Tensor]
    complexity: Complexity | None
    accuracy: float | None
    source: str  # what a fresh process opens to run it: the network's name or its exported file


@dataclass(frozen=True)
class Measurement:
    """What was measured of one network on one engine.

    ``seconds`` of one batch; ``peak_memory`` in bytes; ``error`` is relative to the network's first engine.
    """

    model: str
    engine: str
    batch: int
    seconds: Timing
    images_per_second: float
    peak_memory: int | None
    error: float
    complexity: Complexity | None
    accuracy: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _open_any(name: str) -> tuple[Any, float | None]:
    """A model or run folder with its test accuracy, if it has one; an exported file; or a new network by its name."""
    folder = Path(name)
    if folder.is_file():
        return load_exported(folder), None
    if folder.exists() or "/" in name:
        test = next((f for f in (folder / "test.json", folder.parent / "test.json") if f.is_file()), None)
        return load_model(folder), json.loads(test.read_text())["accuracy"] if test else None
    check_architecture(name)
    return timm.create_model(name).eval(), None


def deploy_form(model: nn.Module) -> nn.Module:
    """Blocks converted; of a network that has none, every BN folded that the layer before it can absorb."""
    if needs_reparameterize(model):
        return reparameterize(model)
    return model.eval() if is_reparameterized(model) else fold_norms(model)


def prepare(name: str, engines: Sequence[str], threads: int, folder: Path) -> list[Candidate]:
    """One network on each engine; ``folder`` takes the exported files.

    Raises:
        ValueError: for an unknown engine or network.
    """
    if Path(name).is_file():  # an exported file brings its engine with it
        file = load_exported(name, threads)
        return [Candidate(name, file.format, file, None, None, name)]
    unknown = [engine for engine in engines if engine not in ENGINES]
    if unknown:
        raise ValueError(f"unknown engine {', '.join(unknown)}: use {', '.join(ENGINES)}")
    model, accuracy = _open_any(name)
    deploy = deploy_form(model)
    runs: dict[str, Callable[[Tensor], Tensor]] = {}
    sources = {engine: str(folder / f"{Path(name).name}{suffix}") for engine, suffix in EXPORTED.items()}
    for engine in engines:
        if engine == "training":
            if deploy is not model:
                runs[engine] = model.eval()
        elif engine == "pytorch":
            runs[engine] = deploy
        elif engine == "channels_last":
            runs[engine] = partial(_channels_last, copy.deepcopy(deploy).to(memory_format=torch.channels_last))
        elif engine == "compile":
            runs[engine] = torch.compile(copy.deepcopy(deploy))
        else:
            export(deploy, sources[engine])
            runs[engine] = load_exported(sources[engine], threads)
    counts = {form: complexity(m, _input_size(model)) for form, m in (("training", model), ("deploy", deploy))}
    return [
        Candidate(
            model=name,
            engine=engine,
            run=run,
            complexity=counts["training" if engine == "training" else "deploy"],
            accuracy=accuracy,
            source=sources.get(engine, name),
        )
        for engine, run in runs.items()
    ]


@torch.no_grad()
def bench(
    names: Sequence[str],
    engines: Sequence[str] = ("training", "pytorch"),
    batches: Sequence[int] = (1, 16),
    threads: int | None = None,
    rounds: int = 20,
    warmup: int = 3,
    memory: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> list[Measurement]:
    """Time all networks on all engines in turn, round by round: what slows the machine slows them all.

    Everything runs in this process, on the same input, with the same number of threads, after a
    warm-up; and each engine's output is compared with PyTorch's before anything is timed.

    Args:
        names: model folders, run folders, timm names, or exported files, int8 ones too.
        engines: of :data:`ENGINES`; an exported file has its own.
        batches: images per call.
        threads: of every engine; by default PyTorch's number.
        rounds, warmup: counted and uncounted calls of each.
        memory: also measure the peak memory of each in a process of its own.
        report: is told what happens.

    Raises:
        ValueError: if an engine computes something else, or a name or engine is unknown.
    """
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    measurements = []
    with tempfile.TemporaryDirectory() as scratch:
        candidates: list[Candidate] = []
        for i, name in enumerate(names):
            report(f"preparing {name}")
            folder = Path(scratch) / str(i)
            folder.mkdir()
            candidates += prepare(name, engines, threads, folder)
        sizes = {name: _input_size(_open_any(name)[0]) for name in names}
        for batch in batches:
            report(f"batch {batch}: comparing, then timing {len(candidates)} candidates, {rounds} rounds")
            inputs = {
                size: torch.randn(batch, *size, generator=torch.Generator().manual_seed(0)) for size in sizes.values()
            }
            errors = _check(candidates, sizes, inputs)
            times = time_interleaved(
                {f"{i}": partial(c.run, inputs[sizes[c.model]]) for i, c in enumerate(candidates)}, rounds, warmup
            )
            for i, c in enumerate(candidates):
                seconds = times[f"{i}"]
                measurements.append(
                    Measurement(
                        model=c.model,
                        engine=c.engine,
                        batch=batch,
                        seconds=seconds,
                        images_per_second=batch / seconds.median,
                        peak_memory=peak_memory(c, (batch, *sizes[c.model]), threads) if memory else None,
                        error=errors[i],
                        complexity=c.complexity,
                        accuracy=c.accuracy,
                    )
                )
    return measurements


def _check(candidates: list[Candidate], sizes: dict, inputs: dict) -> list[float]:
    """The relative error of each candidate against the first one of the same network."""
    first: dict[str, Tensor] = {}
    errors = []
    for c in candidates:
        y = c.run(inputs[sizes[c.model]])
        reference = first.setdefault(c.model, y)
        error = ((y - reference).norm() / reference.norm()).item()
        if not error <= TOLERANCE:
            raise ValueError(f"{c.model} on {c.engine} differs by {error:.1e} from {c.model} on PyTorch: not timed")
        errors.append(error)
    return errors


def peak_memory(candidate: Candidate, shape: Sequence[int], threads: int) -> int:
    """Peak resident memory in bytes of a fresh process that opens a candidate and runs it on such a batch."""
    code = (
        "import json, sys; from repmlp.deploy.benchmarking import _peak_memory_here; "
        "print(_peak_memory_here(*json.loads(sys.argv[1])))"
    )
    arguments = json.dumps([candidate.source, candidate.engine, list(shape), threads])
    child = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True, check=True)
    return int(child.stdout.split()[-1])


def _peak_memory_here(source: str, engine: str, shape: Sequence[int], threads: int) -> int:
    torch.set_num_threads(threads)
    with torch.no_grad():
        if engine in EXPORTED or Path(source).is_file():
            run: Callable[[Tensor], Tensor] = load_exported(source, threads)
        else:
            run = prepare(source, [engine], threads, Path())[0].run
        for _ in range(3):
            run(torch.randn(*shape))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _channels_last(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.contiguous(memory_format=torch.channels_last))


def _input_size(model: nn.Module) -> tuple[int, int, int]:
    return tuple(get_model_input_config(model)["input_size"])
