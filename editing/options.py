"""Options of the commands of edit_videos.py; apart from what they do, so that --help is quick."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from dnnlib.cli import ARGUMENT, Numbers, OnlyWith, Range

Preset = Literal['standard', 'fast', 'best', 'paper']
Steps = Annotated[int, Range(0, 100_000)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Options of all commands."""

    # --- What
    network: Annotated[str, 'PKL']  # network snapshot; portraits need the one that they were made with
    outdir: Annotated[Path, 'DIR']  # folder for the results; made when missing
    device: str = 'auto'  # where to compute: cpu, cuda, cuda:1, ...; auto = cuda if available


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(Common):
    """Options of what looks for a person."""

    source: Annotated[str, ARGUMENT, 'SOURCE']
    name: str | None = None  # stem of the files [default: that of the source]
    seed: Annotated[int, Range(0)] = 0  # of random draws

    # --- How
    # values of the options below that are not given; see docs/editing.md for what they reach. standard: W,
    # refined camera, tuned network. paper: W+, network and camera as they are
    preset: Preset = 'standard'
    # w: one code for all layers keeps the head whole from the sides. w+: one for each layer is nearer to what
    # is seen [default: preset]
    space: Literal['w', 'w+'] | None = None
    steps: Annotated[int, Range(1, 100_000)] | None = None  # of the code [default: preset]
    layer_steps: Steps | None = None  # of what each layer adds to it, slowly, 0 = nothing [default: preset]
    refine_camera: bool | None = None  # yes or no: corrects the cameras, too [default: preset]
    tune_steps: Steps | None = None  # of the network itself, 0 = it stays as it is [default: preset]
    tune_rate: Annotated[float, Range(above=0)] | None = None  # learning rate of tuning [default: preset]
    # weight of the side views of the person before tuning, 0 = free [default: preset]
    hold_views: Annotated[float, Range(0)] | None = None
    # weight of pixels outside the head [default: 0.3 for images and videos, 1 for clips of data sets]
    background: Annotated[float, Range(0, 1)] | None = None
    # weight of the mirrored image, 0 = none; it counts the less the better the image is met [default: preset]
    mirror: Annotated[float, Range(0)] | None = None
    # weight of the identity network, where it finds a face [default: 0.1 for images and videos, else 0]
    identity: Annotated[float, Range(0)] | None = None
    # torchvision's vgg16 file, for the perceptual distance [default: EfficientNet-lite0]
    vgg: Annotated[Path, 'FILE'] | None = None
    # LPIPS' file of linear layers for it, vgg.pth [default: all channels weigh the same]
    lpips: Annotated[Path, 'FILE', OnlyWith('vgg')] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Project(Search):
    """Finds the person of an image: writes NAME.portrait.pt, a comparison, an orbit and a report.

    SOURCE is an image of a face as it comes from a camera, or DATASET:CLIP:FRAME of a data set. Only with the
    consent of the person shown. Ctrl-C keeps the best so far; the same command continues.

    Examples:
      python edit_videos.py project me.jpg --network snapshot.pkl --outdir out
      python edit_videos.py project heads.zip:0:0 --network snapshot.pkl --outdir out --preset paper
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruct(Search):
    """Finds the person of a video and the motion of every frame; writes NAME.portrait.pt and compare.mp4.

    SOURCE is a video of one face, or DATASET:CLIP. The sound of a video is kept. Only with the consent of the
    person shown. Ctrl-C keeps the best so far; the same command continues.

    Examples:
      python edit_videos.py reconstruct me.mp4 --network snapshot.pkl --outdir out --frames 48
      python edit_videos.py reconstruct heads.zip:3 --network snapshot.pkl --outdir out --motion none
    """

    # --- Motion
    first: Annotated[int, Range(0)] = 0  # first frame of the source that is used
    frames: Annotated[int, Range(2)] | None = None  # number of frames [default: all]
    # zm+: of each frame by itself. single: of one motion code. none: the face is still
    motion: Literal['zm+', 'single', 'none'] = 'zm+'
    motion_steps: Annotated[int, Range(1, 100_000)] | None = (
        None  # of code, motion, cameras [default: preset]
    )
    smooth: Annotated[float, Range(0)] | None = None  # weight of restless motion [default: preset]
    neutral: Annotated[int, Range(0)] | None = None  # frame defined as without expression [default: first]
    batch_frames: Annotated[int, Range(1)] = 8  # frames in memory at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Animate(Common):
    """Moves the person of a portrait by sampled motion codes: a video of each.

    Every video begins with the neutral frame of the portrait.

    Example:
      python edit_videos.py animate out/me.portrait.pt --network snapshot.pkl --outdir out --motion-seeds 0-3
    """

    portrait: Annotated[str, ARGUMENT, 'PORTRAIT']
    motion_seeds: Numbers = (0,)  # motion codes, e.g. 0-3 or 0,4 [default: 0]
    strength: Annotated[float, Range(-10, 10)] = 1.0  # factor on motion, 0 = a still
    # source: the camera of the portrait. front: frontal. orbit: on an ellipse around the head
    trajectory: Literal['source', 'front', 'orbit'] = 'source'
    orbit_yaw: Annotated[float, Range(0, 89), OnlyWith('trajectory', 'orbit')] = 20.0  # half width, degrees
    frames: Annotated[int, Range(1)] = 60  # of each video
    time: Literal['pingpong', 'cycle', 'extend'] = 'pingpong'  # time beyond the training span
    depth: bool = False  # also write a video of the depth
    normals: bool = False  # also write a video of the surface normals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit(Common):
    """Shows a reconstructed video up to a frame, from which on sampled motion takes over.

    Example:
      python edit_videos.py edit out/me.portrait.pt --network snapshot.pkl --outdir out --from-frame 12
    """

    portrait: Annotated[str, ARGUMENT, 'PORTRAIT']
    from_frame: Annotated[int, Range(0)] = 0  # last frame with its own motion
    motion_seeds: Numbers = (0,)  # motion codes, e.g. 0-3 or 0,4 [default: 0]
    strength: Annotated[float, Range(-10, 10)] = 1.0  # factor on motion
    blend: Annotated[int, Range(1)] = 8  # frames in which the old expression fades
    frames: Annotated[int, Range(1)] = 60  # from that frame on
    sound: Annotated[Path, 'FILE'] | None = None  # video whose sound is kept up to that frame: the source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer(Common):
    """Gives the motion of one reconstructed video to the person of another portrait.

    Example:
      python edit_videos.py transfer out/a.portrait.pt out/b.portrait.pt --network snapshot.pkl --outdir out
    """

    source: Annotated[str, ARGUMENT, 'SOURCE']  # portrait whose motion is taken
    target: Annotated[str, ARGUMENT, 'TARGET']  # portrait that is moved
    # relative: what the source does is added to the target's neutral face. absolute: takes its place
    relative: bool = True
    strength: Annotated[float, Range(-10, 10)] = 1.0  # factor on motion
    camera: Literal['source', 'target', 'front'] = 'source'  # whose cameras
    sound: Annotated[Path, 'FILE'] | None = None  # video whose sound is added: that of the source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views(Common):
    """Shows a portrait from new cameras, with depth and meshes.

    Example:
      python edit_videos.py views out/me.portrait.pt --network snapshot.pkl --outdir out --shapes glb
    """

    portrait: Annotated[str, ARGUMENT, 'PORTRAIT']
    trajectory: Literal['orbit', 'front'] = 'orbit'  # camera on an ellipse, or frontal
    orbit_yaw: Annotated[float, Range(0, 89), OnlyWith('trajectory', 'orbit')] = 20.0  # half width, degrees
    frames: Annotated[int, Range(1)] | None = (
        None  # of the video [default: those of the portrait, at least 60]
    )
    shapes: Literal['ply', 'obj', 'glb'] | None = None  # also write a mesh of the first frame
    shape_resolution: Annotated[int, Range(8, 1024), OnlyWith('shapes')] = 128  # voxels per axis


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(Common):
    """Measures a portrait: likeness, motion, geometry, identity; prints a table, writes NAME-score.json.

    Examples:
      python edit_videos.py score out/me.portrait.pt --network snapshot.pkl --outdir out
      python edit_videos.py score out/me.portrait.pt --network snapshot.pkl --outdir out --truth heads.zip:0
    """

    portrait: Annotated[str, ARGUMENT, 'PORTRAIT']
    # other images of the same head, DATASET:CLIP or DATASET:CLIP:FRAME: views that were not looked for
    truth: Annotated[str, 'CLIP'] | None = None
    # torchvision's vgg16 file, for the perceptual distance [default: none]
    vgg: Annotated[Path, 'FILE'] | None = None
    # LPIPS' file of linear layers for it, vgg.pth [default: all channels weigh the same]
    lpips: Annotated[Path, 'FILE', OnlyWith('vgg')] | None = None
