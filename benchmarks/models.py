"""The table of all networks in docs/models.md: input size, parameters and MACs of both forms, published accuracy.

    python benchmarks/models.py          # rewrites the table in docs/models.md

Everything but the last two columns is counted on the meta device, so it takes seconds and no weights.
"""

from pathlib import Path

import timm
from timm.models import get_model_input_config

import repmlp

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
START, END = "<!-- table: benchmarks/models.py -->", "<!-- end of table -->"
V1, V2 = "v1", "v2"
#: Top-1 accuracy in percent as the papers print it, on ImageNet-1k unless said otherwise, and where.
PUBLISHED = {
    "repmlp_cifar": ("91.11 (CIFAR-10)", V1),
    "wide_convnet_cifar": ("91.99 (CIFAR-10)", V1),
    "repmlp_resnet50": ("78.55", V1),
    "repmlp_resnet50_light": ("77.14", V1),
    "repmlp_resnet50_320_g8x16": ("80.07", V1),
    "repmlpnet_t224": ("76.62", V2),
    "repmlpnet_t256": ("77.44", V2),
    "repmlpnet_b224": ("80.32", V2),
    "repmlpnet_b256": ("81.03", V2),
    "repmlpnet_d256": ("80.83", V2),
    "repmlpnet_l256": ("81.68", V2),
}


def names() -> list[str]:
    """All networks that this package registers in timm."""
    return [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("repmlp.")]


def row(name: str) -> str:
    model = timm.create_model(name, device="meta")
    size = "x".join(map(str, get_model_input_config(model)["input_size"]))
    training = repmlp.complexity(model)
    if repmlp.is_reparameterized(model) or not any(hasattr(m, "reparameterize") for m in model.modules()):
        deploy = training
    else:
        deploy = repmlp.complexity(timm.create_model(name, device="meta", deploy=True))
    top1, paper = PUBLISHED.get(name, ("", ""))
    cells = [f"`{name}`", size]
    cells += [f"{c.params / 1e6:.2f}" for c in (training, deploy)] + [f"{c.macs / 1e9:.3f}" for c in (training, deploy)]
    return f"| {' | '.join([*cells, top1, paper])} |"


def table() -> str:
    header = [
        "| network | input | M params, training | deploy | G MACs, training | deploy | published top-1, % | paper |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    return "\n".join([*header, *map(row, names())])


def page(text: str) -> str:
    """``text`` with its table rebuilt."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    print(table())
