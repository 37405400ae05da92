"""`repmlp demo`: the whole idea in two minutes."""

from functools import partial
from pathlib import Path

import torch

from repmlp import complexity, load_model, reparameterize, save_model, verify
from repmlp.data import load_data
from repmlp.deploy import time_interleaved
from repmlp.messages import count
from repmlp.plot import plot_fc3
from repmlp.training import build_test_loader, classify
from repmlp_settings import Demo, Train

from .console import print_report, say, table
from .report import report_after_training
from .train import train


def run(settings: Demo) -> int:
    output = Path(settings.output)
    say(("1. Train", "bold"), " the pure MLP (no conv larger than 1x1 once deployed) on handwritten digits")
    train(training_settings(settings))
    model = load_model(output)

    say(("\n2. Convert", "bold"), ": merge every conv and batch norm into the FCs of its block")
    deploy = reparameterize(model)

    say(("\n3. Verify", "bold"), " on test images that the outputs are the same")
    loader = build_test_loader(model, load_data("digits"), batch_size=128)
    images = torch.cat([x for x, _ in loader])
    report = verify(model, deploy, images)
    print_report(report)
    if not report:
        return 1
    save_model(deploy, output / "deploy")
    plot_fc3(model, output / "fc3.png")

    say(("\n4. Compare", "bold"))
    compare({"training form": model, "deploy form": deploy}, images, loader, report)
    say("")
    report_after_training(output, report)
    say(f"wrote {output}/: model/, deploy/, metrics.csv, curves.png, fc3.png")
    say(f"try: repmlp info {output}; repmlp eval {output}/deploy digits")
    return 0


def training_settings(settings: Demo) -> Train:
    """The settings of recipes/digits.yaml."""
    return Train(
        output=settings.output,
        model="repmlp_cifar",
        model_args={"channels": [16, 32]},
        data="digits",
        img_size=16,
        crop_padding=1,
        hflip=0.0,
        epochs=settings.epochs,
        batch_size=64,
        lr=0.1,
        seed=settings.seed,
        overwrite=settings.overwrite or settings.output == Demo().output,
    )


def compare(forms, images, loader, report) -> None:
    """Print the two forms side by side: accuracy, size and time."""
    batch = images[:128]
    with torch.inference_mode():
        times = time_interleaved({name: partial(m, batch) for name, m in forms.items()})
    scores = [totals.mean() for totals in classify(list(forms.values()), loader)[0]]
    counts = [complexity(model) for model in forms.values()]
    speeds = [f"{t.median * 1e3:.1f} ({t.fastest * 1e3:.1f}..{t.slowest * 1e3:.1f})" for t in times.values()]
    error = report.network.native
    rows = [
        ["test accuracy", *(f"{score.accuracy:.2%} ({score.correct}/{score.images})" for score in scores)],
        ["same predictions", "", f"{report.num_agree} of {report.num_images}"],
        ["max error of a logit", "", f"{error.maximum:.1e} (relative {error.relative:.1e})"],
        ["parameters", *(f"{count.params:,}" for count in counts)],
        ["multiply-adds per image", *(f"{count.macs:,}" for count in counts)],
        [f"ms per batch of {len(batch)}", *speeds],
    ]
    a, b = times.values()
    threads = count(torch.get_num_threads(), "thread")
    table(f"The same network twice (PyTorch {torch.__version__}, CPU, {threads})", ["", *forms], rows)
    say("the deploy form is ", (f"{a.median / b.median:.1f} times", "bold"), " as fast, with the same predictions")
