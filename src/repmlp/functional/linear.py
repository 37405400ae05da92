"""The grouped fully-connected layer: FC3 of RepMLP (v1, section 3.3).

M rows, g groups, I inputs and Q outputs of one group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, by_rows: bool = False) -> Tensor:
    """Apply one FC per group: ``y[m, k*Q+q] = sum_i weight[k, q, i] * x[m, k*I+i] + bias[k*Q+q]``.

    One batched matrix product; the groups are the batch axis. (The authors' code runs a 1x1 conv with g
    groups, which computes the same; the paper itself calls it inefficient.)

    Args:
        x: (M, g*I).
        weight: (g, Q, I).
        bias: (g*Q), or None.
        by_rows: compute one product per group instead, with a contiguous output. The batched product returns a
            transposed view, which makes a BN in training several times slower. One product per group is slower with
            few rows or many groups.

    Returns:
        (M, g*Q).
    """
    g, Q, I = weight.shape
    M = x.shape[0]
    if by_rows:
        # The gradient of unbind is one stack. Indexing weight[k] instead would pad the gradient of each group with
        # zeros to full size, and add them all up.
        ys = [F.linear(rows, fc) for rows, fc in zip(x.chunk(g, 1), weight.unbind(), strict=True)]  # g of (M, Q)
        y = ys[0] if g == 1 else torch.cat(ys, 1)
    else:
        x = x.reshape(M, g, I).permute(1, 2, 0)  # (g, I, M), a view
        y = torch.bmm(weight, x)  # (g, Q, I) @ (g, I, M) -> (g, Q, M); this order is the faster one with few rows
        y = y.permute(2, 0, 1).reshape(M, g * Q)
    return y if bias is None else y + bias.to(y.dtype)  # under autocast, y keeps its narrower dtype, as in nn.Linear
