"""Images beside the figures: people and motions of a network and of the data."""

import numpy as np
import torch

from studies.measure import Result
from studies.truth import TIMES
from viz.images import enlarge, grid, to_uint8
from viz.sheets import contact_sheet

_ROWS = 8
_TILE = 64  # pixels per side, at least
_WHITE = 0.3  # standard deviation of a pixel in [-1, 1] that is drawn white
_MAP_LABELS = 'network', 'motion', 'data', 'motion'
_GAP = 6  # pixels between groups of columns, before tiles are enlarged


def sheet(result: Result) -> np.ndarray:
    """Draws eight rows: people and motions of one person over time, of the network and of the data."""
    fake, real = result.grid, result.real
    groups = (fake[:, 0], real[:, 0], fake[0], real[0])
    titles = ('network, people', 'data, people', 'network, motions of one', 'data, motions of one')
    blocks = [_block(group[:_ROWS], title) for group, title in zip(groups, titles, strict=True)]
    gap = np.full((blocks[0].shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([part for block in blocks for part in (block, gap)][:-1], axis=1)


def motion_maps(result: Result) -> np.ndarray:
    """Draws where motion is: mean images of people, and how much their pixels move; below, the data."""
    rows, count = [], min(len(result.grid), len(result.real), _ROWS)
    for images in (result.grid[:count], result.real[:count]):
        mean = images.mean(axis=(1, 2), keepdims=True)  # [A, 1, 1, 3, R, R]
        deviation = np.sqrt(np.square(images - mean).mean(axis=(1, 2, 3)))[:, None].repeat(3, axis=1)
        rows += [mean[:, 0, 0], 2 * deviation / _WHITE - 1]
    tiles = [enlarge(to_uint8(torch.from_numpy(row)), _TILE) for row in rows]
    return contact_sheet(tiles, row_labels=_MAP_LABELS)


def heads(images: np.ndarray) -> np.ndarray:
    """Draws images [N, 3, R, R] in [-1, 1] in a grid."""
    return grid(enlarge(to_uint8(torch.from_numpy(images)), _TILE))


def _block(rows: np.ndarray, title: str) -> np.ndarray:
    """Draws rows of times [N, T, 3, R, R]; missing rows are black."""
    size = rows.shape[-1]
    missing = np.full((_ROWS - len(rows), *rows.shape[1:]), -1, rows.dtype)
    tiles = to_uint8(torch.from_numpy(np.concatenate([rows, missing])).reshape(-1, 3, size, size))
    tiles = enlarge(tiles, _TILE)
    strips = tiles.reshape(_ROWS, len(TIMES), *tiles.shape[1:])
    head = [f't {time:.2f}' for time in TIMES]
    columns = contact_sheet(list(strips), col_labels=head)
    return np.concatenate([_title(columns.shape[1], title), columns])


def _title(width: int, text: str) -> np.ndarray:
    return contact_sheet([np.full((1, 1, width, 3), 255, np.uint8)], col_labels=[text])
