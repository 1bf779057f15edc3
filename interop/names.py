"""The released PV3D and EG3D networks <-> ours: one explicit table of names, one to one.

EG3D's networks are named like those of the released PV3D, which has all their parts and its own besides.
Their states also hold the constant low-pass filters (`*.resample_filter`), which are not stored here.
"""

import re
from collections.abc import Iterable

from torch import Tensor

# (prefix or part there, the same here), applied in this order; each is undone by the reverse.
_GENERATOR = (
    ('backbone.mapping.', 'mapping_network.'),
    ('backbone.synthesis.', 'synthesis.'),
    ('.motion_time_fuser.', '.motion.'),
    ('.motion.affine.', '.motion.head.'),
    ('.motion.motion_mlp.', '.motion.mlp.'),
    ('decoder.net.0.', 'decoder.hidden.'),
    ('decoder.net.2.', 'decoder.out.'),
    ('to_img_raw.', 'to_image_raw.'),
)
_TABLES = {'G': _GENERATOR, 'D_image': (), 'D_video': ()}

# prefix in the state of the released PV3D's model -> our name of the network
PREFIXES = {
    'generator.': 'G',
    'img_discriminator.': 'D_image',
    'vid_discriminator.': 'D_video',
    'generator_ema.': 'G_ema',
}
MODEL_EXTRAS = ('pl_mean',)  # beside the networks in that state: the mean of path lengths, unused

# names of networks in EG3D's pickle -> ours, and the buffer that its loop hangs on G, unused
EG3D_NETWORKS = {'G': 'G', 'D': 'D_image', 'G_ema': 'G_ema'}
EG3D_EXTRAS = ('dataset_label_std',)

_FILTER = 'resample_filter'
# of the super-resolution that doubles 64 to 128; the one for 512 has none, that for 256 may
SR_FILTER, _SR_FILTER_RESOLUTION = f'superresolution.{_FILTER}', 128
_BLOCK = re.compile(r'^((?:.*\.)?(?:b\d+|block\d))\.')


def from_released(network: str, name: str) -> str | None:
    """Returns our name of a released tensor of G, D_image or D_video; None for a constant filter."""
    if name.endswith(_FILTER):
        return None
    for there, here in _TABLES[network]:
        name = name.replace(there, here)
    return name


def to_released(network: str, name: str) -> str:
    """Returns the released name of one of our tensors of `network` (G, D_image, D_video)."""
    for there, here in reversed(_TABLES[network]):
        name = name.replace(here, there)
    return name


def convert_released(network: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames a released state dict of `network` to ours, dropping the constant filters."""
    renamed = ((from_released(network, name), tensor) for name, tensor in state.items())
    return {name: tensor for name, tensor in renamed if name is not None}


def filter_names(network: str, names: Iterable[str], resolution: int) -> set[str]:
    """Returns the names of all constant filters in the released state of `network`.

    Each convolution has one (in G those with noise, not the skip outputs), each block that resamples its
    skip, the discriminators as a whole, and the super-resolution to 128.

    Args:
        network: G, D_image or D_video.
        names: the released names of everything else.
        resolution: pixels along a side of the picture.
    """
    found = {SR_FILTER} if resolution == _SR_FILTER_RESOLUTION else set()
    if network != 'G':
        found = {_FILTER}
    for name in names:
        block = _BLOCK.match(name)
        if block and (network == 'G' or block[1] != 'b4'):
            found.add(f'{block[1]}.{_FILTER}')
        parent, _, last = name.rpartition('.')
        convolves = re.search(r'(?:^|\.)(?:fromrgb|conv\d?|skip)$', parent) is not None
        if convolves and last == 'weight':
            found.add(f'{parent}.{_FILTER}')
    return found
