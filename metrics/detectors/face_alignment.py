"""Five points of a face, found or projected, and the crop that identity networks want.

Points are in pixels, x to the right and y down, 0 = middle of the first pixel; in order the person's right
and left eye, nose, right and left corner of the mouth.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.detectors.yunet import YuNet
from training.camera import project

THRESHOLD = 0.6  # score of YuNet that counts as a face [OpenCV]
CROP = 112  # pixels of a side of the crop
# Where the five points lie in the crop [ArcFace, InsightFace].
TEMPLATE = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
# A mean face in the world of training.camera, scene units: least squares over the points that YuNet found in
# 135 frames of 16 aligned portrait clips (15 identities of equal weight, yaw up to 50 degrees, camera labels
# by PnP from other landmarks), made symmetric. It projects 9.1 pixels (root mean square) from the found
# points in images of 512 pixels, 9.6 for identities that were left out of the fit.
FACE_POINTS = (
    (-0.0790, 0.0740, 0.1036),
    (0.0790, 0.0740, 0.1036),
    (0.0, -0.0185, 0.1923),
    (-0.0644, -0.1076, 0.1078),
    (0.0644, -0.1076, 0.1078),
)


def find_faces(images: Tensor, yunet: YuNet) -> list[Tensor | None]:
    """Returns the points [5, 2] of the best face in each of the uint8 images [N, 3, H, W]; None = no face."""
    faces = yunet(images)
    found = (faces.scores >= THRESHOLD).tolist()
    return [points if ok else None for points, ok in zip(faces.points, found, strict=True)]


def project_face_points(labels: Tensor, size: int) -> Tensor:
    """Projects a mean face into aligned portraits of `size` pixels: camera labels [N, 25] -> [N, 5, 2]."""
    points = torch.tensor(FACE_POINTS, dtype=labels.dtype, device=labels.device)
    return project(points, labels[:, None])[0] * size - 0.5


def similarity(source: Tensor, target: Tensor) -> Tensor:
    """Returns matrices [N, 2, 3] of rotation, scale and shift that best bring source to target, [N, K, 2].

    Least squares, which in the plane has a closed form (as complex numbers, target = a source + b) and equals
    what [Umeyama 1991] finds.
    """
    mean_s, mean_t = source.mean(dim=1, keepdim=True), target.mean(dim=1, keepdim=True)
    (sx, sy), (tx, ty) = (source - mean_s).unbind(-1), (target - mean_t).unbind(-1)
    norm = (sx.square() + sy.square()).sum(dim=1)
    re, im = (sx * tx + sy * ty).sum(dim=1) / norm, (sx * ty - sy * tx).sum(dim=1) / norm
    linear = torch.stack([re, -im, im, re], dim=-1).unflatten(-1, (2, 2))
    return torch.cat([linear, mean_t.mT - linear @ mean_s.mT], dim=-1)


def align_faces(images: Tensor, points: Tensor) -> Tensor:
    """Crops faces so that their points come to lie on ArcFace's template.

    Bilinear without a low-pass filter and black outside the image, as in OpenCV and the training of the
    networks. Differentiable with respect to the images.

    Args:
        images: uint8 or float, [N, 3, H, W].
        points: pixels, [N, 5, 2].

    Returns:
        float32 [N, 3, 112, 112] in the range of the images.
    """
    height, width = images.shape[2:]
    points = points.to(images.device, torch.float64)
    forward = similarity(points, points.new_tensor(TEMPLATE).expand(len(points), 5, 2))
    axis = torch.arange(CROP).to(points)
    pixels = torch.cartesian_prod(axis, axis).flip(1)  # x, y of each pixel of the crop
    source = (pixels - forward[:, None, :, 2]) @ torch.linalg.inv(forward[:, :, :2]).mT
    grid = source / points.new_tensor([width - 1, height - 1]) * 2 - 1
    grid = grid.float().unflatten(1, (CROP, CROP))
    return F.grid_sample(images.float(), grid, mode='bilinear', padding_mode='zeros', align_corners=True)
