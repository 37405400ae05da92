import pytest
import torch

from repmlp.training.evaluation import Totals, classify


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_correct_and_equal_predictions_are_counted_with_labels_of_any_integer_type(dtype):
    x = torch.eye(3).repeat(2, 1)  # as logits: classes 0, 1, 2, 0, 1, 2
    batches = [(x[:4], torch.tensor([0, 1, 0, 0], dtype=dtype)), (x[4:], torch.tensor([1, 1], dtype=dtype))]
    (first, second), agree = classify([lambda x: x, lambda x: x * torch.tensor([1.0, 1.0, -1.0])], batches)
    assert (first.images, first.correct) == (6, 4)
    assert (second.images, second.correct) == (6, 5)  # predicts class 0 for what is 2
    assert agree == 4
    assert first.mean().accuracy == 4 / 6


def test_no_images_have_no_accuracy():
    totals, agree = classify([lambda x: x], [])
    assert (totals, agree) == ([Totals()], 0)
    with pytest.raises(ValueError, match="no images to evaluate on"):
        totals[0].mean()
