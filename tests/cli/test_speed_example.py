"""A user times the training and the way of images to it with examples/speed.py."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

from relabel import backbones


@pytest.fixture
def plain_images(tmp_path):
    """Images of one colour each, which no crop, shift or mirror changes."""
    for row, grey in enumerate(range(0, 250, 25)):
        path = tmp_path / f"images/class{row % 2}/{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + row, 16), (grey, 255 - grey, 50)).save(path)
    return tmp_path / "images"


def test_both_input_paths_do_the_same_work(example, plain_images):
    found = []
    for opened in example("speed").ways(plain_images, 8, 4).values():
        epoch = opened()
        for _ in range(2):
            images = np.concatenate([batch.numpy() for batch in epoch()])
            assert images.shape == (10, 3, 8, 8)
            found.append(images[np.argsort(images[:, 0, 0, 0])])
    for images in found[1:]:
        np.testing.assert_allclose(images, found[0], atol=1e-5)


def test_the_input_paths_are_compared_in_a_table(example, plain_images):
    shown = example("speed").input_rates(plain_images, 8, 4, turns=2)
    assert shown.startswith("10 images at 8 px, batches of 4, two cores;")
    header, _, *rows = [line.strip("|").split("|") for line in shown.splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in rows] == [
        "relabel", "relabel --no-cache", "DataLoader, 2 workers", "DataLoader, no worker",
    ]  # fmt: skip
    assert all(len(row) == len(header) for row in rows)
    assert all(float(row[place].replace(",", "")) > 0 for row in rows for place in (1, 3))
    assert [cell.strip() for cell in rows[2][2::2]] == ["1.00 (1.00 to 1.00)"] * 2


@pytest.mark.slow  # thirteen epochs of each, half a minute
def test_epochs_of_the_correctors_are_compared_in_a_table(example, monkeypatch):
    monkeypatch.setattr(backbones, "build", lambda name, classes, size: backbones._cnn8(classes, width=2))
    shown = example("speed").training(700, "cpu", rounds=2)
    assert shown.startswith("cnn8, 700 images of 32 px, batches of 256, cpu, ")
    rows = [line.strip("| ").split(" | ") for line in shown.splitlines() if line.startswith("|")][2:]
    assert [row[0] for row in rows] == [
        "bare, float32", "bare, bf16 channels-last",
        "none", "mslc", "mlc", "metalabelnet", "tmlc", "apply", "mslc, exact",
        "none, float32", "mslc, float32", "mslc, exact, float32",
    ]  # fmt: skip
    assert all(re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", cell) for row in rows for cell in row[2:])
    ratios = {row[0]: row[2:] for row in rows}
    once = "1.00 (1.00 to 1.00)"
    assert ratios["none"][0] == ratios["none, float32"][0] == ratios["bare, bf16 channels-last"][1] == once
    assert ratios["mslc, float32"][0] != once


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("input", "nosuch"), "nosuch: not a folder"),
        (("training", "--rows", "500"), "--rows 500: the first 670 are the trusted ones"),
        (("input", "."), "Error: There is no image in "),
        ((), "required: command"),
    ],
)
def test_a_mistake_ends_the_script_before_anything_is_timed(
    example, tmp_path, monkeypatch, capsys, arguments, message
):
    script = example("speed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["speed.py", *arguments])
    monkeypatch.setattr(script, "keep_to_two_cores", lambda: None)  # of the process that runs the tests
    with pytest.raises(SystemExit, match=r"^2$"):
        script._shared.run(script.main)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
