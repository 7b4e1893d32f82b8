import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from relabel.config import SourceOptions
from relabel.data.content import Content, Showing
from relabel.data.in_memory import EMBEDDING, vectors_frame
from relabel.data.sources import open_source
from relabel.modality import IMAGES, VECTORS
from relabel.progress import Silent

VALUES = np.array([[1, 7], [3, 7], [np.nan, 7], [5, 7]])
Tree = Callable[..., Path]


@pytest.fixture
def images(tmp_path: Path) -> Content:
    """Three images of 20 px, one of which is broken."""
    for name, grey in (("a/1.png", 10), ("a/2.png", 20), ("b/3.png", 30)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (20, 24), grey).save(tmp_path / name)
    (tmp_path / "b/3.png").write_bytes(b"no image")
    return open_source(str(tmp_path)).content


@pytest.fixture
def vectors() -> Content:
    """Four vectors, one of which is not finite."""
    options = SourceOptions(features=EMBEDDING)
    return open_source(vectors_frame(VALUES, list("abab")), options=options).content


def test_images(images: Content, tmp_path: Path) -> None:
    assert images.modality is IMAGES
    assert [images.size(wanted, largest) for wanted, largest in ((None, 64), (None, 16), (48, 16))] == [
        20,
        16,
        48,
    ]
    assert images.described(20, "imagenet") == {"weights": "imagenet", "image_size": 20}
    assert (images.named(), images.standardisation()) == ({}, None)
    other = tmp_path / "other.png"
    Image.new("L", (9, 9), 40).save(other)
    for cache in (True, False):
        inputs, errors = images.open(16, Showing(cache=cache), Silent(), [other])
        assert (len(inputs), list(errors)) == (4, [2])
        assert inputs.batch(torch.tensor([0, 3]), torch.device("cpu"), None).shape == (2, 3, 16, 16)


def test_images_for_a_small_network(images: Content) -> None:
    values, errors = images.values(12, Silent(), skip=[0], standardised=True)
    assert (values.shape, values.dtype, list(errors)) == ((3, 12, 12, 3), np.uint8, [2])
    assert values[:, 0, 0, 0].tolist() == [0, 20, 0]  # what is left out is black


def test_vectors(vectors: Content) -> None:
    assert vectors.modality is VECTORS
    assert vectors.size(48, 16) == 2  # which are not pixels
    assert vectors.described(2, "none") == {"features": EMBEDDING, "dimension": 2}
    assert vectors.named() == {"features": EMBEDDING}
    inputs, errors = vectors.open(2, Showing(), Silent())
    assert (len(inputs), errors) == (4, {})
    batch = inputs.batch(torch.tensor([1]), torch.device("cpu"), None)
    assert batch.tolist() == [[3, 7]]


def test_vectors_for_a_small_network_are_standardised_by_usable_rows(vectors: Content) -> None:
    plain, errors = vectors.values(12, Silent())
    assert (plain[3].tolist(), list(errors)) == ([5, 7], [2])
    scaled, _ = vectors.values(12, Silent(), standardised=True)
    usable = scaled[[0, 1, 3]]
    np.testing.assert_allclose(usable.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(usable.std(axis=0), [1, 0], atol=1e-6)


def test_what_rows_hold_is_known_without_torch() -> None:
    code = "import sys, relabel.data.content; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
