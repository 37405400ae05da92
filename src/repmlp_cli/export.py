"""`repmlp export`"""

from pathlib import Path

from repmlp import load_model
from repmlp.cards import DEPLOY
from repmlp.cards import table as markdown_table
from repmlp.conversion import needs_reparameterize
from repmlp.data import load_data
from repmlp.deploy import export
from repmlp.deploy.engines import EXPORTERS
from repmlp.deploy.exporting import check_target
from repmlp.training import build_test_loader
from repmlp_settings import Export

from .card import describe_file, name_forms
from .console import say, show_progress
from .convert import converted, default_output


def run(settings: Export) -> int:
    suffix = EXPORTERS[settings.format or "onnx"].suffix
    beside_model = default_output(settings.model, "timm").with_name(f"deploy{suffix}")
    file = Path(settings.output) if settings.output else beside_model
    check_target(file, settings.format, settings.opset, settings.overwrite)
    model = load_model(settings.model)
    images = None
    if settings.data:
        data = load_data(settings.data, settings.data_root, bad_images=settings.bad_images, in_memory="no")
        loader = build_test_loader(model, data, settings.images, labels=settings.labels)
        images = next(iter(loader))[0]
    forms, proof = name_forms(model), None
    if needs_reparameterize(model) and not settings.no_convert:
        both = converted(model)
        if both is None:
            return 1
        model, proof = both
        forms |= {DEPLOY: model}
    with show_progress() as on_progress:
        done = export(
            model,
            file,
            settings.format,
            settings.opset,
            images,
            overwrite=settings.overwrite,
            on_progress=on_progress,
        )
    about = done.metadata
    sizes = ", ".join(str(n) for n in about["input_size"])
    what = (
        f"{done.format}{f' opset {done.opset}' if done.opset else ''}, float32, any batch: "
        f"{about['input']} (batch, {sizes}) -> {about['output']} (batch, {about['num_classes']})"
    )
    say(what)
    for inputs, error in done.errors.items():
        say(f"relative error against PyTorch on {inputs}: {error:.1e}")
    errors = markdown_table(["relative error against PyTorch", ""], [[k, f"{v:.1e}"] for k, v in done.errors.items()])
    describe_file(file, settings.model, f"{what}; {done.size / 1e6:.1f} MB\n\n{errors}", forms, proof)
    say(f"wrote {file}, {done.size / 1e6:.1f} MB; next: repmlp eval {file} DATA")
    say(f"to check it on another machine: python {file.name}.check.py")
    return 0
