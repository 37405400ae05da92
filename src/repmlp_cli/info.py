"""`repmlp info`"""

from pathlib import Path

import timm
from torch import nn

from repmlp import complexity, load_model, reparameterize
from repmlp.checkpoint import build_network
from repmlp.conversion import is_reparameterized, needs_reparameterize
from repmlp.counting import batch_norms, layer_kinds
from repmlp_settings import Info

from .console import say, table


def run(settings: Info) -> int:
    model = open_model(settings)
    forms = forms_of(model)
    kinds = {form: layer_kinds(m) for form, m in forms.items()}
    names = list(dict.fromkeys(name for counts in kinds.values() for name in counts))
    counts = {form: complexity(m) for form, m in forms.items()}
    rows = [[f"{name} layers", *(str(kinds[form].get(name, 0)) for form in forms)] for name in names]
    rows.append(["parameters", *(f"{c.params:,}" for c in counts.values())])
    rows.append(["multiply-adds per image", *(f"{c.macs:,}" for c in counts.values())])
    size = "x".join(str(n) for n in timm.models.get_model_input_config(model)["input_size"])
    table(f"{settings.model}, {size} images, {model.num_classes} classes", ["", *forms], rows)
    left = batch_norms(forms["deploy form"]) if "deploy form" in forms else {}
    if left:
        places = ", ".join(f"{count} {place}" for place, count in left.items())
        say(f"batch norms that stay in deploy form: {places}")
    return 0


def open_model(settings: Info) -> nn.Module:
    """Load the model folder if there is one, else create the network of that name."""
    if Path(settings.model).exists() or "/" in settings.model:
        return load_model(settings.model)
    return build_network(settings.model, **settings.model_args).eval()


def forms_of(model: nn.Module) -> dict[str, nn.Module]:
    """The model in training form and in deploy form, by their titles; or in its only form."""
    if needs_reparameterize(model):
        return {"training form": model, "deploy form": reparameterize(model)}
    return {"deploy form" if is_reparameterized(model) else "as it is (nothing to convert)": model}
