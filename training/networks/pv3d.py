"""The PV3D generator: appearance and motion codes, a camera and a time -> a picture with depth.

Data flow: mapping -> tri-plane synthesis with motion layers -> volume rendering -> super-resolution. Features
change from NCHW (convolutions) to channels last (rendering) here and nowhere else. Source: PV3D section 3,
fig. 2.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dnnlib.config import BaseConfig, Configurable
from dnnlib.util import ConfigError
from training.camera import LABEL_DIM, unpack_label
from training.networks.decoder import MARGIN, Decoder
from training.networks.layers import ToRGB, normalize_2nd_moment
from training.networks.mapping import MappingNetwork
from training.networks.motion import MotionConfig
from training.networks.superresolution import Superresolution
from training.networks.synthesis import SynthesisNetwork
from training.volumetric_rendering.fused import FusedField, Spec, fused_field
from training.volumetric_rendering.ray_sampler import camera_rays
from training.volumetric_rendering.renderer import RayColors, RendererConfig, render_rays
from training.volumetric_rendering.triplane import sample_planes

_RAW_CLAMP = 256.0  # limit of image_raw, for half precision in what follows [released]

CameraCondition = Literal['all', 'non', 'map', 'mapt', 'none']


class Rendering(NamedTuple):
    """What the generator makes of one frame; pictures are float32 in about [-1, 1], not clamped."""

    image: Tensor  # [N, 3, resolution, resolution]
    image_raw: Tensor  # volume-rendered picture [N, 3, h, w]
    depth: Tensor  # distance along the unit ray, scene units [N, 1, h, w]
    opacity: Tensor  # [N, 1, h, w] in [0, 1]
    xyz: Tensor  # expected world point [N, 3, h, w]


class Generator(nn.Module, Configurable):
    """z_a, z_m, t, c -> Rendering. `mapping`, `planes` and `render` are its three stages."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Everything needed to rebuild the network."""

        resolution: int = 512  # pixels along a side of the output
        span: int = 16  # frames of a training clip: frame i has t = i / (span - 1) [PV3D A.1]
        z_dim: int = 512  # width of the appearance code z_a [EG3D]
        w_dim: int = 512  # width of the intermediate codes [EG3D]
        mapping_layers: int = 2  # [EG3D]
        channel_base: int = 32768  # backbone channels = min(channel_base / resolution, channel_max) [EG3D]
        channel_max: int = 512  # [EG3D]
        plane_resolution: int = 256  # pixels along a side of a plane [EG3D]
        plane_channels: int = 32  # features per plane [EG3D]
        plane_axes: Literal['xy_xz_yz', 'released'] = (
            'xy_xz_yz'  # released repeats x-z and has no y-z plane [ours]
        )
        box_warp: float = 1.0  # side of the box that the planes cover, scene units [EG3D]
        feature_channels: int = 32  # rendered features that super-resolution sees [EG3D]
        sr_resolution: int = 128  # rendered features are resized to this; output / 2 or output / 4 [EG3D]
        sr_channels: tuple[int, int] = (256, 128)  # widths of the two super-resolution blocks [EG3D]
        precision: Literal['fp32', 'fp16', 'bf16'] = 'fp16'  # of super-resolution on CUDA [EG3D]
        camera_condition: CameraCondition = (
            'mapt'  # which camera the mapping sees: PV3D table 2c; none: table 3c
        )
        motion: MotionConfig = dataclasses.field(default_factory=MotionConfig)
        renderer: RendererConfig = dataclasses.field(default_factory=RendererConfig)

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
        self.decoder = Decoder(config.plane_channels, config.feature_channels)
        self.to_image_raw = ToRGB(config.feature_channels, 3, config.w_dim, clamp=_RAW_CLAMP)
        self.superresolution = Superresolution(
            config.feature_channels,
            config.w_dim,
            (config.sr_resolution, config.resolution),
            config.sr_channels,
            config.precision,
        )

    @property
    def z_dim(self) -> int:
        """Width of the appearance code."""
        return self.config.z_dim

    @property
    def motion_dim(self) -> int:
        """Width of the motion code."""
        return self.config.motion.code_dim

    def mapping(
        self,
        z_a: Tensor,
        z_m: Tensor,
        t: Tensor,
        c: Tensor,
        psi: float = 1.0,
        cutoff: int | None = None,
    ) -> Tensor:
        """Returns intermediate codes ws [N, num_ws, w_dim].

        Args:
            z_a: appearance code [N, z_dim].
            z_m: motion code [N, motion_dim]; the mapping sees it only when motion.kind = naive, as it does t.
            t: time in units of the training span [N].
            c: camera label of the condition [N, 25]; at inference one camera for the whole video (MapT).
            psi: truncation, 1 = none, 0 = the mean face.
            cutoff: how many of the ws are truncated; None = all.
        """
        if self.config.motion.kind == 'naive':
            z_a = torch.cat([normalize_2nd_moment(z_a), normalize_2nd_moment(z_m), t[:, None]], dim=1)
        w = self.mapping_network(z_a, c)
        ws = w[:, None].expand(-1, self.synthesis.num_ws, -1)
        return self.mapping_network.truncate(ws, psi, cutoff)

    def planes(
        self,
        ws: Tensor,
        z_m: Tensor,
        t: Tensor,
        noise_mode: str = 'const',
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Synthesises the temporal tri-plane [N, 3, plane_channels, plane_resolution, plane_resolution].

        Args:
            ws: intermediate codes [N, num_ws, w_dim].
            z_m: motion code [N, motion_dim] (pass z_a when motion.kind = shared_code: see `motion_code`).
            t: time in units of the training span [N].
            noise_mode: `random`, `const` or `none`.
            generator: draws the noise when random.
        """
        planes = self.synthesis(ws, z_m, t, noise_mode, generator)
        return planes.unflatten(1, (3, self.config.plane_channels))

    def motion_code(self, z_a: Tensor, z_m: Tensor) -> Tensor:
        """Returns the code that drives the motion layers: z_m, or z_a when motion.kind = shared_code."""
        return z_a if self.config.motion.kind == 'shared_code' else z_m

    def sample_field(self, planes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluates the scene at world points [N, M, 3].

        Returns:
            colour features [N, M, F] in [0, 1] and raw density [N, M, 1]; softplus(raw - 1) is in 1 / scene
            unit.
        """
        return self.decoder(sample_planes(planes, points, self.config.plane_axes, self.config.box_warp))

    def render(
        self,
        planes: Tensor,
        ws: Tensor,
        c: Tensor,
        renderer: RendererConfig | None = None,
        generator: torch.Generator | None = None,
        ray_chunk: int | None = None,
    ) -> Rendering:
        """Renders planes from cameras.

        Args:
            planes: [N, 3, plane_channels, H, W].
            ws: intermediate codes [N, num_ws, w_dim].
            c: camera labels [N, 25].
            renderer: other sampling than that of the config.
            generator: draws the jitter of the ray samples; None = fixed positions.
            ray_chunk: rays rendered at a time, to bound memory at inference; None = all.
        """
        renderer = renderer or self.config.renderer
        origins, directions = camera_rays(*unpack_label(c.to(planes.dtype)), renderer.resolution)
        rays = self._render_rays(planes, origins, directions, renderer, generator, ray_chunk)
        size = (renderer.resolution, renderer.resolution)
        features, depth, opacity, xyz = (x.transpose(1, 2).unflatten(2, size) for x in rays)
        image_raw = self.to_rgb_raw(features, ws)
        image = self.superresolution(features, image_raw, ws[:, -1])
        return Rendering(image, image_raw, depth, opacity, xyz)

    def to_rgb_raw(self, features: Tensor, ws: Tensor) -> Tensor:
        """Turns rendered features [N, F, h, w] in [-1, 1] into the raw picture [N, 3, h, w]."""
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
        ws = self.mapping(z_a, z_m, t, c if c_map is None else c_map)
        planes = self.planes(ws, self.motion_code(z_a, z_m), t, noise_mode, generator)
        return self.render(planes, ws, c, generator=generator)

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
        fused = self._fused_field(planes, renderer)
        parts = [
            render_rays(field, o, d, renderer, generator, fused)
            for o, d in zip(origins.split(chunk, dim=1), directions.split(chunk, dim=1), strict=True)
        ]
        return RayColors(*(torch.cat(x, dim=1) if len(parts) > 1 else x[0] for x in zip(*parts, strict=True)))

    def _fused_field(self, planes: Tensor, renderer: RendererConfig) -> FusedField | None:
        spec = Spec(self.config.plane_axes, self.config.box_warp, MARGIN)
        samples = renderer.depth_samples + renderer.importance_samples
        return fused_field(planes, self.decoder.weights(), spec, samples)
