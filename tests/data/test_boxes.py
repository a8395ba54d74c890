"""Boxes are turned as the pixels they are of."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from selfsight.data.boxes import Box, turned
from selfsight.data.orientation import upright


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("height", "width"), [(20, 30), (25, 25)])
def test_a_box_is_turned_as_a_picture_of_it(orientation: int, height: int, width: int):
    """Pillow turns the picture, so that neither our boxes nor our pixels vouch for each other."""
    stored = np.zeros((height, width), np.uint8)
    stored[3:9, 4:21] = 255
    tags, out = Image.Exif(), io.BytesIO()
    tags[0x0112] = orientation
    Image.fromarray(stored).save(out, "PNG", exif=tags.tobytes())
    picture = np.asarray(ImageOps.exif_transpose(Image.open(out)))
    rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
    seen = Box("x", columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert turned(Box("x", 4, 3, 21, 9), width, height, orientation) == seen
    assert (upright(stored[:, :, None], orientation)[:, :, 0] == picture).all()
