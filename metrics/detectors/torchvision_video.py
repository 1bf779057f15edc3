"""Video networks that torchvision offers with Kinetics-400 weights: pooled features before the classifier."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

_HEADS = {
    'r3d_18': 'fc',
    'mc3_18': 'fc',
    'r2plus1d_18': 'fc',
    's3d': 'classifier',
    'mvit_v2_s': 'head',
    'swin3d_t': 'head',
}
_FRAMES = {'s3d': (14, None), 'mvit_v2_s': (16, 16)}  # fewest and most frames of a clip


def _input_as_output(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    return inputs[0]


class TorchvisionVideo(nn.Module):
    """A network of torchvision behind the transforms that belong to its weights.

    Args:
        name: r3d_18, mc3_18, r2plus1d_18, s3d, mvit_v2_s or swin3d_t.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.preprocess = get_model_weights(name).KINETICS400_V1.transforms()  # type: ignore[attr-defined]
        self.network = get_model(name, weights=None)  # with its head, since the file has that as well
        getattr(self.network, _HEADS[name]).register_forward_hook(_input_as_output)

    def forward(self, frames: Tensor) -> Tensor:
        """Returns features of clips: [N, 512], of s3d [N, 1024], of mvit_v2_s and swin3d_t [N, 768].

        Args:
            frames: uint8 [N, T, 3, H, W].

        Raises:
            ValueError: for another type or shape, or a number of frames that this network cannot take.
        """
        if frames.ndim != 5 or frames.shape[2] != 3 or frames.dtype != torch.uint8:
            raise ValueError(f'frames must be uint8 [N, T, 3, H, W], got {frames.dtype} {list(frames.shape)}')
        fewest, most = _FRAMES.get(self.name, (1, None))
        count = frames.shape[1]
        if count < fewest or (most is not None and count > most):
            wanted = f'exactly {fewest}' if most == fewest else f'at least {fewest}'
            raise ValueError(f'{self.name} needs clips of {wanted} frames, got {count}')
        return self.network(self.preprocess(frames.contiguous()))
