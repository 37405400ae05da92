"""timm's contract for a network that is a sequence of stages and a classifier head.

A subclass only has to set ``stages``, ``norm`` and ``feature_info``, and to call ``_init_head``: classification,
feature pyramids, intermediates, checkpointing and fine-tuning then work as for timm's own models.
"""

from typing import Any

import torch
from timm.layers import ClassifierHead
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn


class StagedModel(nn.Module):
    """Stages that each end in a feature map (N, C, H, W), a norm, and a pooling classifier."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.grad_checkpointing = False
        # Annotated here: TorchScript cannot read these types in the class body.
        self.feature_info: list[dict[str, Any]] = []
        self.stages: nn.Sequential = nn.Sequential()
        self.norm: nn.Module = nn.Identity()

    def _init_head(self, channels: int, global_pool: str, drop_rate: float, device=None, dtype=None) -> None:
        self.num_features = self.head_hidden_size = channels
        self.head = ClassifierHead(channels, self.num_classes, global_pool, drop_rate, device=device, dtype=dtype)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stages\.0\.0\.", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map (N, C, H, W) of images, not pooled."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.stages, x)
        else:
            x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The logits of the last feature map, or its pooled features with ``pre_logits``."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The feature maps of the stages, as in timm's models.

        Args:
            x: images.
            indices: the stages; the last n for an int, all for None.
            norm: apply the final norm to the map of the last stage.
            stop_early: stop after the last of the stages in ``indices``.
            output_fmt: only NCHW is supported.
            intermediates_only: return the maps only, without the final features.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r} is not supported: feature maps are NCHW")
        wanted, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        stages = self.stages[: last + 1] if stop_early and not torch.jit.is_scripting() else self.stages
        for i, stage in enumerate(stages):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing and not torch.jit.is_scripting() else stage(x)
            if i in wanted:
                intermediates.append(self.norm(x) if norm and i == len(self.stages) - 1 else x)
        if intermediates_only:
            return intermediates
        if last == len(self.stages) - 1 or not stop_early:
            x = self.norm(x)
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after those in ``indices`` and, on request, the norm and the head."""
        wanted, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return wanted
