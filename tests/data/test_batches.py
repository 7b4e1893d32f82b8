from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from relabel.data import batches
from relabel.data.batches import EncodedInputs, ImageInputs, VectorInputs, decode_all, open_images
from relabel.data.decode import decode
from relabel.errors import RunError
from relabel.files import scratch_array
from relabel.progress import Silent

CPU = torch.device("cpu")
SIZE = 16
REACH = 2
MEAN, STD = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coded(rows: int = 200) -> NDArray[np.uint8]:
    """Images whose channels tell each pixel's column, row and image."""
    images = np.empty((rows, SIZE, SIZE, 3), dtype=np.uint8)
    images[..., 0], images[..., 1] = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    images[..., 2] = np.arange(rows)[:, None, None]
    return images


def pixels(batch: Tensor) -> Tensor:
    """Undo the normalisation: [B, 3, S, S] in 0..255."""
    values = (batch * STD + MEAN) * 255
    torch.testing.assert_close(values, values.round(), rtol=0, atol=1e-3)
    return values.round().long()


def reflected(shift: int) -> list[int]:
    return [abs(i) if i < SIZE else 2 * (SIZE - 1) - i for i in range(shift, SIZE + shift)]


def shifts_of(lines: Tensor, mirror: Sequence[bool]) -> list[tuple[int, bool]]:
    """The (shift, mirrored) behind each line of positions; fails for a line with none."""
    known = {
        tuple(reflected(shift)[::-1] if mirrored else reflected(shift)): (shift, mirrored)
        for shift in range(-REACH, REACH + 1)
        for mirrored in mirror
    }
    return [known[tuple(line)] for line in lines.tolist()]


@pytest.mark.parametrize("augmentation", batches.AUGMENTATIONS)
def test_without_a_generator_images_are_plain(augmentation: str) -> None:
    images = coded()
    index = torch.tensor([7, 3, 3])
    batch = ImageInputs(images, augmentation).batch(index, CPU, None)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert pixels(batch).permute(0, 2, 3, 1).numpy().tolist() == images[[7, 3, 3]].tolist()


def test_none_is_plain_with_a_generator_too() -> None:
    inputs, index = ImageInputs(coded(), "none"), torch.arange(5)
    assert torch.equal(inputs.batch(index, CPU, seeded()), inputs.batch(index, CPU, None))


@pytest.mark.parametrize("augmentation", ["flip", "shift"])
def test_images_are_shifted_by_an_eighth_reflected_and_mirrored(augmentation: str) -> None:
    mirror = (False, True) if augmentation == "flip" else (False,)
    index = torch.arange(200)
    seen = pixels(ImageInputs(coded(), augmentation).batch(index, CPU, seeded()))
    assert (seen[:, 2] == index[:, None, None]).all(), "every value comes from the row's own image"
    assert (seen[:, 0] == seen[:, 0, :1, :]).all(), "columns move together"
    assert (seen[:, 1] == seen[:, 1, :, :1]).all(), "rows move together"
    columns, rows = shifts_of(seen[:, 0, 0, :], mirror), shifts_of(seen[:, 1, :, 0], (False,))
    every = range(-REACH, REACH + 1)
    assert {shift for shift, _ in rows} == set(every)
    assert set(columns) == {(shift, mirrored) for shift in every for mirrored in mirror}
    assert len(set(zip(rows, columns, strict=True))) > 25 * len(mirror) * 0.8, "rows and columns are apart"


def test_augmentation_follows_its_generator_and_no_other() -> None:
    inputs, index = ImageInputs(coded(), "flip"), torch.arange(20)
    state = torch.get_rng_state()
    first = inputs.batch(index, CPU, seeded(1))
    assert torch.equal(first, inputs.batch(index, CPU, seeded(1)))
    assert not torch.equal(first, inputs.batch(index, CPU, seeded(2)))
    generator = seeded(1)
    inputs.batch(index, CPU, generator)
    assert not torch.equal(first, inputs.batch(index, CPU, generator)), "each epoch sees another image"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [1, 7])
def test_images_too_small_to_shift_stay_whole(size: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    inputs, index = ImageInputs(images, "shift"), torch.arange(3)
    assert torch.equal(inputs.batch(index, CPU, seeded()), inputs.batch(index, CPU, None))


def test_vectors_are_shown_as_they_are() -> None:
    vectors = torch.randn(4, 3)
    inputs = VectorInputs(vectors)
    assert len(inputs) == 4
    assert torch.equal(inputs.batch(torch.tensor([2, 0]), CPU, seeded()), vectors[[2, 0]])


@pytest.fixture
def references(tmp_path: Path) -> list[Path]:
    """Forty images of different sizes and noise; row 5 is text and row 9 is not there."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / "images" / f"{row}.png" for row in range(40)]
    paths[0].parent.mkdir()
    for row, path in enumerate(paths):
        shape = (4 + row % 7, 5 + row % 5, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    paths[5].write_text("not an image")
    paths[9].unlink()
    return paths


@pytest.mark.parametrize("workers", [1, 8, None])
def test_every_image_is_decoded_into_its_own_row(references: list[Path], workers: int | None) -> None:
    done: list[int] = []
    images, errors = decode_all(references, 8, {3, 9}, done.append, workers)
    assert images.shape == (40, 8, 8, 3)
    assert set(errors) == {5}
    assert "not an image" in errors[5]
    assert str(references[5].parent) not in errors[5]
    assert sum(done) == 38, "skipped rows are not waited for"
    for row, path in enumerate(references):
        expected = 0 if row in {3, 5, 9} else decode(path, 8)
        assert (images[row] == expected).all(), row


def test_a_missing_file_is_an_error_of_its_row(references: list[Path]) -> None:
    errors = decode_all(references, 8, set(), lambda _: None)[1]
    assert set(errors) == {5, 9}
    assert "not found" in errors[9]


def test_the_pixels_are_on_disk_in_a_file_without_a_name(
    references: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    images, _ = decode_all(references, 8, set(), lambda _: None)
    assert isinstance(images, np.memmap)
    assert list(scratch.iterdir()) == []
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(scratch) in maps.read_text()
    batch = ImageInputs(images, "none").batch(torch.tensor([4]), CPU, None)
    assert (pixels(batch)[0].permute(1, 2, 0).numpy() == decode(references[4], 8)).all()


def test_a_source_without_rows_is_an_empty_array() -> None:
    images, errors = decode_all([], 8, set(), lambda _: None)
    assert images.shape == (0, 8, 8, 3)
    assert errors == {}


@pytest.mark.parametrize("augmentation", batches.AUGMENTATIONS)
@pytest.mark.parametrize("generator", [None, 0])
def test_without_a_cache_the_same_is_shown(
    references: list[Path], augmentation: str, generator: int | None
) -> None:
    cached, kept = open_images(references, SIZE, augmentation, {3, 9}, Silent(), cache=True, remedies="")
    plain, errors = open_images(references, SIZE, augmentation, {3, 9}, Silent(), cache=False, remedies="")
    assert isinstance(cached, ImageInputs)
    assert isinstance(plain, EncodedInputs)
    assert errors == kept
    assert set(errors) == {5}
    assert len(plain) == len(cached)
    for index in (torch.arange(40), torch.tensor([30, 5, 2, 30, 9, 3]), torch.tensor([], dtype=torch.int64)):
        seen = [
            inputs.batch(index, CPU, None if generator is None else seeded(generator))
            for inputs in (cached, plain)
        ]
        assert torch.equal(*seen)
        assert seen[0].stride() == seen[1].stride()


def test_the_digest_tells_other_images_under_the_same_names(references: list[Path]) -> None:
    def digest(*, cache: bool) -> str:
        inputs, _ = open_images(references, SIZE, "flip", {3}, Silent(), cache=cache, remedies="")
        return inputs.digest()

    before = digest(cache=True)
    assert digest(cache=False) == before
    first, second = references[7].read_bytes(), references[8].read_bytes()
    references[7].write_bytes(second)
    references[8].write_bytes(first)
    assert digest(cache=True) == digest(cache=False) != before
    one, other = torch.zeros(3, 2), torch.zeros(3, 2)
    other[1, 1] = 1e-30
    assert VectorInputs(one).digest() != VectorInputs(other).digest()


def test_without_a_cache_nothing_is_kept(references: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "scratch_array", None)
    open_images(references, 8, "none", set(), Silent(), cache=False, remedies="")


def test_reading_all_of_a_cache_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []  # images read since the array was last let go
    array = scratch_array((200, SIZE, SIZE, 3), np.uint8)
    inputs = ImageInputs(array, "flip")
    plain = np.take

    def counted(images: NDArray[np.uint8], rows: NDArray[np.int64], **options: Any) -> NDArray[np.uint8]:
        kept.append(len(rows))
        return plain(images, rows, **options)

    def let_go(which: NDArray[np.uint8]) -> None:
        assert which is array
        assert sum(kept) <= 32
        kept.clear()

    monkeypatch.setattr(np, "take", counted)
    monkeypatch.setattr(batches, "release", let_go)
    inputs.batch(torch.randperm(200), CPU, seeded())
    assert kept == []


def test_an_image_that_has_gone_ends_the_run_and_is_named(references: list[Path]) -> None:
    inputs, _ = open_images(references, 8, "none", set(), Silent(), cache=False, remedies="")
    references[7].unlink()
    inputs.batch(torch.arange(7), CPU, None)
    with pytest.raises(RunError) as refusal:
        inputs.batch(torch.arange(20), CPU, None)
    assert refusal.value.message == (
        f"{references[7]} could be read when the run began and no longer can: file not found."
    )


def test_what_does_not_fit_on_the_disk_is_refused_before_anything_is_decoded(
    references: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=7000))
    monkeypatch.setattr(batches, "decode", None)
    with pytest.raises(RunError, match="Set TMPDIR to a folder on another disk, or pray"):
        decode_all(references, 8, set(), lambda _: None, remedies=", or pray")
