"""Predictions per image: they add up to the totals, and the worst mistakes are mistakes, the worst first."""

import pytest
import torch

from repmlp.report.predictions import Predictions, predict

CPU = torch.device("cpu")


def batches(logits, labels, size=2):
    return zip(logits.split(size), torch.tensor(labels).split(size), strict=True)


def test_the_worst_mistakes_are_wrong_and_sorted_by_loss():
    logits = torch.tensor([[3.0, 0, 0], [0, 2, 0], [0, 9, 0], [0, 0, 1], [5, 0, 0]])
    labels = [0, 2, 0, 2, 1]  # right, wrong, very wrong, right, wrong
    found = predict([lambda x: x, lambda x: -x], batches(logits, labels), CPU)
    assert found.worst(9) == [2, 4, 1]
    assert found.worst(2) == [2, 4]
    assert found.worst(0) == []
    losses = found.losses[found.worst(9)]
    torch.testing.assert_close(
        losses, torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="none")[[2, 4, 1]]
    )
    torch.testing.assert_close(found.confidence, logits.softmax(1).amax(1))
    assert found.confusion(3).tolist() == [[1, 1, 0], [1, 0, 0], [0, 1, 1]]


def test_they_add_up_to_the_scores_of_each_form():
    logits, labels = torch.randn(150, 4), torch.randint(4, (150,)).tolist()
    found = predict([lambda x: x, lambda x: -x], batches(logits, labels, 32), CPU)
    first, second = found.scores
    assert first.images == second.images == int(found.confusion(4).sum()) == 150
    assert first.correct == int(found.confusion(4).trace()) == 150 - len(found.worst(150))
    assert first.loss == pytest.approx(float(found.losses.double().mean()))
    assert second.correct == int((logits.argmin(1) == torch.tensor(labels)).sum())
    assert found.agree == 0
    torch.testing.assert_close(found.images, logits[: Predictions.FEW])


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images to evaluate on"):
        predict([lambda x: x], [], CPU)
