"""Kernels that look up planes, decode and composite along rays without a tensor of all samples.

They compute what training/volumetric_rendering/fused.py defines; the backward pass computes the samples
again. Memory is that of the planes and of one number per sample. Parameters of the decoder are one vector:
hidden weight [64, C] and bias, output weight [1 + F, 64] and bias, the density first.
"""

import ctypes

import torch
from torch import Tensor

from torch_utils.ops import kernels

HIDDEN = 64  # width of the decoder's hidden layer [EG3D]; the kernels are written for it


def usable(planes: Tensor, samples: int, features: int, impl: str = 'auto') -> bool:
    """Returns whether kernels can render planes [N, 3, C, H, W] with so many samples and features.

    The planes must be float32 or float64: others would be rendered without kernels, in much more memory.
    """
    assert planes.dtype in (torch.float32, torch.float64), f'{planes.dtype}: convert the planes to float32'
    if not kernels.has_kernels(planes, impl):
        return False
    n, p, c, h, w = planes.shape
    small = p == 3 and 3 * c * h * w < 2**31 and 2 <= samples <= 512 and max(c, features) <= 64
    return small and _fits(planes.device, c, samples, features, planes.dtype == torch.float64)


@kernels.constant
def _fits(device: torch.device, channels: int, samples: int, features: int, double: bool) -> bool:
    if device.type != 'cuda':
        return True
    sizes = map(ctypes.c_int64, (channels, samples, features, int(double)))
    with torch.cuda.device(device):  # the function asks the current one
        return bool(kernels.load('cuda').pv3d_triplane_fits(*sizes))


def channels_innermost(planes: Tensor) -> Tensor:
    """Returns planes [N, 3, C, H, W] with the channels of a pixel side by side, a copy where they are not."""
    if planes.stride(2) == 1 and torch.empty_like(planes, device='meta').stride() == planes.stride():
        return planes  # dense, so that a gradient can have the same strides
    return planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def _render(
    planes: Tensor, params: Tensor, origins: Tensor, directions: Tensor, depths: Tensor, *numbers: float
) -> tuple[Tensor, Tensor]:
    features, weights = _render_fake(planes, params, origins, directions, depths, *numbers)
    inputs = (params, origins, directions, depths, None, None)
    _call(planes, inputs, (features, weights, None, None), *numbers)
    return features, weights


def _render_fake(
    planes: Tensor, params: Tensor, origins: Tensor, directions: Tensor, depths: Tensor, *numbers: float
) -> tuple[Tensor, Tensor]:
    n, r, s = depths.shape
    return planes.new_empty((n, r, numbers[0])), planes.new_empty((n, r, s - 1))


def _grad(planes: Tensor, params: Tensor, *args: Tensor | float) -> tuple[Tensor, Tensor]:
    planes = channels_innermost(planes)
    grads = torch.zeros_like(planes), torch.zeros_like(params)
    _call(planes, (params, *args[:5]), (None, None, *grads), args[3].shape[2], *args[5:])
    return grads


def _grad_fake(planes: Tensor, params: Tensor, *args: Tensor | float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(channels_innermost(planes)), torch.empty_like(params)


def _call(
    planes: Tensor, inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...], *numbers: float
) -> None:
    planes = channels_innermost(planes)
    _check_shapes(planes, *inputs[1:4])
    n, _, c, h, w = planes.shape
    step_n, step_p, _, step_y, step_x = planes.stride()
    features, *numbers = numbers
    sizes = (n, c, h, w, *inputs[3].shape[1:], features, step_n, step_p, step_y, step_x)
    inputs = [None if x is None else x.contiguous() for x in inputs]
    outputs = [None if x is None or x.numel() == 0 else x for x in outputs]
    kernels.call('triplane_render', planes, planes, *inputs, *outputs, *sizes, *numbers)


def _check_shapes(planes: Tensor, origins: Tensor, directions: Tensor, depths: Tensor) -> None:
    """Refuses rays that a kernel would read beyond their end."""
    n, rays = depths.shape[:2]
    if n != len(planes) or not origins.shape == directions.shape == (n, rays, 3):
        shapes = ', '.join(str(list(x.shape)) for x in (origins, directions, depths))
        raise ValueError(
            f'origins, directions and depths {shapes} do not fit planes of {len(planes)} frames: they must '
            'be [N, R, 3], [N, R, 3] and [N, R, S], and there must be as many cameras as frames'
        )


kernels.register(
    'triplane_render(Tensor planes, Tensor params, Tensor origins, Tensor directions, Tensor depths, '
    'int features, int axes, float scale, float margin, float density_bias) -> (Tensor, Tensor)',
    _render,
    _render_fake,
)
kernels.register(
    'triplane_render_grad(Tensor planes, Tensor params, Tensor origins, Tensor directions, Tensor depths, '
    'Tensor grad_features, Tensor grad_weights, int axes, float scale, float margin, float density_bias) '
    '-> (Tensor, Tensor)',
    _grad,
    _grad_fake,
)
