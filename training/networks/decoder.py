"""The small MLP that turns a plane feature into density and colour features. Source: EG3D."""

from torch import Tensor, nn

from torch_utils.ops.triplane_render import HIDDEN
from training.networks.layers import FullyConnected
from training.volumetric_rendering.fused import DecoderWeights, decode

MARGIN = 0.001  # widens the sigmoid so that 0 and 1 are reachable


class Decoder(nn.Module):
    """Plane feature [M, C] -> colour features [M, F] in about [0, 1] and raw density [M, 1]."""

    def __init__(self, in_features: int, out_features: int, lr_mul: float = 1.0) -> None:
        super().__init__()
        self.hidden = FullyConnected(in_features, HIDDEN, lr_mul=lr_mul)
        self.out = FullyConnected(HIDDEN, 1 + out_features, lr_mul=lr_mul)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Decodes features of any leading shape [..., C]."""
        colors, density = decode(features.flatten(0, -2), self.weights(), MARGIN)
        return colors.unflatten(0, features.shape[:-1]), density.unflatten(0, features.shape[:-1])

    def weights(self) -> DecoderWeights:
        """Returns the weights of both layers with their gains."""
        return DecoderWeights(*self.hidden.scaled(), *self.out.scaled())
