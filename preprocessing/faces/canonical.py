"""MediaPipe's canonical face: 468 points, and 68 of them in the iBUG order.

The file also holds triangles between the points, and MediaPipe's Procrustes weights (33 are not 0). Nothing
uses them: the weights tilted the poses of aligned clips by 2 degrees.
"""

from pathlib import Path

import numpy as np

# The points nearest to those of iBUG 300-W, in its order, from the image's left to its right: jaw 0-16,
# brows 17-26, bridge and base of the nose 27-35, eyes 36-47, outer lips 48-59, inner lips 60-67. Where the
# mesh has none at the same place (jaw, inner lips) those that divide the line most evenly, as there.
SIXTY_EIGHT = (
    *(127, 234, 132, 58, 172, 136, 150, 176, 152, 400, 379, 365, 397, 288, 361, 454, 356),
    *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),
    *(168, 197, 5, 4, 98, 97, 2, 326, 327),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),
    *(78, 81, 13, 311, 308, 402, 14, 178),
)


def points() -> np.ndarray:
    """Returns the canonical face, float64 [468, 3]: cm, x right as seen, y up, z towards the viewer."""
    with np.load(Path(__file__).parent / 'data' / 'canonical_face.npz', allow_pickle=False) as arrays:
        return arrays['points'].astype(np.float64)
