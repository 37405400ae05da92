"""The authors' names for the tensors of a RepMLP-ResNet. Pure mappings, for either form.

Their network consists of stages of conv-BNs, ``stage1`` to ``stage4`` for timm's ``layer1`` to ``layer4``:

    stage0.0                                                the stem
    stageK.J.{shortcut,conv1,conv2,conv3}                   a Bottleneck
    stageK.J.{btnk_conv1,btnk_conv2,btnk_conv4,btnk_conv5}  a RepMLP Bottleneck, with its btnk_repmlp
    stageK.J.{light_conv1,light_conv3}                      a RepMLP Light Block, with its light_repmlp
    linear                                                  the classifier
"""

from collections.abc import Iterator
from typing import Any

from ..models._resnet_blocks import FoldableBottleneck, RepMLPBottleneck, RepMLPLightBlock
from ..models.repmlp_resnet import RepMLPResNet
from .naming import Entry, block_entries, module_entries

#: The authors' prefix of a block's names, and their numbers of our conv1, conv2, ...
_BLOCKS: dict[Any, tuple[str, tuple[int, ...]]] = {
    RepMLPBottleneck: ("btnk", (1, 2, 4, 5)),
    RepMLPLightBlock: ("light", (1, 3)),
}


def resnet_entries(model: RepMLPResNet) -> Iterator[Entry]:
    """Entries of a whole network in its current form."""
    yield from module_entries(model.conv1, "stage0.0", "conv1")
    layers: Any = (model.layer1, model.layer2, model.layer3, model.layer4)
    for k, layer in enumerate(layers, start=1):
        for j, block in enumerate(layer):
            yield from _block_entries(block, f"stage{k}.{j}", f"layer{k}.{j}")
    yield from module_entries(model.fc, "linear", "fc")


def _block_entries(block: Any, official: str, ours: str) -> Iterator[Entry]:
    if isinstance(block, FoldableBottleneck):
        yield from _bottleneck_entries(block, official, ours)
    for cls, (prefix, numbers) in _BLOCKS.items():
        if isinstance(block, cls):
            for own, theirs in enumerate(numbers, 1):
                conv = getattr(block, f"conv{own}")
                yield from module_entries(conv, f"{official}.{prefix}_conv{theirs}", f"{ours}.conv{own}")
            yield from block_entries(block.repmlp, f"{official}.{prefix}_repmlp", f"{ours}.repmlp")


def _bottleneck_entries(block: FoldableBottleneck, official: str, ours: str) -> Iterator[Entry]:
    """Entries of a Bottleneck: timm keeps a conv and its norm in two modules, the authors in one."""
    for i in (1, 2, 3):
        yield from module_entries(getattr(block, f"conv{i}"), f"{official}.conv{i}.conv", f"{ours}.conv{i}")
        yield from module_entries(getattr(block, f"bn{i}"), f"{official}.conv{i}.bn", f"{ours}.bn{i}")
    if block.downsample is not None:
        conv, norm = block.downsample.children()
        yield from module_entries(conv, f"{official}.shortcut.conv", f"{ours}.downsample.0")
        yield from module_entries(norm, f"{official}.shortcut.bn", f"{ours}.downsample.1")
