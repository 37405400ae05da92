"""`repmlp predict`"""

import torch
from timm.data import resolve_data_config

from repmlp.data import eval_transform, open_image
from repmlp.deploy import load_any
from repmlp.model_config import label_names_of
from repmlp_settings import Predict

from .console import table


def run(settings: Predict) -> int:
    if settings.top < 1:
        raise ValueError(f"top={settings.top} lists no labels: use 1 or more")
    model = load_any(settings.model)
    if not model.num_classes:
        raise ValueError(f"{settings.model} has no classifier (num_classes is 0), so it predicts no labels")
    names = label_names_of(model) or [str(i) for i in range(model.num_classes)]
    transform = eval_transform(resolve_data_config(model=model))
    images = [transform(open_image(path)) for path in settings.images]
    with torch.no_grad():
        probabilities = model(torch.stack(images)).softmax(1)
    values, classes = probabilities.topk(min(settings.top, model.num_classes))
    rows = [
        [path, *(f"{names[c]}  {p:.1%}" for p, c in zip(ps.tolist(), cs.tolist(), strict=True))]
        for path, ps, cs in zip(settings.images, values, classes, strict=True)
    ]
    table("Predictions", ["image", *(f"{i + 1}." for i in range(values.shape[1]))], rows)
    return 0
