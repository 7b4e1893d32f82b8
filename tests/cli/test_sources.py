"""A user's data comes in many shapes, and every shape gives the same rows."""

import json
import os

import pyarrow.parquet as pq
import pytest


def columns(path="labels.parquet"):
    return pq.read_table(path).to_pydict()


@pytest.fixture
def listed(folder):
    """(file name, class) of every image, in the order of a class-folder source."""
    return [(f"{colour}/{colour}{n}.png", colour) for colour in ("blue", "red") for n in range(14)]


def test_a_class_folder_gives_its_rows_in_natural_order(fit, listed):
    assert fit("-q").code == 0
    assert list(zip(columns()["file_name"], columns()["original_label"], strict=True)) == listed


@pytest.mark.parametrize("kind", ["metadata.csv", "metadata.jsonl", "manifest"])
def test_metadata_and_manifests_keep_the_order_of_the_table(fit, folder, tools, listed, kind):
    shuffled = listed[::3] + listed[1::3] + listed[2::3]
    source = "images"
    if kind == "metadata.csv":
        tools["write_csv"]("images/metadata.csv", shuffled)
    elif kind == "metadata.jsonl":
        lines = [json.dumps({"file_name": name, "label": label}) for name, label in shuffled]
        (folder / "images/metadata.jsonl").write_text("\n".join(lines))
    else:
        source = tools["write_csv"]("images/all.csv", shuffled)
    assert fit("-q", source=source).code == 0
    assert list(zip(columns()["file_name"], columns()["original_label"], strict=True)) == shuffled


@pytest.mark.parametrize("spelling", ["images/", "./images", "{folder}/images", "link", "{folder}/link/"])
def test_the_spelling_of_the_path_changes_nothing(fit, folder, spelling):
    os.symlink("images", folder / "link")
    assert fit("-q", "-o", "plain.parquet").code == 0
    assert fit("-q", source=spelling.format(folder=folder)).code == 0
    assert columns() == columns("plain.parquet")


def test_trusted_rows_may_be_named_by_absolute_path_or_index(fit, folder, tools, listed):
    tools["write_csv"]("trusted.csv", [(str(folder / "images" / name), label) for name, label in listed[::4]])
    assert fit("-q", "-o", "absolute.parquet").code == 0
    tools["write_csv"](
        "by_index.csv", [(str(4 * n), label) for n, (_, label) in enumerate(listed[::4])], ("index", "label")
    )
    assert fit("-q", "--trusted", "by_index.csv").code == 0
    assert columns() == columns("absolute.parquet")


def test_labels_replaces_adds_and_takes_away_given_labels(fit, folder, tools, listed):
    tools["draw"](folder / "images/loose.png", "red")
    tools["write_csv"]("labels.csv", [("red/red9.png", "blue"), ("red/red8.png", ""), ("loose.png", "red")])
    assert fit("-q", "--labels", "labels.csv").code == 0
    given = dict(zip(columns()["file_name"], columns()["original_label"], strict=True))
    assert given == {**dict(listed), "red/red9.png": "blue", "red/red8.png": None, "loose.png": "red"}


def test_a_folder_s_name_with_a_space_after_it_goes_through_tables(fit, folder, tools):
    (folder / "images/red").rename(folder / "images/red ")
    trusted = [("red /red0.png", "red "), ("red /red1.png", "red"), ("blue/blue0.png", "blue")]
    tools["write_csv"]("checked.csv", trusted)
    assert fit("-q", "--trusted", "checked.csv").code == 0
    assert set(columns()["original_label"]) == {"red", "blue"}
    tools["write_csv"]("given.csv", zip(columns()["file_name"], columns()["original_label"], strict=True))
    done = fit("-q", "--trusted", "checked.csv", "--labels", "given.csv", "-o", "again.parquet")
    assert (done.code, done.err) == (0, "")
    assert columns("again.parquet") == columns()


def test_a_labels_file_beside_the_images_is_a_list_of_them(fit, listed):
    assert fit("-q", "-o", "images/labels.parquet").code == 0
    done = fit("-q", "--label-column", "corrected_label", source="images/labels.parquet")
    assert done.code == 0, done.err
    assert columns()["file_name"] == [name for name, _ in listed]
    assert columns()["original_label"] == columns("images/labels.parquet")["corrected_label"]


def test_a_row_without_a_label_is_relabelled_and_may_be_trusted(fit, tools, folder):
    tools["write_csv"]("labels.csv", [("red/red8.png", ""), ("red/red0.png", "")])
    done = fit("--labels", "labels.csv")  # red0 is a trusted row
    assert done.code == 0
    assert "28 (8 trusted, 2 without a label)" in done.err
    rows = {row["file_name"]: row for row in pq.read_table("labels.parquet").to_pylist()}
    plain, trusted = rows["red/red8.png"], rows["red/red0.png"]
    assert plain["noise_probability"] is None
    assert plain["corrected_label"] in ("red", "blue")
    assert trusted["trusted"]
    assert trusted["corrected_label"] == "red"
    assert trusted["soft_label"] == [0, 1]


def test_an_output_inside_source_is_no_image_the_next_time(fit, folder):
    assert fit("-q", "-o", "images/labels.parquet").code == 0
    done = fit("-o", "second.parquet")
    assert done.code == 0
    assert "Other files left alone  " in done.err
    assert columns("second.parquet") == columns("images/labels.parquet")


@pytest.mark.parametrize(
    ("trusted", "flags"),
    [
        ([("red/red0.png", "red"), ("blue/blue0.png", "blue")], ("--image-size", "16")),
        ([("red/red0.png", "red")], ("--image-size", "16")),
        ([(f"red/red{n}.png", "red") for n in range(5)], ()),
        ([(f"{c}/{c}{n}.png", c) for c in ("red", "blue") for n in range(14)], ()),
        ([(f"{c}/{c}{n}.png", c) for c in ("red", "blue") for n in range(4)], ("--batch-size", "5000")),
        ([("red/red0.png", "red")], ("--corrector", "none")),
    ],
    ids=["two", "one", "one class", "all", "batch larger than data", "one, no corrector"],
)
def test_few_or_lopsided_trusted_rows_still_give_whole_labels(fit, tools, trusted, flags):
    tools["write_csv"]("few.csv", trusted)
    done = fit("--trusted", "few.csv", "--json", *flags)
    assert done.code == 0, done.err
    json.loads(done.out, parse_constant=pytest.fail)
    rows = pq.read_table("labels.parquet").to_pylist()
    assert sum(row["trusted"] for row in rows) == len(trusted)
    assert all(abs(sum(row["soft_label"]) - 1) < 1e-3 for row in rows)


def test_three_images_are_enough(run, folder, tools):
    for name, colour in (("a", "red"), ("b", "red"), ("c", "blue")):
        tools["draw"](folder / f"three/{colour}/{name}.png", colour)
    tools["write_csv"]("t.csv", [("red/a.png", "red")])
    assert run("fit", "three", "--trusted", "t.csv", "--epochs", "2", "--image-size", "16").code == 0
    assert len(columns()["file_name"]) == 3


def test_a_folder_of_trusted_images_from_elsewhere(fit, folder, tools):
    for number in range(3):
        for colour in ("red", "blue"):
            tools["draw"](folder / f"elsewhere/{colour}/x{number}.png", colour, seed=100 + number)
    done = fit("--trusted", "elsewhere")
    assert done.code == 0
    assert "Trusted images outside SOURCE" in done.err
    assert len(columns()["file_name"]) == 28
    assert not any(columns()["trusted"])
