"""A user has little room on the disk of temporary files."""

import json
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest


def content(path):
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[b"relabel"])
    del metadata["command"]
    return table.to_pydict(), metadata


@pytest.fixture
def broken(folder):
    """Some of the images cannot be used."""
    (folder / "images/red/broken.png").write_bytes(b"no picture")
    (folder / "images/blue/gone.png").symlink_to("nosuch.png")
    return folder


@pytest.fixture
def full(monkeypatch):
    """A disk with a thousand bytes left."""
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))


@pytest.mark.parametrize("flags", [(), ("--corrector", "mslc"), ("--freeze",)], ids=" ".join)
def test_fit_and_predict_give_the_same_without_a_cache(fit, run, broken, flags):
    if flags == ("--freeze",):
        import torch

        from relabel import backbones

        torch.manual_seed(0)
        torch.save(backbones.build("cnn8", 2, 8).state_dict(), "weights.pt")
        flags += ("--backbone", "cnn8", "--weights", "weights.pt")
    found = []
    for name, no_cache in (("with", ()), ("without", ("--no-cache",))):
        output = f"{name}.parquet"
        done = fit(*flags, *no_cache, "-q", "--save-model", f"{name}.pt", "-o", output)
        assert done.code == 0
        assert "2 of 30 images cannot be used" in done.err
        model = ("--model", "with.pt", "-q", *no_cache)
        assert run("predict", "images", *model, "-o", f"predicted {output}").code == 0
        found.append((content(output), content(f"predicted {output}")))
    assert found[0] == found[1]
    assert sorted(filter(None, found[1][0][0]["error"])) == [
        "file not found", "not an image Pillow can read"
    ]  # fmt: skip


def test_apply_gives_the_same_without_a_cache(run, broken):
    flags = ("--epochs", "2", "--image-size", "8", "--device", "cpu", "-q")
    assert run("apply", "images", *flags, "-o", "with.parquet").code == 0
    assert run("apply", "images", *flags, "-o", "without.parquet", "--no-cache").code == 0
    assert content("with.parquet") == content("without.parquet")


def test_a_disk_too_small_is_reported_before_anything_is_decoded(fit, run, full, files, monkeypatch):
    monkeypatch.setattr("relabel.data.batches.decode", None)
    before = files()
    done = fit()
    assert done.code == 1
    assert "0.0 GB free: No space left on device. " in done.err
    assert (
        "Set TMPDIR to a folder on another disk, set a smaller --image-size, or add --no-cache." in done.err
    )
    assert files() == before


def test_without_a_cache_a_disk_too_small_is_enough(fit, run, full):
    assert fit("-q", "--no-cache", "--save-model", "model.pt").code == 0
    done = run("predict", "images", "--model", "model.pt", "-o", "predicted.parquet")
    assert done.code == 1
    assert "Set TMPDIR to a folder on another disk, or add --no-cache." in done.err
    assert run("predict", "images", "--model", "model.pt", "-o", "predicted.parquet", "--no-cache").code == 0


def test_an_image_that_goes_while_it_is_needed_ends_the_run_in_one_sentence(fit, folder, files, monkeypatch):
    from relabel.data import batches

    plain = batches.open_images

    def and_remove_one(*arguments, **options):
        opened = plain(*arguments, **options)
        (folder / "images/red/red9.png").unlink(missing_ok=True)
        return opened

    monkeypatch.setattr(batches, "open_images", and_remove_one)
    done = fit("-q", "--no-cache")
    assert done.code == 1
    assert done.err == (
        "Error: images/red/red9.png could be read when the run began and no longer can: file not found. "
        "Leave the images in their place while relabel works on them. "
        "No epoch was finished and nothing was written.\n"
    )
    assert "labels.parquet" not in files()
    assert fit("-q", "--overwrite").code == 0
