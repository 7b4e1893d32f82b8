"""A user measures: corrupt clean data, fit on it, evaluate against the truth, as the README shows."""

import csv
import json

import pyarrow.parquet as pq
import pytest


def test_corrupt_fit_evaluate_as_typed(run, folder, tools):
    done = run(
        "corrupt", "images", "--noise", "symmetric", "--rate", "0.25", "--seed", "3", "-o", "noisy.csv"
    )
    assert done.code == 0
    assert done.out == b""
    assert "7 of 28 labels are now wrong: actual rate 0.2500 (symmetric, seed 3)." in done.err
    flags = ("--epochs", "6", "--image-size", "8", "--device", "cpu", "--batch-size", "8", "-q")
    assert run("fit", "images", "--trusted", "trusted.csv", "--labels", "noisy.csv", *flags).code == 0

    done = run("evaluate", "labels.parquet", "--truth", "noisy.csv", "--json")
    figures = json.loads(done.out, parse_constant=pytest.fail)
    assert (done.code, done.err) == (0, "")
    assert figures["rows"] == 20
    assert figures["trusted_rows_excluded"] == 8
    with open("noisy.csv", newline="") as file:
        rows = {row["file_name"]: row for row in csv.DictReader(file)}
    table = [row for row in pq.read_table("labels.parquet").to_pylist() if not row["trusted"]]
    truth = [rows[row["file_name"]]["clean_label"] for row in table]
    after = [row["corrected_label"] for row in table]
    assert figures["label_accuracy_after"] == sum(map(str.__eq__, truth, after)) / 20
    assert figures["label_accuracy_after"] >= figures["label_accuracy_before"]

    shown = run("evaluate", "labels.parquet", "--truth", "noisy.csv").out.decode()
    assert "Label accuracy before" in shown
    assert "left out: 8 verified" in shown
    shown = run("inspect", "labels.parquet").out.decode()
    assert "28 (8 verified)" in shown
    assert "2: blue, red" in shown


def test_the_truth_may_cover_a_part_but_must_cover_something(fit, run, tools):
    assert fit("-q").code == 0
    tools["write_csv"]("part.csv", [("red/red9.png", "red"), ("blue/blue9.png", "blue")])
    assert json.loads(run("evaluate", "labels.parquet", "--truth", "part.csv", "--json").out)["rows"] == 2
    for rows in ([], [("red/red0.png", "red")]):
        tools["write_csv"]("none.csv", rows)
        done = run("evaluate", "labels.parquet", "--truth", "none.csv")
        assert done.code == 2
        assert "--truth none.csv covers no row that can be compared" in done.err


def test_corrupt_to_standard_output_and_by_a_map(run, folder, tools):
    tools["write_csv"]("map.csv", [("red", "blue")], header=("from", "to"))
    done = run("corrupt", "images", "--noise", "asymmetric", "--map", "map.csv", "--rate", "0.5", "-o", "-")
    rows = list(csv.DictReader(done.out.decode().splitlines()))
    assert done.code == 0
    assert len(rows) == 28
    assert {(row["clean_label"], row["label"]) for row in rows} == {
        ("red", "red"), ("red", "blue"), ("blue", "blue")
    }  # fmt: skip


def test_corrupt_never_replaces_its_input(run, folder, tools, files):
    tools["write_csv"]("labels.csv", [("red/red0.png", "blue")])
    before = files()
    flags = ("--noise", "symmetric", "--rate", "0.2", "--overwrite")
    done = run("corrupt", "images", "--labels", "labels.csv", "-o", "labels.csv", *flags)
    assert done.code == 2
    assert "--output labels.csv is also --labels." in done.err
    assert files() == before
