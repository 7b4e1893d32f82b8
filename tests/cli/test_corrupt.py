"""A user makes a benchmark: every noise model, to CSV and Parquet, with the actual rate reported and kept."""

import csv
import json
import re
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from relabel.simulate.noise import FROM_IMAGES, NOISE_MODELS

EXTRA = {
    "asymmetric": ("--map", "map.csv"),
    "superclass": ("--map", "super.json"),
    "feature-dependent": ("--epochs", "2", "--device", "cpu"),
}
METADATA = {
    *("kind", "noise", "rate", "actual_rate", "seed", "class_names", "noise_matrix", "versions", "command")
}


@pytest.fixture
def corrupt(run, folder, tools):
    """`relabel corrupt images --noise NOISE --rate 0.5` with whatever that noise needs."""
    tools["write_csv"]("map.csv", [("red", "blue")], header=("from", "to"))
    (folder / "super.json").write_text('{"colour": ["red", "blue"]}')

    def go(noise, *flags, source="images"):
        return run("corrupt", source, "--noise", noise, "--rate", "0.5", *EXTRA.get(noise, ()), *flags)

    return go


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("noise", NOISE_MODELS)
def test_every_noise_is_reported_kept_and_shown(corrupt, run, noise):
    done = corrupt(noise, "-o", "noisy.parquet")
    assert (done.code, done.out) == (0, b"")
    assert corrupt(noise, "-o", "noisy.csv").code == 0
    rows = pq.read_table("noisy.parquet").to_pylist()
    assert rows == read_csv("noisy.csv")  # the same seed, the same noise
    assert [row["file_name"] for row in rows[:15:14]] == ["blue/blue0.png", "red/red0.png"]
    assert all(row["file_name"].startswith(row["clean_label"]) for row in rows)

    wrong = sum(row["label"] != row["clean_label"] for row in rows)
    assert 0 < wrong < 28
    assert f"{wrong} of 28 labels are now wrong: actual rate {wrong / 28:.4f} ({noise}, seed 0)." in done.err
    stored = json.loads(pq.read_schema("noisy.parquet").metadata[b"relabel"])
    assert set(stored) - {"map"} == METADATA
    assert (stored["noise"], stored["rate"], stored["actual_rate"]) == (noise, 0.5, wrong / 28)
    assert ("torch" in stored["versions"]) == (noise == "feature-dependent")
    assert stored["command"].startswith(f"relabel corrupt images --noise {noise}")

    shown = {name: json.loads(run("inspect", name, "--json").out) for name in ("noisy.csv", "noisy.parquet")}
    assert shown["noisy.parquet"] == {**stored, **shown["noisy.csv"]}
    assert shown["noisy.csv"]["actual_rate"] == wrong / 28
    matrix = np.array(stored["noise_matrix"])
    assert matrix.sum(axis=1).tolist() == [1, 1]
    assert 14 * (matrix[0, 1] + matrix[1, 0]) == pytest.approx(wrong, abs=1e-3)
    for name in shown:
        text = run("inspect", name).out.decode()
        assert f"{wrong} of 28, actual rate {wrong / 28:.4f}" in text
        assert f"blue {matrix[0, 0] * 100:.1f} % right" in text
        assert ("Command" in text) == (name == "noisy.parquet")


@pytest.mark.parametrize("noise", sorted(set(NOISE_MODELS) - FROM_IMAGES))
def test_noise_that_needs_labels_only_loads_no_torch(start, corrupt, noise):
    arguments = ("corrupt", "images", "--noise", noise, "--rate", "0.5", *EXTRA.get(noise, ()), "-o", "-")
    process = start(*arguments, program=("-X", "importtime", "-m", "relabel"))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(out.splitlines()) == 29
    assert not re.search(rb"\| +torch\n", err)


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot be there")
@pytest.mark.parametrize("output", ["noisy.csv", "-"])
def test_odd_names_come_back_from_the_csv(corrupt, run, folder, tools, output):
    names = ["a\rb.png", "\r\nc.png", "d\ne.png", 'f"g,h.png']
    for name in names:
        tools["draw"](folder / "images/red\rish" / name, "red")
    done = corrupt("uniform", "-o", output)
    assert done.code == 0
    if output == "-":
        (folder / "noisy.csv").write_bytes(done.out)
    rows = [row["file_name"] for row in read_csv("noisy.csv") if row["clean_label"] == "red\rish"]
    assert sorted(rows) == sorted(f"red\rish/{name}" for name in names)
    assert corrupt("uniform", "--labels", "noisy.csv", "-o", "again.csv").code == 0
    shown = json.loads(run("inspect", "noisy.csv", "--json").out)
    assert shown["class_names"] == ["blue", "red", "red\rish"]


def test_parquet_goes_into_fit_and_evaluate_as_csv_does(corrupt, run):
    figures = {}
    for name in ("noisy.csv", "noisy.parquet"):
        assert corrupt("flip-random", "-o", name).code == 0
        tiny = ("--epochs", "2", "--image-size", "8", "--device", "cpu", "-q", "--overwrite")
        assert run("fit", "images", "--trusted", "trusted.csv", "--labels", name, *tiny).code == 0
        figures[name] = json.loads(run("evaluate", "labels.parquet", "--truth", name, "--json").out)
    assert figures["noisy.csv"] == figures["noisy.parquet"]
    assert figures["noisy.csv"]["label_accuracy_before"] < 1


@pytest.mark.parametrize("noise", ["instance-dependent", "feature-dependent"])
def test_images_that_cannot_be_read_keep_their_label_and_unlabelled_rows_stay(corrupt, folder, tools, noise):
    (folder / "images/red/red3.png").write_bytes(b"junk")
    (folder / "images/blue/blue3.png").write_bytes(b"")
    tools["write_csv"]("labels.csv", [("red/red5.png", ""), ("red/red6.png", "")])
    done = corrupt(noise, "--labels", "labels.csv", "-o", "noisy.csv")
    assert done.code == 0
    assert "Warning: 2 of 28 images cannot be used and keep their label; first 'blue/blue3.png'" in done.err
    rows = {row["file_name"]: row for row in read_csv("noisy.csv")}
    assert {rows[f"{colour}/{colour}3.png"]["label"] for colour in ("red", "blue")} == {"red", "blue"}
    assert rows["red/red3.png"]["label"] == "red"
    for name in ("red/red5.png", "red/red6.png"):
        assert (rows[name]["label"], rows[name]["clean_label"]) == ("", "")
    assert " of 26 labels are now wrong" in done.err
    if noise == "feature-dependent":
        assert "12 of 26 labels" in done.err  # half of the 24 that can be read


def test_feature_dependent_tells_of_its_network_and_follows_the_seed(corrupt):
    done = corrupt("feature-dependent", "-o", "a.csv")
    assert "Learning 28 images of 8 px: cnn8 on cpu" in done.err
    assert "Epoch 2/2: loss" in done.err
    assert "The network agrees with" in done.err
    assert corrupt("feature-dependent", "--seed", "1", "-o", "b.csv").code == 0
    assert read_csv("a.csv") != read_csv("b.csv")


def test_quiet_tells_warnings_only(corrupt, folder):
    done = corrupt("feature-dependent", "--quiet", "-o", "a.csv")
    assert (done.code, done.out, done.err) == (0, b"", "")
    (folder / "images/red/red3.png").write_bytes(b"")
    done = corrupt("feature-dependent", "-q", "-o", "b.csv")
    assert done.err.startswith("Warning: 1 of 28 images")
    assert done.err.count("\n") == 1


def test_a_class_alone_in_its_superclass_stays_clean_and_is_named(run, folder, tools):
    for kind in ("cat", "dog", "ship"):
        for number in range(10):
            tools["draw"](folder / f"kinds/{kind}/{number}.png", "red", seed=number)
    tools["write_csv"](
        "super.csv", [("cat", "pet"), ("dog", "pet"), ("ship", "craft")], header=("class", "superclass")
    )
    flags = ("--noise", "superclass", "--map", "super.csv", "--rate", "0.3", "-o", "noisy.parquet")
    done = run("corrupt", "kinds", *flags)
    assert done.code == 0
    assert "Warning: Alone in their superclass, so their labels stay clean: ship." in done.err
    assert "6 of 30 labels are now wrong: actual rate 0.2000 (superclass, seed 0)." in done.err
    stored = json.loads(pq.read_schema("noisy.parquet").metadata[b"relabel"])
    assert stored["noise_matrix"] == [[0.7, 0.3, 0], [0.3, 0.7, 0], [0, 0, 1]]
    assert stored["map"] == {"cat": "dog", "dog": "cat"}


def test_a_matrix_of_many_classes_is_shown_where_it_is_worst(run, folder, tools):
    clean = [f"class{number}" for number in range(30) for _ in range(40)]
    given = [f"class{row % 30}" if row % (row // 40 + 2) == 0 else name for row, name in enumerate(clean)]
    rows = [(f"{row}.png", *pair) for row, pair in enumerate(zip(given, clean, strict=True))]
    tools["write_csv"]("noisy.csv", rows, header=("file_name", "label", "clean_label"))
    text = run("inspect", "noisy.csv").out.decode()
    assert text.count("% right") == 20
    assert "and 10 classes with fewer wrong labels; --json has more" in text
    assert len(json.loads(run("inspect", "noisy.csv", "--json").out)["noise_matrix"]) == 30


def test_of_hundreds_of_classes_the_largest_cells_are_kept(run, folder):
    (folder / "many.txt").write_text("\n".join(["blue", "red", *(f"class{number}" for number in range(298))]))
    flags = ("--classes", "many.txt", "--noise", "flip-random", "--rate", "0.5", "-o", "noisy.parquet")
    assert run("corrupt", "images", *flags).code == 0
    shown = json.loads(run("inspect", "noisy.parquet", "--json").out)
    stored = json.loads(pq.read_schema("noisy.parquet").metadata[b"relabel"])
    assert shown == {**stored, **{key: shown[key] for key in ("rows", "labelled_rows", "wrong_rows")}}
    assert "noise_matrix" not in stored
    assert stored["noise_matrix_diagonal"] == [0.5, 0.5, *[0] * 298]
    cells = stored["noise_matrix_largest"]
    assert {cell["true"] for cell in cells} == {"blue", "red"}
    assert sum(cell["share"] for cell in cells) == pytest.approx(1, abs=1e-4)
    assert "blue 50.0 % right; " in run("inspect", "noisy.parquet").out.decode()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--noise", "pink", "-o", "n.csv"), "--noise pink is not known. Choose from symmetric, "),
        (("--noise", "uniform", "-o", "n.txt"), "--output n.txt: noisy labels are CSV or Parquet."),
        (("--noise", "uniform", "-o", "n.csv", "--epochs", "3"), "trains no network. Leave out --epochs."),
        (("--noise", "feature-dependent", "-o", "n.csv", "--epochs", "0"), "--epochs 0: must be at least 1."),
        (("--noise", "uniform", "-o", "n.csv", "--map", "map.csv"), "does not use a map of classes."),
        (("--noise", "superclass", "-o", "n.csv"), "--noise superclass needs a map of classes."),
        (("--noise", "superclass", "-o", "n.csv", "--map", "map.csv"), "the columns class and superclass"),
        (("--noise", "superclass", "-o", "n.csv", "--map", "lone.json"), "every class alone"),
        (("--noise", "superclass", "-o", "n.csv", "--map", "nosuch.json"), "nosuch.json could not be read"),
        (("--noise", "superclass", "-o", "map.csv", "--map", "map.csv", "--overwrite"), "is also --map"),
        (("--noise", "instance-dependent", "-o", "n.csv", "--rate", "nan"), "--rate nan"),
        (("--noise", "feature-dependent", "-o", "n.csv", "--device", "cpu", "--rate", "2"), "--rate 2"),
        (("--noise", "feature-dependent", "-o", "n.csv", "--device", "abacus"), "'abacus'"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(run, corrupt, folder, files, flags, sentence):
    (folder / "lone.json").write_text('{"warm": ["red"], "cold": ["blue"]}')
    before = files()
    done = run("corrupt", "images", "--rate", "0.5", *flags)
    assert done.code == 2
    assert done.err.startswith("Error: ")
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert not done.out
    assert files() == before


@pytest.mark.parametrize("noise", ["instance-dependent", "feature-dependent"])
def test_images_that_are_all_broken_are_refused(corrupt, folder, noise):
    for path in folder.glob("images/*/*.png"):
        path.write_bytes(path.read_bytes()[:60])  # the header is sound
    done = corrupt(noise, "-o", "noisy.csv")
    assert done.code == 2
    assert "None of the labelled images of images can be read (" in done.err
    assert not (folder / "noisy.csv").exists()


def test_a_network_needs_two_classes_that_can_be_read(corrupt, folder):
    for path in folder.glob("images/red/*.png"):
        path.write_bytes(b"")
    done = corrupt("feature-dependent", "-o", "noisy.csv")
    assert done.code == 2
    assert "images: fewer than two classes have images that can be used." in done.err


def test_other_tables_are_no_noisy_labels(run, folder, fit):
    assert "trusted.csv is not a Parquet file" in run("inspect", "trusted.csv").err
    assert fit("-q").code == 0
    assert run("inspect", "labels.parquet").out.startswith(b"Labels file")
