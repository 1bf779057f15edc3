"""3DVidGen: a StyleNeRF whose first layer is moved by a vector, with one camera for a clip.

Data flow: mapping -> fields along rays -> features of a small image -> upsampling. Rays are those of PV3D's
renderer (a density of its kind, no noise in training). Source: 3DVidGen, StyleNeRF.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn

from dnnlib.config import BaseConfig, Configurable
from dnnlib.scene import FOCAL, RADIUS
from dnnlib.util import ConfigError
from training.camera import LABEL_DIM, unpack_label
from training.networks.contract import Codes, RadianceGenerator, Rendering
from training.networks.layers import FullyConnected
from training.networks.mapping import MappingNetwork
from training.networks.motion import MotionVector
from training.networks.nerf_layers import Background, Foreground, UpsamplingBlock
from training.volumetric_rendering.ray_sampler import camera_rays
from training.volumetric_rendering.renderer import RendererConfig, render_rays


class NerfGenerator(RadianceGenerator, Configurable):
    """z_a, z_m, t, c -> Rendering; z_a holds the code of the background at its end.

    Of ws the last row is not a w: it begins with that code. A scene is all that its points depend on: ws, and
    the vector of motion, one behind the other.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Everything needed to rebuild the network."""

        kind = 'nerf'
        resolution: int = 512  # pixels along a side of the output: that of rays, doubled several times
        span: int = 16  # frames of a training clip
        focal: float = FOCAL  # focal length of the training cameras, image widths
        z_dim: int = 512  # width of the code of the head [StyleNeRF]
        w_dim: int = 512  # width of the intermediate codes [StyleNeRF]
        mapping_layers: int = 8  # [StyleNeRF]
        hidden: int = 128  # width of the layers before the head, and of the vector of motion [StyleNeRF]
        layers: int = 8  # of the field of the head [StyleNeRF]
        features: int = 256  # rendered beside the colour [StyleNeRF FFHQ]
        background_code: int = 32  # numbers; drawn for every clip [StyleNeRF: for every call]
        background_hidden: int = 64  # [StyleNeRF]
        background_layers: int = 4  # [StyleNeRF]
        moving: bool = True  # false: StyleNeRF itself, which stands still
        code_dim: int = 512  # width of z_m [3DVidGen]
        channel_base: int = 32768  # channels of the upsampler = min(channel_base / resolution, channel_max)
        channel_max: int = 512  # [StyleNeRF]
        box_warp: float = 1.0  # side of the box around the head that meshes show, scene units [ours]
        # [StyleNeRF], its world being 2.7 times smaller
        renderer: RendererConfig = RendererConfig(
            resolution=32, depth_samples=14, importance_samples=14, ray_start=2.376, ray_end=3.024
        )

        def __post_init__(self) -> None:
            doublings = math.log2(self.resolution / self.renderer.resolution)
            if doublings < 1 or doublings % 1 or self.background_code > self.w_dim or self.span < 2:
                raise ConfigError(
                    f'generator: resolution={self.resolution} must be 2, 4, ... times renderer.resolution='
                    f'{self.renderer.resolution}, background_code={self.background_code} at most w_dim, '
                    f'span={self.span} at least 2'
                )

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.renderer = config, config.renderer
        self.z_dim, self.motion_dim = config.z_dim + config.background_code, config.code_dim
        self.mapping_network = MappingNetwork(
            config.z_dim, 0, config.w_dim, config.mapping_layers, track_w_avg=True
        )
        self.motion = MotionVector(config.code_dim, config.hidden) if config.moving else None
        self.foreground = Foreground(config.w_dim, config.hidden, config.layers, config.features)
        self.color = FullyConnected(config.features, 3)
        self.background = Background(
            config.background_code, config.background_hidden, config.background_layers, config.features
        )
        self.blocks, channels, size = nn.ModuleList(), config.features, 2 * config.renderer.resolution
        while size <= config.resolution:
            width = min(config.channel_base // size, config.channel_max)
            self.blocks.append(UpsamplingBlock(channels, width, config.w_dim))
            channels, size = width, 2 * size
        self.num_ws = self.foreground.num_ws + 2 * len(self.blocks) + 1

    def first_w(self, z_a: Tensor, cameras: Tensor) -> Tensor:
        """Maps appearance codes [N, z_dim] to w [N, w_dim]; cameras are not seen."""
        return self.mapping_network(z_a[:, : self.config.z_dim], None)

    def as_ws(self, w: Tensor, z_a: Tensor, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Gives w [M, w_dim] to all layers, and puts the code of the background behind them."""
        ws = self.mapping_network.truncate(w[:, None].expand(-1, self.num_ws, -1), psi, cutoff)
        behind = nn.functional.pad(z_a[:, self.config.z_dim :], (0, w.shape[1] - self.config.background_code))
        return torch.cat([ws, behind[:, None]], dim=1)

    def training_cameras(self, rendered: Tensor, mapping: Tensor) -> tuple[Tensor, Tensor]:
        """See the contract; a clip that moves has one camera, and the mapping sees none."""
        if not self.config.moving:
            return rendered, mapping
        return (x[:, :1].expand_as(x) for x in (rendered, mapping))

    def condition(
        self, codes: Codes, cameras: Tensor, times: Tensor, psi: float = 1.0, cutoff: int | None = None
    ) -> Tensor:
        """See the contract."""
        return self.as_ws(self.first_w(codes.z_a, cameras), codes.z_a, psi, cutoff)

    def motion_at(self, codes: Codes, times: Tensor) -> Tensor:
        """See the contract."""
        return codes.z_m * times[:, None]

    def moved_scene(
        self, ws: Tensor, u: Tensor, noise_mode: str = 'const', generator: torch.Generator | None = None
    ) -> Tensor:
        """Puts ws and the vector of motion into one row each [M, (num_ws + 1) * w_dim + hidden]."""
        rows = max(len(ws), len(u))
        vector = u.new_zeros(1, self.config.hidden) if self.motion is None else self.motion(u)
        return torch.cat([x.flatten(1).expand(rows, -1) for x in (ws, vector)], dim=1)

    def sample_field(self, scene: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """See the contract; colour and features are halved and moved up, but not limited."""
        ws, vector = scene.split([scene.shape[1] - self.config.hidden, self.config.hidden], dim=1)
        ws = ws.unflatten(1, (-1, self.config.w_dim))[:, : self.foreground.num_ws]
        features, density = self.foreground(points / RADIUS, ws, vector)
        color = self.color(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return (torch.cat([color, features], dim=-1) + 1) / 2, density

    def render(
        self,
        scene: Tensor,
        ws: Tensor,
        cameras: Tensor,
        renderer: RendererConfig | None = None,
        generator: torch.Generator | None = None,
        ray_chunk: int | None = None,
    ) -> Rendering:
        """See the contract; depth, opacity and points are those of the head, without the background."""
        renderer = renderer or self.renderer
        rays = camera_rays(*unpack_label(cameras.to(scene.dtype)), renderer.resolution)
        chunk, code = ray_chunk or rays[0].shape[1], ws[:, -1, : self.config.background_code]
        parts = []
        for origins, directions in zip(*(x.split(chunk, dim=1) for x in rays), strict=True):
            seen = render_rays(
                lambda points: self.sample_field(scene, points), origins, directions, renderer, generator
            )
            left = 1 - seen.opacity  # what passes shows the background, and was counted as -1
            behind = self.background(origins / RADIUS, directions, code)
            parts.append(seen._replace(features=seen.features + left + left * behind))
        size = (renderer.resolution, renderer.resolution)
        found = (torch.cat(x, dim=1).transpose(1, 2).unflatten(2, size) for x in zip(*parts, strict=True))
        features, depth, opacity, xyz = found
        image_raw = self.to_rgb_raw(features, ws)
        return Rendering(self._upsampled(features, ws), image_raw, depth, opacity, xyz)

    def to_rgb_raw(self, features: Tensor, ws: Tensor) -> Tensor:
        """See the contract; colours come first."""
        return features[:, :3]

    def update_w_avg(self, w_mean: Tensor) -> None:
        """See the contract."""
        self.mapping_network.update_w_avg(w_mean)

    def forward(
        self, z_a: Tensor, z_m: Tensor, t: Tensor, c: Tensor, generator: torch.Generator | None = None
    ) -> Rendering:
        """Generates frames of z_a [N, z_dim], z_m [N, motion_dim], t [N], c [N, 25]."""
        codes = Codes(z_a, z_m)
        ws = self.condition(codes, c, t)
        return self.render(self.scene(codes, ws, t), ws, c, generator=generator)

    def compilable(self) -> tuple[nn.Module, ...]:
        """See the contract."""
        return self.mapping_network, self.foreground, *self.blocks

    def example_inputs(self, n: int) -> tuple[Tensor, ...]:
        """See the contract."""
        widths = (self.z_dim,), (self.motion_dim,), (), (LABEL_DIM,)
        return tuple(torch.empty(n, *width) for width in widths)

    def _upsampled(self, features: Tensor, ws: Tensor) -> Tensor:
        """Makes the image [N, 3, R, R] of rendered colours and features [N, 3 + F, h, w]."""
        size = (self.config.renderer.resolution,) * 2
        if features.shape[2:] != size:  # asked for other rays than those of training
            features = nn.functional.interpolate(features, size, mode='bilinear', antialias=True)
        rgb, x = features.split([3, self.config.features], dim=1)
        first = self.foreground.num_ws
        for i, block in enumerate(self.blocks):
            x, rgb = block(x, rgb, ws[:, first + 2 * i : first + 2 * i + 3])
        return rgb.float()
