"""`repmlp convert`"""

from pathlib import Path

from repmlp import complexity, is_reparameterized, load_model, reparameterize, save_model, verify
from repmlp.checkpoint import CONFIG, check_free
from repmlp_settings import Convert

from .console import print_report, say


def run(settings: Convert) -> int:
    output = Path(settings.output) if settings.output else default_output(settings.model)
    check_free(output, CONFIG, settings.overwrite)
    model = load_model(settings.model)
    if is_reparameterized(model):
        say(f"{settings.model} is in deploy form already: nothing to convert, nothing written")
        return 0
    deploy = reparameterize(model)
    report = verify(model, deploy, tolerance=settings.tolerance)
    print_report(report)
    if not report:
        say("[red]the forms differ: nothing written[/]")
        return 1
    save_model(deploy, output, overwrite=settings.overwrite)
    say(f"{complexity(model)}  ->  {complexity(deploy)}\nwrote {output}")
    return 0


def default_output(model: str) -> Path:
    """`deploy/` in a run folder, or beside a model folder."""
    folder = Path(model)
    return (folder if (folder / "model").is_dir() else folder.parent) / "deploy"
