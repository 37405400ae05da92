"""Between an image file and a network: transforms of one image."""

import pytest
import torch
from PIL import Image

from pictures import picture
from repmlp.data import Transformed, eval_transform, open_image, train_transform

GRAY = {"input_size": (1, 16, 16), "mean": (0.5,), "std": (0.5,), "interpolation": "bilinear", "crop_pct": 1.0}
COLOR = {**GRAY, "input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}


def test_a_transformed_data_set_gives_the_chosen_images_in_their_order():
    data = [(picture(i), i) for i in range(4)]
    transform = eval_transform(COLOR)
    chosen = Transformed(data, transform, [3, 1])
    assert [label for _, label in (chosen[0], chosen[1])] == [3, 1]
    assert torch.equal(chosen[0][0], transform(picture(3)))
    assert (len(chosen), len(Transformed(data, transform))) == (2, 4)


@pytest.mark.parametrize("augment", ["none", "pad-crop", "resized-crop"])
@pytest.mark.parametrize("config", [GRAY, COLOR])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1"])
def test_any_image_becomes_what_the_network_wants(augment, config, mode):
    x = train_transform(config, augment)(picture(0, 31, 23, mode))
    assert x.dtype == torch.float32
    assert x.shape == config["input_size"]


def test_pad_crop_shifts_an_image_by_at_most_the_padding():
    square = Image.new("L", (16, 16), 0)
    square.putpixel((8, 8), 255)
    transform = train_transform({**GRAY, "mean": (0.0,), "std": (1.0,)}, "pad-crop", padding=2, hflip=0.0)
    seen = {tuple(transform(square)[0].nonzero()[0].tolist()) for _ in range(300)}
    assert seen == {(y, x) for y in range(6, 11) for x in range(6, 11)}


def test_evaluation_only_resizes_and_normalizes():
    x = eval_transform(GRAY)(Image.new("L", (16, 16), 255))
    assert torch.equal(x, torch.ones(1, 16, 16))


def test_a_file_that_is_no_image(tmp_path):
    (tmp_path / "x.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"x\.png is not an image that can be read"):
        open_image(tmp_path / "x.png")
    picture(0, 64, 64).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.png is not an image that can be read"):
        open_image(tmp_path / "cut.png")
    with pytest.raises(FileNotFoundError, match="there is no image file"):
        open_image(tmp_path / "nothing.png")
