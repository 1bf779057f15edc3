"""The generator contract: all that samplers, losses and metrics know of a generator.

Rows are frames: N clips of T frames are N * T rows, clip by clip. Which camera the mapping sees, and whether
it sees the time, is decided by the networks behind this contract and nowhere else (PV3D table 2c).
"""

import abc
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from training.volumetric_rendering.renderer import RendererConfig


class Codes(NamedTuple):
    """Latent codes, one row per clip or one per frame."""

    z_a: Tensor  # appearance [N, z_dim], N(0, 1)
    z_m: Tensor  # motion [N, motion_dim], N(0, 1)


class Rendering(NamedTuple):
    """What a generator makes of frames; images are float32 in about [-1, 1], not clamped.

    A network without 3D has no depth, opacity and xyz.
    """

    image: Tensor  # [N, 3, resolution, resolution]
    image_raw: Tensor  # volume-rendered image [N, 3, h, w]; without 3D the image itself
    depth: Tensor | None = None  # distance along the unit ray, scene units [N, 1, h, w]
    opacity: Tensor | None = None  # [N, 1, h, w] in [0, 1]
    xyz: Tensor | None = None  # expected world point [N, 3, h, w]


class VideoGenerator(nn.Module, abc.ABC):
    """Codes, cameras and times -> frames, in three steps: `condition`, `scene`, `render`."""

    # has at least `resolution` (pixels), `span` (frames of a training clip) and `focal` (of training cameras)
    config: Any
    z_dim: int  # width of the appearance code
    motion_dim: int  # width of the motion code
    renderer: RendererConfig | None = None  # how rays are sampled; None = a network without 3D
    block_ws: tuple[
        int, ...
    ] = ()  # rows of ws that the first 1, 2, ... blocks of the scene use; () = unknown
    endless: bool = False  # whether motion after the training span goes on as in it
    knot: float = 1.0  # time between the codes of a path of motion, where they could be seen as seams

    def draw_codes(self, n: int, generator: torch.Generator) -> Codes:
        """Draws the codes of n clips on the generator's device: all z_a, then all z_m."""
        like = {'generator': generator, 'device': generator.device}
        return Codes(torch.randn(n, self.z_dim, **like), torch.randn(n, self.motion_dim, **like))

    def training_cameras(self, rendered: Tensor, mapping: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the cameras rendered and those that the mapping sees in training, [N, T, 25] each."""
        return rendered, mapping

    def mapping_cameras(self, cameras: Tensor, fixed: Tensor) -> Tensor:
        """Returns the cameras that the mapping sees at inference.

        Args:
            cameras: of the frames [T, 25].
            fixed: one for the whole clip [1, 25], which MapT uses.
        """
        return fixed

    @abc.abstractmethod
    def condition(
        self, codes: Codes, cameras: Tensor, times: Tensor, psi: float = 1.0, cutoff: int | None = None
    ) -> Tensor:
        """Maps codes to intermediate codes ws [M, num_ws, w_dim].

        Args:
            codes: M rows, or one.
            cameras: that the mapping sees [M, 25], or one [1, 25].
            times: in units of the training span [M].
            psi: truncation, 1 = none, 0 = the mean.
            cutoff: number of the ws that are truncated; None = all.

        Returns:
            M rows; one row where codes and camera are one and the mapping does not see the time.
        """

    @abc.abstractmethod
    def scene(
        self,
        codes: Codes,
        ws: Tensor,
        times: Tensor,
        noise_mode: str = 'const',
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Synthesises what `render` shows: planes, or features of a network without 3D, [M, ...].

        Args:
            codes: M rows, or one.
            ws: from `condition`, M rows, or one.
            times: [M].
            noise_mode: `random`, `const` or `none`.
            generator: draws the noise when random.
        """

    @abc.abstractmethod
    def render(
        self,
        scene: Tensor,
        ws: Tensor,
        cameras: Tensor,
        renderer: RendererConfig | None = None,
        generator: torch.Generator | None = None,
        ray_chunk: int | None = None,
    ) -> Rendering:
        """Renders scenes [M, ...] with ws [M, num_ws, w_dim] from cameras [M, 25].

        Args:
            scene: from `scene`.
            ws: from `condition`.
            cameras: labels.
            renderer: other sampling than that of the network; ignored without 3D, as are the following.
            generator: draws the jitter of the ray samples; None = fixed positions.
            ray_chunk: rays rendered at a time, to bound memory at inference; None = all.
        """

    def update_w_avg(self, w_mean: Tensor) -> None:
        """Moves what truncation pulls to towards the mean w [w_dim] of a batch; nothing by default."""

    def adopt(self) -> None:
        """Prepares a network whose first part has got the weights of another kind; nothing by default."""

    def compilable(self) -> tuple[nn.Module, ...]:
        """Returns the parts that torch.compile speeds up; none by default."""
        return ()

    @abc.abstractmethod
    def example_inputs(self, n: int) -> tuple[Any, ...]:
        """Returns inputs of `forward` for n frames, of the right shapes, for tables of the network."""


class RadianceGenerator(VideoGenerator):
    """A generator with 3D: its scene has colour and density at every point."""

    renderer: RendererConfig  # how rays are sampled; config.box_warp is the side of the scene, scene units

    def scene(
        self,
        codes: Codes,
        ws: Tensor,
        times: Tensor,
        noise_mode: str = 'const',
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See VideoGenerator."""
        return self.moved_scene(ws, self.motion_at(codes, times), noise_mode, generator)

    @abc.abstractmethod
    def motion_at(self, codes: Codes, times: Tensor) -> Tensor:
        """Returns u [M, motion_dim], all that the scene sees of codes (M rows, or one) and times [M]."""

    @abc.abstractmethod
    def moved_scene(
        self, ws: Tensor, u: Tensor, noise_mode: str = 'const', generator: torch.Generator | None = None
    ) -> Tensor:
        """Synthesises scenes as `scene` does, from u [M, motion_dim] in place of codes and times."""

    @abc.abstractmethod
    def sample_field(self, scene: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluates the scene at world points [N, M, 3].

        Returns:
            colour features [N, M, F] in [0, 1] and raw density [N, M, 1]; softplus(raw - 1) is in 1 / scene
            unit.
        """

    @abc.abstractmethod
    def to_rgb_raw(self, features: Tensor, ws: Tensor) -> Tensor:
        """Turns rendered features [N, F, h, w] in [-1, 1] into the raw image [N, 3, h, w]."""
