"""Statistics of pixels, and which images they are taken from."""

import numpy as np
import pytest
import torch
from PIL import Image

from pictures import encoded, picture
from repmlp.data import load_data
from repmlp.data.decoding import decode_image
from repmlp.data.images import EncodedImages, channel_histogram, evenly_spread, find_unreadable, mean_std


class Files(EncodedImages):
    """Encoded images in memory, each of its own class."""

    def __init__(self, files):
        super().__init__(np.arange(len(files)))
        self.files = files

    def encoded(self, i):
        return self.files[i]

    def name(self, i):
        return f"image {i}"

    def fingerprint(self, times=True):
        return ""


def test_mean_and_std_are_over_all_pixels_and_images_have_the_same_weight():
    small, large = picture(0, 10, 10), picture(1, 40, 30, "1").convert("RGB")
    pixels = [np.asarray(image) / 255 for image in (small, large)]
    mean = np.mean([x.mean((0, 1)) for x in pixels], axis=0)
    std = np.sqrt(np.mean([(x**2).mean((0, 1)) for x in pixels], axis=0) - mean**2)
    computed = mean_std(map(channel_histogram, (small, large)))
    assert computed[0] == pytest.approx(mean, abs=1e-4)
    assert computed[1] == pytest.approx(std, abs=1e-4)


def test_gray_images_have_one_mean():
    assert mean_std([channel_histogram(Image.new("L", (4, 4), 0)), channel_histogram(Image.new("L", (2, 2), 255))]) == (
        (0.5,),
        (0.5,),
    )


def test_images_of_one_color_have_a_std_that_can_be_divided_by():
    assert mean_std([channel_histogram(Image.new("RGB", (4, 4), (0, 255, 51)))]) == ((0.0, 1.0, 0.2), (0.0039,) * 3)


def test_a_sample_is_spread_evenly():
    assert list(evenly_spread(5, most=8)) == [0, 1, 2, 3, 4]
    assert list(evenly_spread(20, most=4)) == [0, 5, 10, 15]
    assert len(set(evenly_spread(1_281_167))) == 2000
    assert max(evenly_spread(1_281_167)) > 1_280_000


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_small_image_is_at_most_256_pixels_wide_and_looks_the_same(format):
    image = Image.linear_gradient("L").resize((1200, 900)).convert("RGB")
    small = Files([encoded(image, format)]).thumbnail(0)
    assert small.size == (256, 192)
    difference = np.asarray(small, dtype=int) - np.asarray(image.resize((256, 192)), dtype=int)
    assert np.abs(difference).max() <= 4
    assert Files([encoded(picture(0))]).thumbnail(0).size == picture(0).size


def test_what_cannot_be_read_is_found_wherever_it_is():
    files = [encoded(picture(0, 4, 4))] * 2100
    for i in (0, 1023, 1024, 2099):
        files[i] = b"no image"
    seen = []
    found = find_unreadable(Files(files), lambda done, of: seen.append((done, of)))
    assert found == [0, 1023, 1024, 2099]
    assert seen == [(1024, 2100), (2048, 2100), (2100, 2100)]


def test_an_error_of_the_disk_is_no_broken_image():
    class Unplugged(Files):
        def encoded(self, i):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        find_unreadable(Unplugged([b""]), lambda done, of: None)


def test_an_image_that_cannot_be_decoded_is_named():
    with pytest.raises(ValueError, match=r"^somewhere/x\.png is not an image that can be read \("):
        decode_image(b"no image", "somewhere/x.png")
    with pytest.raises(
        ValueError, match=r"^image 0 is not an image .*: repair or remove it, or leave out .*bad_images='skip'"
    ):
        Files([encoded(picture(0))[:100]])[0]


def test_full_shared_memory_is_an_os_error(folders, monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to resize file </torch_1> to the right size: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(OSError, match=r"no shared memory for the data set, make room in /dev/shm .*No space left"):
        load_data(f"folder:{folders}")
