"""`repmlp export`"""

from pathlib import Path

import torch

from repmlp.conversion.equivalence import example_inputs
from repmlp.deploy import export
from repmlp.deploy.check_files import outputs_of
from repmlp.deploy.engines import EXPORTERS, output_names
from repmlp.deploy.exporting import check_target
from repmlp.messages import markdown_table
from repmlp_settings import Export

from .card import describe_file, name_forms
from .console import say, show_progress
from .convert import beside, converted, how_to_check, load_trained
from .verify import test_images


def run(settings: Export) -> int:
    suffix = EXPORTERS[settings.format or "onnx"].suffix
    file = Path(settings.output or beside(settings.model, f"deploy{suffix}"))
    if settings.images < 1:
        raise ValueError(f"--images is {settings.images}: compare on one image or more")
    check_target(file, settings.format, settings.opset, settings.overwrite)
    model = load_trained(settings.model)
    images = test_images(model, settings.images, settings) if settings.data else None
    both = (model, None) if settings.no_convert else converted(model)
    if both is None:
        return 1
    deploy, proof = both
    forms = name_forms(model, deploy)
    with show_progress() as on_progress:
        done = export(
            deploy,
            file,
            settings.format,
            settings.opset,
            images,
            overwrite=settings.overwrite,
            on_progress=on_progress,
        )
    about = done.metadata
    sizes = ", ".join(str(n) for n in about["input_size"])
    with torch.no_grad():
        outputs = outputs_of(deploy(example_inputs(deploy, 1)))
    shapes = "; ".join(
        f"{name} (batch, {', '.join(map(str, output.shape[1:]))})"
        for name, output in zip(output_names(about), outputs, strict=True)
    )
    what = (
        f"{done.format}{f' opset {done.opset}' if done.opset else ''}, float32, any batch: "
        f"{about['input']} (batch, {sizes}) -> {shapes}"
        f"{'' if about['num_classes'] else ', features: the network has no classifier'}"
    )
    say(what)
    for inputs, error in done.errors.items():
        say(f"relative error against PyTorch on {inputs}: {error:.1e}")
    errors = markdown_table(["relative error against PyTorch", ""], [[k, f"{v:.1e}"] for k, v in done.errors.items()])
    describe_file(file, settings.model, f"{what}; {done.size / 1e6:.1f} MB\n\n{errors}", forms, proof)
    say(f"wrote {file}, {done.size / 1e6:.1f} MB; next: repmlp eval {file} DATA")
    say(how_to_check(file))
    return 0
