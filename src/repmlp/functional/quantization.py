"""The effect of int8 on a weight, simulated in floating point and differentiable."""

from torch import Tensor


def fake_quantize(weight: Tensor, bits: int = 8) -> Tensor:
    """Round a weight to the values that an integer kernel can hold: symmetric, one scale per output.

    Computes ``s * round(weight / s)``, where the scale ``s`` of an output is its largest ``|weight|``
    divided by ``2**(bits-1) - 1`` (127), so that nothing is clipped. An output of FC3 is one output
    feature of one group.

    The gradient passes through as if nothing were rounded (a straight-through estimator).

    Args:
        weight: (..., I), inputs last: (g, Q, I) for FC3, (O, I) for an FC.
        bits: of the integers, at least 2.

    Returns:
        The rounded weight, with the same shape and dtype.

    Raises:
        ValueError: if ``bits`` is less than 2, which leaves only zero.
    """
    if bits < 2:
        raise ValueError(f"symmetric integers of {bits} bits hold only zero: use 2 bits or more")
    exact = weight.detach()
    scale = exact.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)  # (..., 1)
    rounded = (exact / scale.masked_fill(scale == 0, 1)).round() * scale  # an output that is all zero stays zero
    return rounded + (weight - exact)  # the values of rounded, the gradient of weight
