"""SFace, a small face recognition network [Zhong et al. 2021; OpenCV zoo, 2021dec]."""

from pathlib import Path

import torch
from torch import Tensor, nn

from metrics.detectors.onnx_graph import OnnxGraph


class SFace(nn.Module):
    """Identity of aligned faces; the cosine of two embeddings says how alike two faces are.

    OpenCV calls two faces the same person above 0.363.

    Args:
        path: face_recognition_sface_2021dec*.onnx.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.graph = OnnxGraph(path)

    def forward(self, crops: Tensor) -> Tensor:
        """Embeds crops [N, 3, 112, 112], RGB in [0, 255], as unit vectors [N, 128]."""
        (features,) = self.graph(crops).values()  # the graph itself brings pixels to [-1, 1]
        return torch.nn.functional.normalize(features, dim=1)
