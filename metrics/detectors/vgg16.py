"""VGG16's features and the distance of LPIPS, from files that the user names [Simonyan 2015; Zhang 2018].

Their licences and sizes keep both files out of packages here. Names of the modules are those of torchvision's
vgg16 and of LPIPS' linear layers, so that the files load strictly.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.detectors.weight_files import load_state, read_file

CHANNELS = (64, 128, 256, 512, 512)  # of the five groups of convolutions
_CONVOLUTIONS = (2, 2, 3, 3, 3)  # in each group; features are those after the last
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for colours in [0, 1]
_LARGEST = 256  # pixels of a side; larger images are reduced, as is usual when codes are sought


class VGG16(nn.Module):
    """The convolutions of VGG16."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for channels, count in zip(CHANNELS, _CONVOLUTIONS, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
                inputs = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns the features of each group, of images [N, 3, H, W] as ImageNet's, at least 16 pixels."""
        x, found = image, []
        for layer in self.features[:-1]:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            x = layer(x)
        return [*found, x]


class Linear(nn.Module):
    """LPIPS' weights of channels, not negative; dropout, which its training had, is nothing here."""

    def __init__(self) -> None:
        super().__init__()
        for i, channels in enumerate(CHANNELS):
            layer = nn.Module()
            layer.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f'lin{i}', layer)

    def weights(self) -> list[Tensor]:
        """Returns the weights [1, C, 1, 1] of the five groups."""
        return [layer.model[1].weight.detach().clamp(min=0) for layer in self.children()]


class Perceptual(nn.Module):
    """Maps of images between which squared distance, summed over channels and maps, is perceptual.

    With linear layers it is LPIPS; without, the mean over the five groups of squared distances of features of
    unit length.
    """

    def __init__(self, vgg: VGG16, linear: Linear | None, sha256: tuple[str, ...]) -> None:
        super().__init__()
        self.vgg, self.linear, self.sha256 = vgg, linear is not None, sha256  # of the files
        weights = [vgg.features[0].weight.new_full((1, c, 1, 1), 1 / len(CHANNELS)) for c in CHANNELS]
        for i, weight in enumerate(weights if linear is None else linear.weights()):
            self.register_buffer(f'root{i}', weight.sqrt())
        for name, values in (('mean', _MEAN), ('std', _STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Returns the maps [N, C, h, w] of images [N, 3, H, W] in [-1, 1]."""
        if image.shape[-1] > _LARGEST:
            image = F.interpolate(image, (_LARGEST, _LARGEST), mode='area')
        found = self.vgg((image * 0.5 + 0.5 - self.mean) / self.std)
        return tuple(getattr(self, f'root{i}') * F.normalize(f, dim=1) for i, f in enumerate(found))

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns the distance [N] of images [N, 3, H, W] in [-1, 1], on any device."""
        pairs = zip(*(self(x.to(self.mean.device)) for x in (a, b)), strict=True)
        return sum((x - y).square().sum(dim=1).mean(dim=(1, 2)) for x, y in pairs)


def load_perceptual(vgg: Path, linear: Path | None, device: torch.device | str) -> Perceptual:
    """Opens torchvision's vgg16 file, and LPIPS' file of linear layers if there is one.

    Raises:
        UserError: if a file cannot be read, or holds anything else.
    """
    network, layers = VGG16(), Linear() if linear else None
    digests = []
    for module, path in ((network, vgg), (layers, linear)):
        if module is not None:
            data, digest = read_file(path)
            load_state(module, data, path, ignored='classifier.')
            digests.append(digest)
    perceptual = Perceptual(network, layers, tuple(digests))
    return perceptual.eval().requires_grad_(False).to(device)
