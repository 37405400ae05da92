"""Embeddings are compared row by row, on the rows that both models have."""

import copy

import pytest
import torch
from torch import nn

import repmlp


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.mix, self.fc = nn.Embedding(1000, 16), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, indices):
        return self.fc(self.mix(self.words(indices)))


@pytest.mark.parametrize("shape", [(4, 7), (5,), ()])
def test_all_rows_of_an_embedding_are_compared(shape):
    a = Words().eval()
    b = copy.deepcopy(a)
    with torch.no_grad():
        b.words.weight.copy_(a.mix(a.words.weight))
    b.mix = nn.Identity()
    indices = torch.randint(0, 20, shape)
    assert repmlp.verify(a, b, indices)
    with torch.no_grad():
        b.words.weight[999, 3] += 0.1
    report = repmlp.verify(a, b, indices)
    assert (report.first_difference.name, report.first_difference.channel) == ("words + mix", 3)


class Shifted(nn.Embedding):
    def forward(self, indices):
        return super().forward(indices + 1)  # row 0 is for padding


def test_an_embedding_that_looks_up_other_rows_is_compared_on_the_indices_it_got():
    model = nn.Sequential(Shifted(11, 4), nn.Linear(4, 3)).eval()
    other = copy.deepcopy(model)
    words = torch.randint(10, (2, 60), generator=torch.Generator().manual_seed(0))
    assert repmlp.verify(model, other, words)
    with torch.no_grad():
        other[0].weight[3] += 1
    assert not repmlp.verify(model, other, words)


def test_embeddings_of_different_lengths_are_compared_on_the_rows_that_both_have():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3)).eval()
    other = nn.Sequential(nn.Embedding(8, 4), model[1]).eval()
    other[0].weight = nn.Parameter(model[0].weight[:8].detach().clone())
    words = torch.randint(8, (2, 6), generator=torch.Generator().manual_seed(0))
    repmlp.verify(model, other, words)
    with torch.no_grad():
        other[0].weight[7] += 1
    assert not repmlp.verify(model, other, words)
