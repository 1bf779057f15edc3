"""Convolution with optional 2x up- or downsampling through the FIR low-pass filter."""

from torch import Tensor

from torch_utils.ops.convolution import conv2d, conv_transpose2d
from torch_utils.ops.upfirdn2d import upfirdn2d


def conv2d_resample(
    x: Tensor, weight: Tensor, f: Tensor | None, up: int = 1, down: int = 1, impl: str = 'auto'
) -> Tensor:
    """Convolves images with "same" padding, doubling or halving their size on the way.

    Args:
        x: images [N, C_in, H, W].
        weight: [C_out, C_in, k, k] with odd k. When up = 2 the kernel is applied flipped (as a transposed
            convolution does), otherwise as it is; trained weights depend on this.
        f: low-pass filter [4, 4]; not used, and may be None, when the size stays.
        up: 1 or 2: transposed convolution of stride 2, then the filter.
        down: 1 or 2: the filter, then a convolution of stride 2.
        impl: of filter and convolution; see kernels.has_kernels.

    Returns:
        images [N, C_out, H * up / down, W * up / down].
    """
    k = weight.shape[-1]
    assert (up, down) in ((1, 1), (2, 1), (1, 2))
    if up == down:
        return conv2d(x, weight, padding=k // 2, impl=impl)
    taps = f.shape[-1]
    if up == 2:
        x = conv_transpose2d(x, weight.transpose(0, 1), stride=2, impl=impl)
        # the full result has 2H + k - 2 pixels; the padding brings it to 2H after the filter
        left = k // 2 + (taps + 1) // 2 - (k - 1)
        right = k // 2 + (taps - 2) // 2 - (k - 2)
        return upfirdn2d(x, f, padding=(left, right, left, right), gain=4, impl=impl)
    left, right = k // 2 + (taps - 1) // 2, k // 2 + (taps - 2) // 2
    padding = (left, right, left, right)
    if k == 1:  # filter and skip first: a quarter of the work
        return conv2d(upfirdn2d(x, f, down=2, padding=padding, impl=impl), weight, impl=impl)
    return conv2d(upfirdn2d(x, f, padding=padding, impl=impl), weight, stride=2, impl=impl)
