"""`repmlp explore`"""

from pathlib import Path

from repmlp.data import ImageData, load_data
from repmlp.training import read_settings
from repmlp_app.page import serve
from repmlp_settings import Explore, Info

from .console import say
from .info import forms_of, open_model


def run(settings: Explore) -> int:
    if settings.port < 0:
        raise ValueError(f"port is {settings.port}, but has to be 0 or more")
    folder = Path(settings.model)
    run = folder if (folder / "config.yaml").is_file() else None
    forms = forms_of(open_model(Info(settings.model)))
    data = images_of(settings, run)
    if settings.host not in ("127.0.0.1", "localhost", "::1"):
        say((f"everyone who reaches {settings.host} can open the page and upload images", "yellow"))
    serve(
        settings.host,
        settings.port,
        lambda address: say("open ", (address, "bold"), "; Ctrl+C stops"),
        title=settings.model,
        forms=forms,
        data=data,
        run=run,
    )
    return 0


def images_of(settings: Explore, run: Path | None) -> ImageData | None:
    """The data set of --data, or that of the run if it is available."""
    if settings.data:
        return load_data(settings.data, settings.data_root, in_memory="no")
    if run is None:
        return None
    own = read_settings(run / "config.yaml")
    try:
        return load_data(own.data, own.data_root, bad_images=own.bad_images, in_memory="no")
    except (FileNotFoundError, ImportError) as error:
        say(f"the page does not show the data set of the run: {error}")
        return None
