"""Mapping networks: code and camera -> intermediate code w, or camera -> embedding (discriminators)."""

import torch
from torch import Tensor, nn

from training.networks.layers import FullyConnected, normalize_2nd_moment

_W_AVG_BETA = 0.998  # decay of the running mean of w [EG3D]


class MappingNetwork(nn.Module):
    """z [N, z_dim], label [N, c_dim] -> w [N, w_dim]. Either input may be absent (dimension 0)."""

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_layers: int,
        lr_mul: float = 0.01,
        track_w_avg: bool = False,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim = z_dim, c_dim
        if c_dim:
            self.embed = FullyConnected(c_dim, w_dim)
        widths = [z_dim + (w_dim if c_dim else 0)] + [w_dim] * num_layers
        self.num_layers = num_layers
        for i in range(num_layers):
            setattr(self, f'fc{i}', FullyConnected(widths[i], widths[i + 1], act='lrelu', lr_mul=lr_mul))
        if track_w_avg:
            self.register_buffer('w_avg', torch.zeros(w_dim))

    def forward(self, z: Tensor | None, c: Tensor | None) -> Tensor:
        """Returns w [N, w_dim], not truncated."""
        parts = []
        if self.z_dim:
            parts.append(normalize_2nd_moment(z.to(self.fc0.weight.dtype)))
        if self.c_dim:
            parts.append(normalize_2nd_moment(self.embed(c.to(self.fc0.weight.dtype))))
        x = torch.cat(parts, dim=1)
        for i in range(self.num_layers):
            x = getattr(self, f'fc{i}')(x)
        return x

    def truncate(self, ws: Tensor, psi: float, cutoff: int | None = None) -> Tensor:
        """Moves the first `cutoff` (None = all) of ws [N, num_ws, w_dim] towards the mean.

        psi: 1 = unchanged, 0 = the mean.
        """
        if psi == 1:
            return ws
        moved = self.w_avg.lerp(ws[:, :cutoff], psi)
        return moved if cutoff is None else torch.cat([moved, ws[:, cutoff:]], dim=1)

    @torch.no_grad()
    def update_w_avg(self, w_mean: Tensor) -> None:
        """Moves the running mean towards the mean w [w_dim] of a batch."""
        self.w_avg.copy_(w_mean.lerp(self.w_avg, _W_AVG_BETA))
