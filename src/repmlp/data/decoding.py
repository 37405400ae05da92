"""From image files to 8-bit pixels: the one way for training, evaluation, prediction and calibration."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..files import ensure_regular

#: Suffixes of image files, in the order of preference where a shard has one image in several.
EXTENSIONS = (*IMG_EXTENSIONS, ".jfif", ".gif")
#: Bytes of an image file, at most. A larger one is refused before it is read.
MAX_FILE_SIZE = 2**29
#: What shows through transparent pixels.
BACKGROUND = "white"


def open_image(path: str | Path) -> Image.Image:
    """Read an image file; see ``standardize`` for what becomes of its pixels.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is not an image, or a broken one.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no image file {path}")
    return decode_image(read_file(path), str(path))


def read_file(path: str | Path) -> bytes:
    """The bytes of an image file.

    Raises:
        ValueError: if it is larger than MAX_FILE_SIZE, or a named pipe, socket or device.
    """
    ensure_regular(path)
    with open(path, "rb") as file:
        encoded = file.read(MAX_FILE_SIZE + 1)
    if len(encoded) > MAX_FILE_SIZE:
        raise ValueError(f"{path} is larger than {MAX_FILE_SIZE // 2**20} MiB, which is not an image file")
    return encoded


def decode_image(encoded: bytes, name: str, size: int | None = None) -> Image.Image:
    """Decode an image file; the first frame of an animated one.

    Args:
        encoded: its bytes.
        name: for messages.
        size: the smallest side that will do, if given. A JPEG file is then decoded at a reduced size,
            which is faster. The bytes are read to the last, whatever the size.

    Returns:
        As :func:`standardize` does.

    Raises:
        ValueError: if the bytes are not an image, not all of one, or one of more pixels than Pillow allows.
    """
    Image.init()
    formats = [name for name in Image.ID if name != "EPS"]  # reading EPS starts Ghostscript
    try:
        with Image.open(BytesIO(encoded), formats=formats) as image:
            if size is not None:
                image.draft("RGB", (size, size))
            image.load()
            return standardize(image)
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        reason: object = error
        if isinstance(error, UnidentifiedImageError):  # its message names an object in memory
            reason = "its format is unknown to Pillow" if encoded else "the file is empty"
        raise ValueError(f"{name} is not an image that can be read ({reason})") from error


def standardize(image: Image.Image) -> Image.Image:
    """An image of any mode as one of 8 bits per channel: L if it is gray, otherwise RGB.

    It is turned upright as its EXIF orientation says (its ``info`` then has ``turned``). 16-bit gray is scaled by
    1/257 and rounded. Transparent pixels are laid over BACKGROUND. Doing so twice changes nothing more.

    Raises:
        ValueError: for 32-bit and float pixels, whose range the file does not say.
    """
    mode, wide = image.mode, image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")
    if image.getexif().get(ExifTags.Base.Orientation) in range(2, 9):
        image = ImageOps.exif_transpose(image)
        image.info["turned"] = True
    info = image.info
    if wide:
        values = np.asarray(image).astype(np.int64)
        gray = (values + 128) // 257
        if "transparency" in info:
            gray[values == info["transparency"]] = 255
        image = Image.fromarray(gray.astype(np.uint8))
    elif mode in ("I", "F"):
        raise ValueError(
            f"its pixels are {'floats' if mode == 'F' else '32-bit integers'} (mode {mode}), whose range is unknown: "
            f"save it with 8 or 16 bits"
        )
    elif image.has_transparency_data:
        background = Image.new("RGBA", image.size, BACKGROUND)
        image = Image.alpha_composite(background, image.convert("RGBA"))
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    image.info = {key: value for key, value in info.items() if key != "transparency"}
    return image
