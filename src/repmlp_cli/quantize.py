"""`repmlp quantize`"""

from pathlib import Path

from repmlp.deploy import Quantized, calibration_images, quantize
from repmlp.deploy.engines import QUANTIZERS
from repmlp.deploy.quantization import check_target
from repmlp.messages import markdown_table
from repmlp_settings import Quantize

from .card import describe_file, name_forms
from .console import say, show_progress, table
from .convert import beside, converted, how_to_check, load_trained
from .data import load_test_images

HEADER = ("", "float32", "int8")


def run(settings: Quantize) -> int:
    file = Path(settings.output or beside(settings.model, f"int8{QUANTIZERS[settings.engine].suffix}"))
    _, method = check_target(file, settings.engine, settings.method, settings.overwrite)
    if not settings.data and method != "weights":
        raise ValueError(f"{method} int8 needs images to measure accuracy on: pass --data, or --method weights")
    model = load_trained(settings.model)
    test, calibration = None, None
    if settings.data:
        data, test = load_test_images(model, settings, settings.batch_size)
        if method == "static":
            calibration = calibration_images(model, data, settings.calibration_images)
            if len(calibration) < settings.calibration_images:
                images = f"all {len(calibration)} images of the training split"
                say(f"calibrating on {images}: fewer than {settings.calibration_images}")
    both = converted(model)
    if both is None:
        return 1
    deploy, proof = both
    forms = name_forms(model, deploy)
    with show_progress() as on_progress:
        done = quantize(
            deploy,
            file,
            test,
            calibration,
            engine=settings.engine,
            method=method,
            max_drop=settings.max_drop,
            reduce_range=settings.reduce_range,
            overwrite=settings.overwrite,
            on_progress=on_progress,
        )
    table(f"{summary(done)}; {settings.data or 'no data'}", HEADER, rows_of(done, settings))
    calibrated = "" if calibration is None else f", calibrated on {len(calibration)} images"
    facts = f"{summary(done)}{calibrated}\n\n{markdown_table(HEADER, rows_of(done, settings))}"
    describe_file(file, settings.model, facts, forms, proof)
    say(f"wrote {file}; next: repmlp eval {file} {settings.data or 'DATA'}")
    say(how_to_check(file))
    return 0


def summary(done: Quantized) -> str:
    bits = "7-bit weights, for x86 CPUs without VNNI" if done.weight_bits == 7 else "8-bit weights"
    return f"{done.engine}, {done.method}, {bits}"


def rows_of(done: Quantized, settings: Quantize) -> list[list[str]]:
    n = done.num_images
    rows = [
        ["relative error, random images", "", f"{done.error:.1e}"],
        ["MB", f"{done.size_float32 / 1e6:.2f}", f"{done.size / 1e6:.2f}"],
    ]
    if n:
        rows = [
            ["top-1", *(f"{right / n:.2%} ({right}/{n})" for right in (done.num_correct_float32, done.num_correct))],
            ["points lost", "", f"{done.drop:.2f} ({settings.max_drop:g} allowed)"],
            ["same predictions", "", f"{done.num_agree} of {n}"],
            *rows,
        ]
    return rows
