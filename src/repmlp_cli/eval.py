"""`repmlp eval`"""

from accelerate import Accelerator

from repmlp import is_reparameterized, load_model
from repmlp.data import load_data
from repmlp.training import build_test_loader, evaluate
from repmlp_settings import Eval

from .console import say


def run(settings: Eval) -> int:
    model = load_model(settings.model)
    loader = build_test_loader(
        model, load_data(settings.data, settings.data_root), settings.batch_size, settings.workers
    )
    accelerator = Accelerator()
    model, loader = accelerator.prepare(model, loader)
    result = evaluate(model, loader, accelerator)
    form = "deploy" if is_reparameterized(accelerator.unwrap_model(model)) else "training"
    say(
        f"{settings.model} ({form} form) on {settings.data}: {result.correct} of {result.images} right, "
        f"[bold]{result.accuracy:.2%}[/] top-1 (loss {result.loss:.4f})"
    )
    return 0
