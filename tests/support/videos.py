"""Small videos."""

import imageio_ffmpeg
import numpy as np


def ramps(n, size=64, start=0):
    """Smooth images that differ from frame to frame, uint8 [n, size, size, 3]."""
    y, x = np.mgrid[:size, :size] / size
    frames = [np.stack([x, y, np.full_like(x, (start + i) / 40)], axis=2) for i in range(n)]
    return (np.array(frames) * 255).astype(np.uint8)


def write_video(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=10, quality=9, macro_block_size=2)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
