"""What int8 does to a weight, in floating point and with gradient."""

from torch import Tensor


def fake_quantize(weight: Tensor, bits: int = 8) -> Tensor:
    """Round a weight to the numbers that an integer kernel can hold: symmetric, one scale per output.

    With ``L = 2**(bits-1) - 1`` (127) and the scale ``s`` of an output, its largest ``|weight|`` over
    L, so that nothing is clipped: ``s * round(weight / s)``. Of FC3's kernel an output is one output
    feature of one group.

    The gradient is passed through as if nothing were rounded (a straight-through estimator).

    Args:
        weight: (..., I), the inputs last: (g, Q, I) of FC3, (O, I) of an FC.
        bits: of the integers, 2 or more.

    Returns:
        The rounded weight, of the same shape and dtype.

    Raises:
        ValueError: if ``bits`` is less than 2, which leaves nothing but zero.
    """
    if bits < 2:
        raise ValueError(f"symmetric integers of {bits} bits hold zero only: use 2 bits or more")
    exact = weight.detach()
    scale = exact.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)  # (..., 1)
    rounded = (exact / scale.masked_fill(scale == 0, 1)).round() * scale  # an output of zeros stays that
    return rounded + (weight - exact)  # the numbers of the one, the gradient of the other
