"""What becomes of an image file: any mode, any orientation, transparent, animated, broken or far too large."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pictures import encoded, picture
from repmlp.data import eval_transform, load_data, open_image
from repmlp.data.decoding import MAX_FILE_SIZE, decode_image, read_file, standardize

WIDE = np.array([[0, 1, 128, 129], [257, 32768, 65406, 65535]], np.uint16)
SCALED = [[0, 0, 0, 1], [1, 128, 254, 255]]  # round(v / 257)
CONFIG = {"input_size": (1, 2, 4), "mean": (0.0,), "std": (1.0,), "interpolation": "bilinear", "crop_pct": 1.0}


def pixels(image):
    return np.asarray(image).tolist()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_gray_is_scaled_to_8_bits(tmp_path, format):
    file = encoded(Image.fromarray(WIDE), format) if format != "JPEG2000" else None
    if file is None:
        stream = io.BytesIO()
        Image.fromarray(WIDE).save(stream, format, irreversible=False)
        file = stream.getvalue()
    image = decode_image(file, "x")
    assert (image.mode, pixels(image)) == ("L", SCALED)


@pytest.mark.parametrize("order", ["I;16", "I;16B", "I;16L"])
def test_16_bit_gray_of_any_byte_order(order):
    values = WIDE.astype(">u2" if order == "I;16B" else "<u2")
    image = Image.frombytes(order, (4, 2), values.tobytes())
    assert pixels(standardize(image)) == SCALED


def test_a_transform_scales_16_bits_too():
    """The images of a caller need not come from open_image."""
    x = eval_transform(CONFIG)(Image.fromarray(WIDE))
    assert (x[0] * 255).round().tolist() == SCALED


@pytest.mark.parametrize(
    ("array", "mode"), [(np.ones((2, 3), np.float32), "floats .mode F"), (np.ones((2, 3), np.int32), "32-bit integers")]
)
def test_pixels_of_unknown_range_are_refused(tmp_path, array, mode):
    Image.fromarray(array).save(tmp_path / "x.tif")
    with pytest.raises(
        ValueError, match=rf"x\.tif is not an image that can be read .its pixels are {mode}.*save it with"
    ):
        open_image(tmp_path / "x.tif")


@pytest.mark.parametrize("mode", sorted(Image.MODES))
def test_every_mode_becomes_gray_or_color_or_is_refused(mode):
    image = Image.new(mode, (3, 2))
    if mode in ("F", "I", "La"):
        with pytest.raises(ValueError, match=r"32-bit|floats|La"):
            standardize(image)
        return
    once = standardize(image)
    assert once.mode == ("L" if mode in ("1", "L") or mode.startswith("I;16") else "RGB")
    assert pixels(standardize(once)) == pixels(once)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_are_white(mode):
    image = Image.new("RGBA", (3, 1), (100, 100, 100, 255))
    image.putpixel((1, 0), (100, 100, 100, 0))
    if mode != "PA":
        image.putpixel((2, 0), (100, 100, 100, 128))
    expected = [100, 255, 177 if mode != "PA" else 100]
    assert pixels(standardize(image.convert(mode)).convert("L")) == [expected]


def test_a_transparent_color_is_white(tmp_path):
    for mode, transparency in (("L", 7), ("RGB", (7, 7, 7)), ("P", 7)):
        image = Image.fromarray(np.array([[7, 8]], np.uint8)).convert(mode)
        if mode == "P":
            image = Image.fromarray(np.array([[7, 8]], np.uint8)).convert("L").convert("P")
        image.save(tmp_path / "x.png", transparency=transparency)
        assert pixels(open_image(tmp_path / "x.png").convert("L")) == [[255, 8]]
    Image.fromarray(WIDE).save(tmp_path / "x.png", transparency=257)
    assert pixels(open_image(tmp_path / "x.png"))[1] == [255, 128, 254, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_images_are_turned_upright(tmp_path, orientation, mode):
    whole = Image.fromarray(WIDE) if mode == "I;16" else picture(0, 4, 2, mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    whole.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as raw:
        expected = standardize(ImageOps.exif_transpose(raw))
        assert pixels(standardize(raw)) == pixels(expected)
    image = open_image(tmp_path / "x.png")
    assert pixels(image) == pixels(expected)
    assert image.size == ((2, 4) if orientation > 4 else (4, 2))
    assert ("turned" in image.info) == (orientation > 1)
    assert pixels(standardize(image)) == pixels(image)  # it is not turned twice


def test_a_data_set_counts_what_it_has_turned(folders):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0).save(folders / "val" / "cat" / "1.png", exif=exif)
    data = load_data(f"folder:{folders}", in_memory="no").test
    assert data.num_turned == 0
    sizes = [data[i][0].size for i in range(len(data))]
    assert sizes[1] == (16, 20)
    assert data.num_turned == 1


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(format):
    file = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    frames[0].save(
        file, format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
    )
    assert np.asarray(decode_image(file.getvalue(), "x"))[0, 0].tolist() == [255, 0, 0]


def bomb(side):
    """A PNG of side x side black pixels, as small as its header and one byte for a thousand of them allow."""
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * 8), 9)
    chunks = ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


BROKEN = {
    "bomb": bomb(40_000),
    "empty": b"",
    "text": b"<html>404</html>",
    "cut": encoded(picture(), "JPEG")[:300],
}


def test_an_image_file_starts_no_other_program(monkeypatch):
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: started.append(args))
    file = encoded(picture(), "EPS")
    with pytest.raises(ValueError, match="not an image that can be read"):
        decode_image(file, "x.png")
    assert started == []
    with pytest.raises(Exception, match=r".*"), Image.open(io.BytesIO(file)) as image:
        image.load()
    assert started  # as Pillow would by itself


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_refused_everywhere_alike(folders, kind):
    path = folders / "val" / "cat" / "1.png"
    path.write_bytes(BROKEN[kind])
    message = rf"{path.name} is not an image that can be read"
    with pytest.raises(ValueError, match=message) as error:
        open_image(path)
    assert " object at 0x" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        load_data(f"folder:{folders}", in_memory="no").test[1]
    with pytest.raises(ValueError, match=message):
        load_data(f"folder:{folders}")
    with pytest.warns(UserWarning, match="1 of 12 images"):
        assert len(load_data(f"folder:{folders}", bad_images="skip").test) == 5


def test_a_file_larger_than_any_image_is_not_read(folders):
    path = folders / "val" / "cat" / "1.png"
    os.truncate(path, MAX_FILE_SIZE + 1)  # sparse: it takes no room on the disk
    with pytest.raises(ValueError, match=r"1\.png is larger than 512 MiB"):
        read_file(path)
    with pytest.raises(ValueError, match=r"1\.png is larger than 512 MiB.*bad_images='skip'"):
        load_data(f"folder:{folders}", in_memory="no").test[1]


@given(st.binary(max_size=200) | st.sampled_from(sorted(BROKEN)).map(BROKEN.get))
@example(encoded(picture()))
def test_any_bytes_are_an_image_or_refused_by_name(content):
    try:
        result = decode_image(content, "the file").mode
    except ValueError as error:
        result = str(error)
    assert result in ("L", "RGB") or result.startswith("the file is not an image that can be read")
