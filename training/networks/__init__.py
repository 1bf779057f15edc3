"""Generator and discriminators. Layers take explicit arguments; networks are built from a Config."""

from training.networks.discriminators import ImageDiscriminator, VideoDiscriminator
from training.networks.pv3d import Generator

# Names of the networks in a snapshot, in the order of training.loss.Networks and then the moving average.
NETWORK_CLASSES = {
    'G': Generator,
    'D_image': ImageDiscriminator,
    'D_video': VideoDiscriminator,
    'G_ema': Generator,
}
