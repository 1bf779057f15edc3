"""The PV3D generator: appearance and motion codes, a camera and a time -> an image with depth.

Data flow: mapping -> tri-plane synthesis with motion layers -> volume rendering -> super-resolution. Features
change from NCHW (convolutions) to channels last (rendering) here and nowhere else. Source: PV3D section 3,
fig. 2.
"""

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor, nn

from dnnlib.config import BaseConfig, Configurable
from dnnlib.scene import FOCAL
from dnnlib.util import ConfigError
from training.camera import LABEL_DIM, unpack_label
from training.networks.contract import Codes, RadianceGenerator, Rendering
from training.networks.decoder import MARGIN, Decoder
from training.networks.layers import ToRGB, normalize_2nd_moment
from training.networks.mapping import MappingNetwork
from training.networks.motion import MotionConfig, MotionPath
from training.networks.superresolution import Superresolution
from training.networks.synthesis import SynthesisNetwork
from training.volumetric_rendering.fused import Spec, fused_field
from training.volumetric_rendering.ray_sampler import camera_rays
from training.volumetric_rendering.renderer import RayColors, RendererConfig, render_rays
from training.volumetric_rendering.triplane import sample_planes

_RAW_CLAMP = 256.0  # limit of image_raw, for half precision in what follows [released]

CameraCondition = Literal['all', 'non', 'map', 'mapt', 'none']


class Generator(RadianceGenerator, Configurable):
    """z_a, z_m, t, c -> Rendering; the three steps are those of the contract."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Everything needed to rebuild the network."""

        kind = 'pv3d'
        resolution: int = 512  # pixels along a side of the output
        span: int = 16  # frames of a training clip: frame i has t = i / (span - 1) [PV3D A.1]
        focal: float = FOCAL  # focal length of the training cameras, image widths [EG3D FFHQ]
        z_dim: int = 512  # width of the appearance code z_a [EG3D]
        w_dim: int = 512  # width of the intermediate codes [EG3D]
        mapping_layers: int = 2  # [EG3D]
        channel_base: int = 32768  # backbone channels = min(channel_base / resolution, channel_max) [EG3D]
        channel_max: int = 512  # [EG3D]
        plane_resolution: int = 256  # pixels along a side of a plane [EG3D]
        plane_channels: int = 32  # features per plane [EG3D]
        # released repeats x-z and has no y-z plane [ours]
        plane_axes: Literal['xy_xz_yz', 'released'] = 'xy_xz_yz'
        box_warp: float = 1.0  # side of the box that the planes cover, scene units [EG3D]
        feature_channels: int = 32  # rendered features that super-resolution sees [EG3D]
        sr_resolution: int = 128  # rendered features are resized to this; output / 2 or output / 4 [EG3D]
        sr_channels: tuple[int, int] = (256, 128)  # widths of the two super-resolution blocks [EG3D]
        precision: Literal['fp32', 'fp16', 'bf16'] = 'fp16'  # of super-resolution on CUDA [EG3D]
        # which camera the mapping sees: PV3D table 2c; none: table 3c
        camera_condition: CameraCondition = 'mapt'
        motion: MotionConfig = MotionConfig()
        renderer: RendererConfig = RendererConfig()

        def __post_init__(self) -> None:
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if isinstance(value, (int, float)) and not 0 < value < math.inf:
                    raise ConfigError(f'generator.{field.name}={value} must be positive')
            if min(self.sr_channels) < 1 or self.channel_base < self.plane_resolution or self.span < 2:
                raise ConfigError(
                    f'generator: sr_channels={self.sr_channels} must be positive, channel_base='
                    f'{self.channel_base} at least plane_resolution, span={self.span} at least 2'
                )
            for name in ('resolution', 'plane_resolution'):
                value = getattr(self, name)
                if value < 8 or value & (value - 1):
                    raise ConfigError(f'{name}={value} must be a power of two, at least 8')
            if self.motion.kind == 'shared_code' and self.motion.code_dim != self.z_dim:
                raise ConfigError(
                    f'motion.kind=shared_code needs motion.code_dim = z_dim, got {self.motion.code_dim}'
                )

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.z_dim, self.motion_dim, self.renderer = config.z_dim, config.motion.code_dim, config.renderer
        self.endless, self.knot = config.motion.path != 'line', config.motion.knot
        naive_inputs = config.motion.code_dim + 1 if config.motion.kind == 'naive' else 0  # z_m and t
        self.mapping_network = MappingNetwork(
            config.z_dim + naive_inputs,
            0 if config.camera_condition == 'none' else LABEL_DIM,
            config.w_dim,
            config.mapping_layers,
            track_w_avg=True,
        )
        self.synthesis = SynthesisNetwork(
            config.w_dim,
            config.plane_resolution,
            3 * config.plane_channels,
            config.channel_base,
            config.channel_max,
            config.motion,
        )
        self.block_ws = self.synthesis.block_ws
        self.motion_path = MotionPath(config.motion)
        self.decoder = Decoder(config.plane_channels, config.feature_channels)
        self.to_image_raw = ToRGB(config.feature_channels, 3, config.w_dim, clamp=_RAW_CLAMP)
        self.superresolution = Superresolution(
            config.feature_channels,
            config.w_dim,
            (config.sr_resolution, config.resolution),
            config.sr_channels,
            config.precision,
        )

    def training_cameras(self, rendered: Tensor, mapping: Tensor) -> tuple[Tensor, Tensor]:
        """See the contract."""
        condition = self.config.camera_condition
        if condition in ('all', 'map'):
            mapping = mapping[:, :1].expand_as(mapping)
        return rendered[:, :1].expand_as(rendered) if condition == 'all' else rendered, mapping

    def mapping_cameras(self, cameras: Tensor, fixed: Tensor) -> Tensor:
        """See the contract."""
        return cameras if self.config.camera_condition == 'non' else fixed

    def condition(
        self, codes: Codes, cameras: Tensor, times: Tensor, psi: float = 1.0, cutoff: int | None = None
    ) -> Tensor:
        """See the contract; the mapping sees z_m and the time only when motion.kind = naive."""
        naive = self.config.motion.kind == 'naive'
        rows = max(len(codes.z_a), len(cameras), len(times) if naive else 1)
        z_a, z_m, cameras = (x.expand(rows, -1) for x in (*codes, cameras))
        if naive:
            z_a = torch.cat([normalize_2nd_moment(z_a), normalize_2nd_moment(z_m), times[:, None]], dim=1)
        w = self.mapping_network(z_a, cameras)
        ws = w[:, None].expand(-1, self.synthesis.num_ws, -1)
        return self.mapping_network.truncate(ws, psi, cutoff)

    def motion_at(self, codes: Codes, times: Tensor) -> Tensor:
        """See the contract."""
        code = codes.z_a if self.config.motion.kind == 'shared_code' else codes.z_m
        return self.motion_path(code.expand(len(times), -1), times)

    def moved_scene(
        self, ws: Tensor, u: Tensor, noise_mode: str = 'const', generator: torch.Generator | None = None
    ) -> Tensor:
        """Synthesises the temporal tri-plane [M, 3, plane_channels, plane_resolution, plane_resolution]."""
        planes = self.synthesis(ws.expand(len(u), -1, -1), u, noise_mode, generator)
        return planes.unflatten(1, (3, self.config.plane_channels))

    def update_w_avg(self, w_mean: Tensor) -> None:
        """See the contract."""
        self.mapping_network.update_w_avg(w_mean)

    def sample_field(self, scene: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """See the contract."""
        return self.decoder(sample_planes(scene, points, self.config.plane_axes, self.config.box_warp))

    def render(
        self,
        scene: Tensor,
        ws: Tensor,
        cameras: Tensor,
        renderer: RendererConfig | None = None,
        generator: torch.Generator | None = None,
        ray_chunk: int | None = None,
    ) -> Rendering:
        """See the contract; scene: planes [M, 3, plane_channels, H, W]."""
        renderer = renderer or self.renderer
        scene = scene.to(torch.promote_types(scene.dtype, torch.float32))  # rays would be as coarse
        origins, directions = camera_rays(*unpack_label(cameras.to(scene.dtype)), renderer.resolution)
        rays = self._render_rays(scene, origins, directions, renderer, generator, ray_chunk)
        size = (renderer.resolution, renderer.resolution)
        features, depth, opacity, xyz = (x.transpose(1, 2).unflatten(2, size) for x in rays)
        image_raw = self.to_rgb_raw(features, ws)
        image = self.superresolution(features, image_raw, ws[:, -1])
        return Rendering(image, image_raw, depth, opacity, xyz)

    def to_rgb_raw(self, features: Tensor, ws: Tensor) -> Tensor:
        """See the contract."""
        return self.to_image_raw(features, ws[:, 0])

    def forward(
        self,
        z_a: Tensor,
        z_m: Tensor,
        t: Tensor,
        c: Tensor,
        c_map: Tensor | None = None,
        noise_mode: str = 'const',
        generator: torch.Generator | None = None,
    ) -> Rendering:
        """Generates frames of z_a [N, z_dim], z_m [N, motion_dim], t [N], c [N, 25].

        c_map [N, 25] is the camera that the mapping sees; None = c.
        """
        codes = Codes(z_a, z_m)
        ws = self.condition(codes, c if c_map is None else c_map, t)
        return self.render(self.scene(codes, ws, t, noise_mode, generator), ws, c, generator=generator)

    def compilable(self) -> tuple[nn.Module, ...]:
        """See the contract."""
        return self.mapping_network, self.synthesis, self.superresolution

    def example_inputs(self, n: int) -> tuple[Tensor, ...]:
        """See the contract."""
        widths = (self.z_dim,), (self.motion_dim,), (), (LABEL_DIM,)
        return tuple(torch.empty(n, *width) for width in widths)

    def _render_rays(
        self,
        planes: Tensor,
        origins: Tensor,
        directions: Tensor,
        renderer: RendererConfig,
        generator: torch.Generator | None,
        ray_chunk: int | None,
    ) -> RayColors:
        def field(points: Tensor) -> tuple[Tensor, Tensor]:
            return self.sample_field(planes, points)

        chunk = ray_chunk or origins.shape[1]
        spec = Spec(self.config.plane_axes, self.config.box_warp, MARGIN)
        samples = renderer.depth_samples + renderer.importance_samples
        fused = fused_field(planes, self.decoder.weights(), spec, samples)
        parts = [
            render_rays(field, o, d, renderer, generator, fused)
            for o, d in zip(origins.split(chunk, dim=1), directions.split(chunk, dim=1), strict=True)
        ]
        return RayColors(*(torch.cat(x, dim=1) if len(parts) > 1 else x[0] for x in zip(*parts, strict=True)))
