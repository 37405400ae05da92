"""One step of the optimizer: what training repeats, and what the ablation times."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from .evaluation import Totals
from .setup import TrainComponents


def train_step(components: TrainComponents, batch: Iterable[tuple[Tensor, Tensor]], step: int) -> Totals:
    """Forward and backward for one batch, then one update of the weights, the learning rate and the EMA.

    Args:
        batch: images (B, C, H, W) and labels (B) of each of its ``accumulation`` micro-batches.
        step: the number of this step in the whole run, from 1 on.

    Returns:
        The totals of the batch in this process, unread. After mixup, ``correct`` counts the first label of each pair.
    """
    accelerator, network, optimizer = components.accelerator, components.ddp_model, components.optimizer
    totals = Totals()
    for x, labels in batch:
        x, labels = x.to(accelerator.device), labels.to(accelerator.device)
        if components.settings.channels_last:
            x = x.to(memory_format=torch.channels_last)
        with accelerator.accumulate(network):
            x, target = components.mix(x, labels)
            logits = network(x)  # (B, classes)
            loss = components.loss(logits, target)
            with unchanged_buffers(components.model) if components.settings.grad_checkpointing else nullcontext():
                accelerator.backward(loss)
            if components.settings.clip and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(network.parameters(), components.settings.clip)
            optimizer.step()  # accelerate skips both until the last micro-batch
            optimizer.zero_grad()
        totals += Totals.of(logits, labels, loss)
    assert accelerator.sync_gradients, "a batch has as many micro-batches as the accelerator accumulates"
    components.schedule.step_update(step)
    if components.ema:
        components.ema.update(components.model, step)
    return totals


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Let what runs inside work on copies of a model's buffers.

    For the backward pass with gradient checkpointing, which runs parts of the forward pass again and would move the
    running statistics of batch norms twice.
    """
    kept = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    for buffers, originals in kept:
        buffers.update({name: buffer.clone() for name, buffer in originals.items() if buffer is not None})
    try:
        yield
    finally:
        for buffers, originals in kept:
            buffers.update(originals)
