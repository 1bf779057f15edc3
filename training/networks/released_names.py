"""Names of the released PV3D networks <-> names here, one to one.

The released state also holds the constant low-pass filters (`*.resample_filter`), which are not stored here.
"""

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


def from_released(network: str, name: str) -> str | None:
    """Returns our name of a released tensor of G, D_image or D_video; None for a constant filter."""
    if name.endswith('resample_filter'):
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
