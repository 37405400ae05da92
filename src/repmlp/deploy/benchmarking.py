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
from ..conversion import deviation, example_inputs, fold_norms, is_reparameterized, needs_reparameterize, reparameterize
from ..counting import Complexity, complexity
from ..training.records import read_test
from .engines import QUANTIZERS, RUNTIMES
from .exporting import float32_copy, write
from .metadata import export_metadata
from .quantization import split_groups
from .runtime import load_exported
from .timing import Timing, time_interleaved

#: Largest relative error against the network in float32, by precision. bf16 has 8 bits, and int8 rounds activations
#: too: their bounds only catch a network that is wrong.
TOLERANCES = {"float32": 1e-3, "bf16": 0.2, "int8": 0.5}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
#: Images to calibrate static int8 on; latency does not depend on them.
CALIBRATION_IMAGES = 16


def _channels_last(deploy: nn.Module) -> Callable[[Tensor], Tensor]:
    model = copy.deepcopy(deploy).to(memory_format=torch.channels_last)
    return lambda x: model(x.contiguous(memory_format=torch.channels_last))


#: What runs a network inside this process, by name: from the network as given and its deploy form. (The deploy form of
#: a plain timm network has its BNs folded.)
IN_PROCESS: dict[str, Callable[[nn.Module, nn.Module], Callable[[Tensor], Tensor]]] = {
    "training": lambda model, deploy: model.eval(),
    "pytorch": lambda model, deploy: deploy,
    "channels_last": lambda model, deploy: _channels_last(deploy),
    "compile": lambda model, deploy: torch.compile(copy.deepcopy(deploy)),
}
ENGINES = (*IN_PROCESS, *RUNTIMES)


@dataclass(frozen=True)
class Candidate:
    """One network on one engine in one precision, ready to run.

    Attributes:
        run: from a batch in ``dtype`` to the outputs.
        reference: the network in float32 on PyTorch; for an exported file, the file itself.
        input_size: of an image, (C, H, W).
        source: what a fresh process opens to run it: the network's name or its exported file.
    """

    model: str
    engine: str
    precision: str
    run: Callable[[Tensor], Tensor]
    reference: Callable[[Tensor], Tensor]
    input_size: tuple[int, int, int]
    source: str
    complexity: Complexity | None = None
    accuracy: float | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the input: exported files take float32 whatever they compute in."""
        return DTYPES[self.precision] if self.engine in IN_PROCESS else torch.float32


@dataclass(frozen=True)
class Measurement:
    """What was measured of one network on one engine in one precision.

    Attributes:
        seconds: of one batch.
        peak_memory: in bytes.
        error: relative to the network in float32 on PyTorch.
    """

    model: str
    engine: str
    precision: str
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
    """A model or run folder with its test accuracy, if known; or a new network by its name."""
    folder = Path(name)
    if folder.exists() or "/" in name:
        test = next((f for f in (folder / "test.json", folder.parent / "test.json") if f.is_file()), None)
        return load_model(folder), read_test(test, "accuracy")["accuracy"] if test else None
    check_architecture(name)
    return timm.create_model(name).eval(), None


def deploy_form(model: nn.Module) -> nn.Module:
    """Blocks converted; of a network that has none, every BN folded that the layer before it can absorb."""
    if needs_reparameterize(model):
        return reparameterize(model)
    return model.eval() if is_reparameterized(model) else fold_norms(model)


def supports(engine: str, precision: str) -> bool:
    """Whether an engine runs networks in this precision.

    Raises:
        ValueError: if there is no such engine or precision.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}: use {', '.join(ENGINES)}")
    if precision not in TOLERANCES:
        raise ValueError(f"unknown precision {precision!r}: use {', '.join(TOLERANCES)}")
    if precision == "int8":
        return engine in QUANTIZERS
    return engine in IN_PROCESS or precision in ("float32", *RUNTIMES[engine].precisions)


def prepare(
    name: str, engines: Sequence[str], precisions: Sequence[str], threads: int, folder: Path
) -> list[Candidate]:
    """One network on each engine in each precision that it supports; ``folder`` takes the exported files.

    Raises:
        ValueError: for an unknown engine, precision or network.
    """
    if Path(name).is_file():  # an exported file brings its engine with it
        file = load_exported(name, threads)
        precision = "int8" if "int8" in file.metadata else "float32"
        return [Candidate(name, file.format, precision, file, file, file.input_size, name)]
    ways = [(engine, precision) for precision in precisions for engine in engines if supports(engine, precision)]
    model, accuracy = _open_any(name)
    deploy = deploy_form(model)
    size = tuple(get_model_input_config(model)["input_size"])
    counts = {form: complexity(m, size) for form, m in (("training", model), ("deploy", deploy))}
    candidates = []
    for engine, precision in ways:
        if engine == "training" and deploy is model:
            continue
        source = name
        if precision != "int8" and engine in IN_PROCESS:
            forms = (copy.deepcopy(form).to(DTYPES[precision]) for form in (model, deploy))
            run = IN_PROCESS[engine](*forms)
        else:
            source = write_candidate(deploy, engine, precision, folder)
            run = load_exported(source, threads, _runs_in(precision))
        count = counts["training" if engine == "training" else "deploy"]
        candidates.append(Candidate(name, engine, precision, run, deploy, size, source, count, accuracy))
    return candidates


def _runs_in(precision: str) -> str:
    """What to open an exported file in: int8 is in the file."""
    return "float32" if precision == "int8" else precision


def write_candidate(deploy: nn.Module, engine: str, precision: str, folder: Path) -> str:
    """Write a network for an engine, in int8 or float32, calibrated on random images; returns the file."""
    exporter = (QUANTIZERS if precision == "int8" else RUNTIMES)[engine]
    file = folder / f"{precision}{exporter.suffix}"
    model, metadata = float32_copy(deploy), export_metadata(deploy)
    if precision != "int8":
        write(model, exporter, file, metadata)
        return str(file)
    method = exporter.int8_methods[0]
    metadata["int8"] = {"engine": engine, "method": method, "weight_bits": exporter.weight_bits(method, False)}
    exporter.quantize(split_groups(model), file, metadata, example_inputs(model, CALIBRATION_IMAGES))
    return str(file)


@torch.no_grad()
def bench(
    names: Sequence[str],
    engines: Sequence[str] = ("training", "pytorch"),
    batches: Sequence[int] = (1, 16),
    precisions: Sequence[str] = ("float32",),
    *,
    threads: int | None = None,
    rounds: int = 20,
    warmup: int = 3,
    memory: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> list[Measurement]:
    """Time all networks on all engines in turn, round by round: what slows the machine slows them all.

    Everything runs in this process, on the same input, with the same number of threads, after a warm-up. Before
    anything is timed, each output is compared with PyTorch's in float32.

    Args:
        names: model folders, run folders, timm names, or exported files, int8 ones too.
        engines: of :data:`ENGINES`; an exported file has its own.
        batches: images per call.
        precisions: float32, bf16, int8. An engine is left out in a precision that it does not support.
        threads: of every engine; by default PyTorch's number.
        rounds, warmup: counted and uncounted calls of each.
        memory: also measure the peak memory of each in a process of its own.
        report: called with a line about what is being done.

    Raises:
        ValueError: if an engine computes something else; a name, engine or precision is unknown; a number is too
            small; or no engine supports the precisions.
    """
    for what, values in (("network", names), ("engine", engines), ("batch size", batches), ("precision", precisions)):
        if not values:
            raise ValueError(f"there is no {what} to measure: name one or more")
    for what, value, least in (
        *(("batch size", batch, 1) for batch in batches),
        ("threads", 1 if threads is None else threads, 1),
        ("rounds", rounds, 1),
        ("warmup", warmup, 0),
    ):
        if value < least:
            raise ValueError(f"{what} is {value}, but has to be {least} or more")
    ways = {(engine, precision): supports(engine, precision) for precision in precisions for engine in engines}
    if left_out := [f"{engine} in {precision}" for (engine, precision), supported in ways.items() if not supported]:
        report(f"left out, since not supported: {', '.join(left_out)}")
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    measurements = []
    with tempfile.TemporaryDirectory() as scratch:
        candidates: list[Candidate] = []
        for i, name in enumerate(names):
            report(f"preparing {name}")
            folder = Path(scratch) / str(i)
            folder.mkdir()
            candidates += prepare(name, engines, precisions, threads, folder)
        if not candidates:
            raise ValueError(f"none of {', '.join(engines)} supports {', '.join(precisions)}")
        for batch in batches:
            report(f"batch {batch}: comparing, then timing {len(candidates)} candidates, {rounds} rounds")
            inputs = [_inputs(c, batch) for c in candidates]
            errors = _check(candidates, inputs)
            runs = {
                str(i): partial(c.run, x.to(c.dtype)) for i, (c, x) in enumerate(zip(candidates, inputs, strict=True))
            }
            times = time_interleaved(runs, rounds, warmup)
            for c, x, error, seconds in zip(candidates, inputs, errors, times.values(), strict=True):
                measurements.append(
                    Measurement(
                        model=c.model,
                        engine=c.engine,
                        precision=c.precision,
                        batch=batch,
                        seconds=seconds,
                        images_per_second=batch / seconds.median,
                        peak_memory=peak_memory(c, x.shape, threads) if memory else None,
                        error=error,
                        complexity=c.complexity,
                        accuracy=c.accuracy,
                    )
                )
    return measurements


def _inputs(candidate: Candidate, batch: int) -> Tensor:
    return torch.randn(batch, *candidate.input_size, generator=torch.Generator().manual_seed(0))


def _check(candidates: Sequence[Candidate], inputs: Sequence[Tensor]) -> list[float]:
    """The relative error of each candidate against its reference."""
    errors = []
    for c, x in zip(candidates, inputs, strict=True):
        error = deviation(c.reference(x), c.run(x.to(c.dtype))).relative
        if not error <= TOLERANCES[c.precision]:
            raise ValueError(
                f"{c.model} on {c.engine} in {c.precision} differs by {error:.1e} from PyTorch in float32: not timed"
            )
        errors.append(error)
    return errors


def peak_memory(candidate: Candidate, shape: Sequence[int], threads: int) -> int:
    """Peak resident memory in bytes of a fresh process that opens a candidate and runs it on such a batch."""
    code = (
        "import json, sys; from repmlp.deploy.benchmarking import _peak_memory_here; "
        "print(_peak_memory_here(*json.loads(sys.argv[1])))"
    )
    arguments = json.dumps([candidate.source, candidate.engine, candidate.precision, list(shape), threads])
    child = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True, check=True)
    return int(child.stdout.split()[-1])


def _peak_memory_here(source: str, engine: str, precision: str, shape: Sequence[int], threads: int) -> int:
    torch.set_num_threads(threads)
    with torch.no_grad():
        if Path(source).is_file():
            run: Callable[[Tensor], Tensor] = load_exported(source, threads, _runs_in(precision))
            dtype = torch.float32
        else:
            [candidate] = prepare(source, [engine], [precision], threads, Path())
            run, dtype = candidate.run, candidate.dtype
        for _ in range(3):
            run(torch.randn(*shape).to(dtype))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
