"""`repmlp quantize`"""

from pathlib import Path

from repmlp import load_model
from repmlp.conversion import needs_reparameterize
from repmlp.data import load_data
from repmlp.deploy import SUFFIXES, calibration_images, quantize
from repmlp.deploy.quantization import FORMATS, check_target
from repmlp.training import build_test_loader
from repmlp_settings import Quantize

from .console import say, table
from .convert import converted, default_output


def run(settings: Quantize) -> int:
    beside_model = default_output(settings.model, "timm").with_name(f"int8{SUFFIXES[FORMATS[settings.engine]]}")
    file = Path(settings.output) if settings.output else beside_model
    method = check_target(file, settings.engine, settings.method, settings.overwrite)
    model = load_model(settings.model)
    data = load_data(settings.data, settings.data_root, bad_images=settings.bad_images, in_memory="no")
    test = build_test_loader(model, data, settings.batch_size, labels=settings.labels)
    calibration = calibration_images(model, data, settings.calibration_images) if method == "static" else None
    if needs_reparameterize(model):
        model = converted(model)
        if model is None:
            return 1
    done = quantize(
        model,
        file,
        test,
        calibration,
        settings.engine,
        method,
        settings.max_drop,
        settings.reduce_range,
        settings.overwrite,
    )
    n = done.images
    bits = "7-bit weights, for x86 CPUs without VNNI" if done.reduce_range else "8-bit weights"
    rows = [
        ["top-1", *(f"{right / n:.2%} ({right}/{n})" for right in (done.correct_before, done.correct))],
        ["points lost", "", f"{done.drop:.2f} ({settings.max_drop:g} allowed)"],
        ["same predictions", "", f"{done.agree} of {n}"],
        ["MB", f"{done.size_before / 1e6:.2f}", f"{done.size / 1e6:.2f}"],
    ]
    table(f"{done.engine}, {done.method}, {bits}; {settings.data}", ["", "float32", "int8"], rows)
    say(f"wrote {file}; next: repmlp eval {file} {settings.data}")
    return 0
