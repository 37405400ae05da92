"""The grouped fully-connected layer: FC3 of RepMLP (v1, section 3.3).

M rows, g groups, I inputs and Q outputs of one group.
"""

import torch
from torch import Tensor


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply one FC per group: ``y[m, k*Q+q] = sum_i weight[k, q, i] * x[m, k*I+i] + bias[k*Q+q]``.

    The groups are the batch axis of one batched matrix product. (A 1x1 conv with g groups computes
    the same, and is what the authors' code runs; the paper itself calls it inefficient.)

    Args:
        x: (M, g*I).
        weight: (g, Q, I).
        bias: (g*Q), or None.

    Returns:
        (M, g*Q).
    """
    g, Q, I = weight.shape
    M = x.shape[0]
    x = x.reshape(M, g, I).permute(1, 2, 0)  # (g, I, M), a view
    y = torch.bmm(weight, x)  # (g, Q, I) @ (g, I, M) -> (g, Q, M); this order is the faster one with few rows
    y = y.permute(2, 0, 1).reshape(M, g * Q)
    return y if bias is None else y + bias.to(y.dtype)  # under autocast y is coarser, and stays so, as in nn.Linear
