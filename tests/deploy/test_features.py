"""Networks made with ``features_only`` are exported with one named output per map."""

import pytest
import timm
import torch
from torch import nn

import repmlp
from needs import ONNX, OPENVINO, needs
from repmlp.deploy import export, load_exported
from repmlp.deploy.engines import EXPORTERS
from weights import randomize

needs(*ONNX, *OPENVINO)

NETWORKS = {
    "repmlp_resnet50_light": {"img_size": 64, "channels": (16, 32, 64, 128), "layers": (1, 2, 2, 1)},
    "test_resnet": {"out_indices": (1, 3)},
}
NAMES = {"repmlp_resnet50_light": ["act1", "layer1", "layer2", "layer3", "layer4"], "test_resnet": ["layer1", "layer3"]}


def backbone(name):
    torch.manual_seed(0)
    model = randomize(timm.create_model(name, features_only=True, **NETWORKS[name]))
    return repmlp.reparameterize(model) if name.startswith("repmlp") else model


@pytest.mark.parametrize(
    "format", [pytest.param("onnx", marks=pytest.mark.slow), pytest.param("openvino", marks=pytest.mark.slow), "torch"]
)
def test_maps_are_named_outputs(tmp_path, format):
    name = "repmlp_resnet50_light"
    model = backbone(name)
    done = export(model, tmp_path / f"a{EXPORTERS[format].suffix}")
    assert done.metadata["output"] == NAMES[name]
    assert "label_names" not in done.metadata
    exported = load_exported(done.file)
    assert exported.num_classes == 0
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        maps, expected = exported(x), model(x)
    assert len(maps) == len(expected) == 5
    for actual, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-4)
    if format == "onnx":
        import onnx

        assert [output.name for output in onnx.load(done.file).graph.output] == NAMES[name]
    if format == "openvino":
        import openvino

        assert [o.any_name for o in openvino.Core().read_model(done.file).outputs] == NAMES[name]


def test_a_plain_timm_backbone(tmp_path):
    done = export(backbone("test_resnet"), tmp_path / "a.pt2")
    assert done.metadata["output"] == NAMES["test_resnet"]


class Wrapped(nn.Module):
    """A network with other outputs than logits."""

    def __init__(self, model, outputs):
        super().__init__()
        self.model, self.outputs, self.num_classes = model, outputs, 3
        self.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 8, 8)}

    def forward(self, x):
        return self.outputs(self.model(x))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda y: (y, [y]), "returns nested outputs: export one that returns a tensor or a list of tensors"),
        (lambda y: (y, y), "returns 2 tensors, but 1 is expected .*: export one that returns logits"),
    ],
)
def test_other_outputs_are_refused_by_name(tmp_path, outputs, message):
    args = {"channels": (4,), "img_size": 8, "partition_size": 4, "kernel_sizes": (1, 3), "num_classes": 3}
    model = repmlp.reparameterize(timm.create_model("repmlp_cifar", **args))
    with pytest.raises(ValueError, match=message):
        export(Wrapped(model, outputs), tmp_path / "a.pt2")
    export(Wrapped(model, lambda y: 2 * y), tmp_path / "a.pt2")


@pytest.mark.parametrize("indices", [(1, 0), (-1, 0), (0, 1), (0,)])
def test_each_name_is_that_of_its_map_in_whatever_order_maps_are_asked_for(tmp_path, indices):
    sizes = {"img_size": 8, "channels": [4, 8], "partition_size": 4, "kernel_sizes": [1]}
    model = timm.create_model("repmlp_cifar", features_only=True, out_indices=indices, **sizes)
    names = export(repmlp.reparameterize(randomize(model)), tmp_path / "a.pt2").metadata["output"]
    maps = load_exported(tmp_path / "a.pt2")(torch.zeros(1, 3, 8, 8))
    channels = {"stages.0": 4, "stages.1": 8}
    assert [channels[name] for name in names] == [x.shape[1] for x in maps]
