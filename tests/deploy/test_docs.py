"""The code in docs/deploy.md runs files without this package, and to the same logits."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import resolve_data_config

import repmlp
from needs import ONNX, OPENVINO, needs
from repmlp.data import eval_transform, open_image
from repmlp.deploy import export
from weights import randomize

needs(*ONNX, *OPENVINO)

DOCS = Path(__file__).parents[2] / "docs" / "deploy.md"
PREPARE, *SNIPPETS = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
FILES = ("deploy.onnx", "deploy.xml", "deploy.pt2")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"channels": (4,), "img_size": 8, "partition_size": 4, "kernel_sizes": (1, 3)}
    cfg = {"label_names": ["a", "b", "c"], "input_size": (3, 8, 8), "crop_pct": 0.8}
    model = timm.create_model("repmlp_cifar", num_classes=3, pretrained_cfg_overlay=cfg, **sizes)
    return repmlp.reparameterize(randomize(model))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for file in FILES:
        export(model, folder / file)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return folder


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "LA", "P", "I;16", "I;16 transparent", "CMYK", "turned"])
def test_prepare_reads_any_image_as_this_package_does(tmp_path, kind, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    image = Image.fromarray(pixels).convert("RGBA")
    image.putalpha(Image.fromarray(pixels[..., 0]))
    exif = Image.Exif()
    exif[0x0112] = 6 if kind == "turned" else 1
    wide = Image.fromarray(pixels[..., 0].astype(np.uint16) * 250)
    image = wide if kind.startswith("I;16") else image.convert("RGB" if kind == "turned" else kind)
    clear = {"transparency": int(np.asarray(wide)[3, 3])} if "transparent" in kind else {}
    image.save(tmp_path / "image.tif" if kind == "CMYK" else tmp_path / "image.png", exif=exif, **clear)
    (path,) = tmp_path.iterdir()
    config = {"input_size": (channels, 8, 8), "mean": (0.5,) * channels, "std": (0.5,) * channels}
    config |= {"crop_pct": 0.8, "interpolation": "bilinear", "crop_mode": "center"}
    names: dict = {}
    exec(PREPARE, names)
    expected = eval_transform(config)(open_image(path))[None]
    np.testing.assert_allclose(names["prepare"](path, config), expected.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (8, 20), (20, 8), (15, 16)])
@pytest.mark.parametrize("crop_pct", [0.8, 1.0])
def test_prepare_resizes_for_a_network_of_any_shape(tmp_path, size, crop_pct):
    config = {"input_size": (3, *size), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    config |= {"crop_pct": crop_pct, "interpolation": "bicubic", "crop_mode": "center"}
    names: dict = {}
    exec(PREPARE, names)
    for height, width in ((30, 41), (41, 30), (10, 100)):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "image.png")
        expected = eval_transform(config)(open_image(tmp_path / "image.png"))[None]
        np.testing.assert_allclose(
            names["prepare"](tmp_path / "image.png", config), expected.numpy(), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("i", range(len(FILES)), ids=FILES)
def test_a_snippet_gives_the_logits_of_the_model(model, folder, i, monkeypatch, capsys):
    assert len(SNIPPETS) == len(FILES)
    assert FILES[i] in SNIPPETS[i]
    assert "import repmlp" not in PREPARE + SNIPPETS[i]
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(PREPARE + SNIPPETS[i], names)
    with torch.no_grad():
        expected = model(eval_transform(resolve_data_config(model=model))(open_image("image.png"))[None])
    np.testing.assert_allclose(names["logits"], expected.numpy(), rtol=0, atol=1e-5 * expected.abs().max().item())
    assert capsys.readouterr().out.strip() == "abc"[expected.argmax()]
