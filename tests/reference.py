"""The slow, obvious reference: RepMLP (v1) in explicit loops over float64 numpy arrays.

Nothing here shares a line with the package: two forms of a block could share a mistake, these loops do not.

N batch, C/O channels in/out, H,W feature map, h,w partition, P partitions per channel, M = N*P rows,
g groups, I/Q inputs/outputs of one group, kh,kw kernel. ``s`` is a block's state dict in training form.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = dict[str, Array]


def numpy_state(module) -> State:
    """A module's state dict as float64 arrays that share no memory with it."""
    return {name: tensor.detach().double().numpy().copy() for name, tensor in module.state_dict().items()}


def partition_map(x: Array, h: int, w: int) -> Array:
    """(N, C, H, W) -> (N*P, C, h, w); zeros where a partition sticks out of the map."""
    N, C, H, W = x.shape
    rows, cols = -(-H // h), -(-W // w)
    m = np.zeros((N * rows * cols, C, h, w))
    for n, c, y, z in product(range(N), range(C), range(H), range(W)):
        m[(n * rows + y // h) * cols + z // w, c, y % h, z % w] = x[n, c, y, z]
    return m


def unpartition_map(m: Array, H: int, W: int) -> Array:
    """(N*P, O, h, w) -> (N, O, H, W)."""
    M, O, h, w = m.shape
    rows, cols = -(-H // h), -(-W // w)
    x = np.empty((M // (rows * cols), O, H, W))
    for n, o, y, z in np.ndindex(x.shape):
        x[n, o, y, z] = m[(n * rows + y // h) * cols + z // w, o, y % h, z % w]
    return x


def grouped_linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """(M, g*I) with weight (g, Q, I) -> (M, g*Q): output q of group k sees the inputs of group k only."""
    g, Q, I = weight.shape
    y = np.zeros((len(x), g * Q))
    for m, k, q in product(range(len(x)), range(g), range(Q)):
        for i in range(I):
            y[m, k * Q + q] += weight[k, q, i] * x[m, k * I + i]
        if bias is not None:
            y[m, k * Q + q] += bias[k * Q + q]
    return y


def conv(x: Array, kernel: Array, groups: int) -> Array:
    """(M, C, h, w) with kernel (O, C/g, kh, kw) -> (M, O, h, w): stride 1, zeros around the map."""
    M, _, h, w = x.shape
    O, C_g, kh, kw = kernel.shape
    y = np.zeros((M, O, h, w))
    for m, o, a, b in np.ndindex(y.shape):
        group = o // (O // groups)
        for c, i, j in product(range(C_g), range(kh), range(kw)):
            row, col = a + i - kh // 2, b + j - kw // 2
            if 0 <= row < h and 0 <= col < w:
                y[m, o, a, b] += kernel[o, c, i, j] * x[m, group * C_g + c, row, col]
    return y


def conv_as_linear(kernel: Array, h: int, w: int, groups: int) -> Array:
    """The definition: W[(o,y,x), (c,y+i-p,x+j-p)] = F[o,c,i,j] inside each group -> (g, O/g*h*w, C/g*h*w)."""
    O, C_g, kh, kw = kernel.shape
    O_g = O // groups
    W = np.zeros((groups, O_g * h * w, C_g * h * w))
    for o, c, y, x, i, j in product(range(O), range(C_g), range(h), range(w), range(kh), range(kw)):
        row, col = y + i - kh // 2, x + j - kw // 2
        if 0 <= row < h and 0 <= col < w:
            W[o // O_g, (o % O_g * h + y) * w + x, (c * h + row) * w + col] = kernel[o, c, i, j]
    return W


def batch_norm(x: Array, s: State, name: str, training: bool, eps: float = 1e-5, momentum: float = 0.1) -> Array:
    """BN over axis 1. In training it takes the statistics of the batch, and moves those in ``s`` towards them."""
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        mean, var = s[f"{name}.running_mean"][c], s[f"{name}.running_var"][c]
        if training:
            values = x[:, c].ravel()
            n = len(values)
            batch_mean = sum(values) / n
            batch_var = sum((v - batch_mean) ** 2 for v in values) / n
            s[f"{name}.running_mean"][c] = (1 - momentum) * mean + momentum * batch_mean
            s[f"{name}.running_var"][c] = (1 - momentum) * var + momentum * batch_var * n / (n - 1)
            mean, var = batch_mean, batch_var
        y[:, c] = (x[:, c] - mean) / np.sqrt(var + eps) * s[f"{name}.weight"][c] + s[f"{name}.bias"][c]
    return y


def global_perceptron(x: Array, s: State, h: int, w: int, training: bool) -> Array:
    """Pool every partition, BN, FC1, ReLU, FC2, and add each value to every pixel of its partition."""
    N, C, H, W = x.shape
    rows, cols = H // h, W // w
    pooled = np.empty((N, C, rows, cols))
    for n, c, i, j in np.ndindex(pooled.shape):
        pooled[n, c, i, j] = sum(x[n, c, i * h + y, j * w + z] for y in range(h) for z in range(w)) / (h * w)
    pooled = batch_norm(pooled, s, "global_perceptron.bn", training)
    v = pooled.reshape(N, C * rows * cols)
    v = grouped_linear(v, s["global_perceptron.fc1.weight"][None], s["global_perceptron.fc1.bias"])
    v = np.maximum(v, 0)
    v = grouped_linear(v, s["global_perceptron.fc2.weight"][None], s["global_perceptron.fc2.bias"])
    v = v.reshape(N, C, rows, cols)
    y = np.empty_like(x)
    for n, c, a, b in np.ndindex(x.shape):
        y[n, c, a, b] = x[n, c, a, b] + v[n, c, a // h, b // w]
    return y


def repmlp(x: Array, s: State, partition: tuple[int, int], groups: int, training: bool = False) -> Array:
    """The training form of a block, zero-padded where the partition does not divide the map."""
    (N, C, H, W), (h, w) = x.shape, partition
    padded = np.zeros((N, C, H + -H % h, W + -W % w))
    padded[:, :, :H, :W] = x
    if "global_perceptron.fc1.weight" in s:
        padded = global_perceptron(padded, s, h, w, training)
    m = partition_map(padded, h, w)  # (N*P, C, h, w)
    y = grouped_linear(m.reshape(len(m), C * h * w), s["partition_perceptron.fc3.weight"])
    y = batch_norm(y, s, "partition_perceptron.bn", training)
    y = y.reshape(len(m), -1, h, w)  # (N*P, O, h, w)
    for name in [name for name in s if name.startswith("local_perceptron.") and name.endswith(".conv.weight")]:
        branch = conv(m, s[name], groups)
        y = y + batch_norm(branch, s, name.replace(".conv.weight", ".bn"), training)
    return unpartition_map(y, H, W)
