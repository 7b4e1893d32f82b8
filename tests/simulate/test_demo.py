"""The demo's folder: what it holds, and when it is not written."""

import csv
import os

import numpy as np
import pytest
from PIL import Image

from relabel import cli
from relabel.data.sources import open_source
from relabel.data.trusted import read_trusted
from relabel.errors import RelabelError
from relabel.simulate import demo


@pytest.fixture
def data(tmp_path):
    return demo.write_dataset(tmp_path / "new/demo", overwrite=False)


def truth_of(path):
    with path.open(newline="") as file:
        return {row["file_name"]: row["label"] for row in csv.DictReader(file)}


def test_the_demo_is_a_source_with_the_noise_it_names_and_trusted_rows_that_are_true(data):
    source = open_source(str(data.images))
    truth = truth_of(data.truth)
    assert len(source) == 1797 == len(truth)
    wrong = np.mean(
        [source.class_names[g] != truth[n] for n, g in zip(source.file_names, source.given, strict=True)]
    )
    assert wrong == pytest.approx(data.actual_rate) == pytest.approx(0.3, abs=0.01)
    trusted = read_trusted(data.trusted, source)
    assert len(trusted.rows) == 150
    assert not trusted.warnings
    assert all(
        truth[source.file_names[row]] == source.class_names[label]
        for row, label in zip(trusted.rows, trusted.labels, strict=True)
    )
    with Image.open(source.references[0]) as image:
        assert image.size == (16, 16)


def test_the_line_it_shows_is_a_fit_that_can_be_typed(data):
    import typer

    command = typer.main.get_command(cli.app).commands["fit"]
    with command.make_context("fit", data.fit_arguments[1:]) as context:
        assert context.params["source"] == str(data.images)
        assert not context.params["overwrite"]


def test_a_folder_in_use_is_refused_and_overwrite_repeats_the_demo(data):
    folder = data.images.parent
    with pytest.raises(RelabelError, match="is not empty"):
        demo.write_dataset(folder, overwrite=False)
    data.output.write_bytes(b"an earlier result")
    assert "--overwrite" in demo.write_dataset(folder, overwrite=True).fit_arguments
    (data.images / "0/mine.png").write_bytes(b"")
    with pytest.raises(RelabelError, match="files that are not the demo's"):
        demo.write_dataset(folder, overwrite=True)


@pytest.mark.slow
def test_the_demo_shows_a_gain(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["demo"]) == 0
    out, err = capfd.readouterr()
    assert "$ relabel fit relabel-demo/images --trusted relabel-demo/trusted.csv" in err
    before, after = (
        float(next(line for line in out.splitlines() if line.startswith(f"Label accuracy {when}")).split()[3])
        for when in ("before", "after")
    )
    assert before < 75
    assert after > 90
    assert sorted(os.listdir("relabel-demo")) == ["images", "labels.parquet", "trusted.csv", "truth.csv"]
