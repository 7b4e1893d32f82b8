import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relabel.data.decode import decode
from relabel.data.image_refs import Embedded, Slices
from relabel.data.image_spool import Spool, original
from relabel.errors import ImageError


def photograph(side: int) -> Embedded:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side + 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Embedded(f"{side}", buffer.getvalue, Path())


def test_large_images_are_kept_decoded_and_small_ones_as_they_are() -> None:
    images = [photograph(8), photograph(100), photograph(16)]
    with Spool(16) as spool:
        places = [spool.add(images[0]), *spool.add_all(images[1:])]
        kept = Slices(spool.mapped(), *zip(*places, strict=True), "spool")
    assert places[1][1] < 3 * 16**2 + 20 + 100  # which tell what it was made from
    data = images[1].fetch()
    assert original(kept[1].open("rb").read()) == (len(data), hashlib.sha256(data).hexdigest())
    assert original(kept[0].open("rb").read()) is original(b"") is None
    assert kept[0].open("rb").read() == images[0].fetch()
    for row, image in enumerate(images):
        assert (decode(kept[row], 16) == decode(image, 16)).all()


def test_without_a_limit_everything_is_kept_as_it_is() -> None:
    image = photograph(100)
    with Spool(None) as spool:
        offset, size = spool.add(image)
        kept = spool.mapped()
    assert kept[offset : offset + size].tobytes() == image.fetch()


def test_what_is_no_image_takes_no_place() -> None:
    with Spool(8) as spool:
        for broken in (None, b"no image " * 100):
            with pytest.raises(ImageError):
                spool.add(Embedded("x", lambda broken=broken: broken, Path()))
            (error,) = spool.add_all([Embedded("x", lambda broken=broken: broken, Path())])
            assert isinstance(error, ImageError)
        assert spool.mapped().size == 1
