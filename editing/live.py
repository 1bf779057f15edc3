"""A portrait of an image that somebody has sent: found while one watches, kept in memory alone."""

import dataclasses
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from dnnlib.util import UserError, file_sha256
from editing.codes import SUFFIX, Portrait, network_digest, require_3d, save_portrait
from editing.inputs import Piece, open_source
from editing.objective import Weights
from editing.recipes import PRESETS, Recipe, find_person
from editing.results import Job, make_portrait
from editing.search import Session
from training.data.files import IMAGE_FORMATS
from training.networks.contract import VideoGenerator

# that of edit_videos.py project --preset fast
FAST = dataclasses.replace(PRESETS['fast'], weights=Weights(background=0.3, identity=0.1))
_MAX_SIDE = 8192  # pixels


def project_upload(
    G: VideoGenerator,
    content: bytes,
    network: str,
    watch: Callable[[str, int, int, float], object],
    should_stop: Callable[[], bool],
    recipe: Recipe = FAST,
) -> Portrait:
    """Finds the person of an image file.

    Args:
        G: network, which stays as it is.
        content: bytes of the file.
        network: path of the network.
        watch, should_stop: see editing.search.Session.
        recipe: what to do.

    Returns:
        the portrait, without scores; the best so far if it was stopped.

    Raises:
        UserError: if the bytes are no image, or show no face that can be used.
    """
    G, digest = require_3d(G, network), network_digest(G)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'upload.png')  # its name is ours: nothing that was sent names a file
        path.write_bytes(content)
        check_image(content)
        try:
            source = open_source(str(path), G.config.resolution, G.config.focal, Piece())
        except UserError as err:
            raise UserError(str(err).replace(f'{folder}/', 'the ')) from err
    found = find_person(G, source, recipe, 0, Session(should_stop=should_stop, watch=watch))[0]
    job = Job(
        name='upload',
        outdir=Path(),
        recipe=recipe,
        seed=0,
        network=Path(network).name,
        network_sha256=file_sha256(network),
        command='viewer.py --allow-upload',
    )
    return make_portrait(G, found, source, job, digest)


def portrait_bytes(portrait: Portrait) -> bytes:
    """Returns the content of the file of a portrait."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f'upload{SUFFIX}')
        save_portrait(path, portrait)
        return path.read_bytes()


def check_image(content: bytes) -> None:
    """Refuses what is not an image of a usual kind and size, before it is decoded.

    Raises:
        UserError: with the reason.
    """
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            width, height = image.size
    except (OSError, ValueError, Image.DecompressionBombError) as err:
        raise UserError(f'the file is not an image; send one of {", ".join(IMAGE_FORMATS)}') from err
    if max(width, height) > _MAX_SIDE:
        raise UserError(f'the image has {width}x{height} pixels; at most {_MAX_SIDE} a side are allowed')
