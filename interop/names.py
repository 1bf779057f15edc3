"""The released PV3D and EG3D networks <-> ours: one explicit table of names, one to one.

EG3D's networks are named like those of the released PV3D, which has all their parts and more. Their states
also hold the constant low-pass filters (`*.resample_filter`), which are not stored here. `network` is a name
in our snapshots: G, D_image, D_video or G_ema.
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
_TABLES = {'G': _GENERATOR, 'D_image': (), 'D_video': (), 'G_ema': _GENERATOR}

# prefix in the state of the released PV3D's model -> network
PREFIXES = {
    'generator.': 'G',
    'img_discriminator.': 'D_image',
    'vid_discriminator.': 'D_video',
    'generator_ema.': 'G_ema',
}
MODEL_EXTRAS = ('pl_mean',)  # beside the networks in that state: the mean of path lengths, unused

# names of networks in EG3D's pickle -> ours, and the buffer that its loop adds to G, unused
EG3D_NETWORKS = {'G': 'G', 'D': 'D_image', 'G_ema': 'G_ema'}
EG3D_EXTRAS = ('dataset_label_std',)

_FILTER = 'resample_filter'
# of the super-resolution that doubles 64 to 128; the one for 512 has none, that for 256 may
SR_FILTER, _SR_FILTER_RESOLUTION = f'superresolution.{_FILTER}', 128
_BLOCK = re.compile(r'^((?:.*\.)?(?:b\d+|block\d))\.')
_CONVOLUTION = re.compile(r'^((?:.*\.)?(?:fromrgb|conv\d?|skip))\.weight$')


def from_released(network: str, name: str) -> str | None:
    """Returns our name of a released tensor; None for a constant filter."""
    if name.endswith(_FILTER):
        return None
    for there, here in _TABLES[network]:
        name = name.replace(there, here)
    return name


def to_released(network: str, name: str) -> str:
    """Returns the released name of one of our tensors."""
    for there, here in reversed(_TABLES[network]):
        name = name.replace(here, there)
    return name


def convert_released(network: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames a released state dict to ours, dropping the constant filters."""
    renamed = ((from_released(network, name), tensor) for name, tensor in state.items())
    return {name: tensor for name, tensor in renamed if name is not None}


def filter_names(network: str, names: Iterable[str], resolution: int) -> set[str]:
    """Returns the names of all constant filters in a released state.

    Each convolution has one (in a generator those with noise, not the skip outputs), each block that
    resamples its skip, the discriminators as a whole, and the super-resolution to 128.

    Args:
        network: of the state.
        names: the released names of everything else.
        resolution: pixels along a side of the image.
    """
    generator = _TABLES[network] is _GENERATOR
    found = {SR_FILTER} if resolution == _SR_FILTER_RESOLUTION else set()
    found = found if generator else {_FILTER}
    for name in names:
        block, convolution = _BLOCK.match(name), _CONVOLUTION.match(name)
        if block and (generator or block[1] != 'b4'):
            found.add(f'{block[1]}.{_FILTER}')
        if convolution:
            found.add(f'{convolution[1]}.{_FILTER}')
    return found
