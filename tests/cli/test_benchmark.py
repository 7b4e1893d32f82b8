"""A user measures: corrupt, fit and evaluate as the README shows, or many runs with examples/benchmark.py."""

import csv
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
KINDS = ("across", "down", "slanted")


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
    assert "left out: 8 trusted" in shown
    shown = run("inspect", "labels.parquet").out.decode()
    assert "28 (8 trusted)" in shown
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


def test_a_truth_spelled_differently_gives_a_warning(fit, run, tools):
    assert fit("-q").code == 0
    rows = [(f"{colour}/{colour}9.png", name) for colour, name in (("red", "Red"), ("blue", "blue"))]
    tools["write_csv"]("case.csv", rows)
    done = run("evaluate", "labels.parquet", "--truth", "case.csv", "--json")
    assert (done.code, json.loads(done.out)["rows"]) == (0, 2)
    assert done.err == (
        "Warning: --truth case.csv: 1 row(s) have a label that is no class of the labels file, with which "
        "nothing can agree: 'Red'. Did you mean 'red'? Known classes: 'blue', 'red'.\n"
    )


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


def write_stripes(path, rows, wrong, seed):
    """A Parquet of three kinds of noisy stripes in Hugging Face form; `wrong`: share of labels."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(3, size=rows)
    images = []
    for row, kind in enumerate(kinds):
        y, x = np.mgrid[:10, :10] + rng.integers(4)
        bright = (y, x, x + y)[kind] % 4 < 2
        pixels = np.clip(60 + 130 * bright[..., None] + rng.normal(0, 30, (10, 10, 3)), 0, 255)
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": f"{row}.png"})
    given = np.where(rng.random(rows) < wrong, (kinds + 1) % 3, kinds)
    names = {"names": KINDS, "_type": "ClassLabel"}
    features = {"info": {"features": {"label": names, "clean_label": names}}}
    table = pa.table({"image": images, "label": given, "clean_label": kinds})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)


@pytest.fixture
def benchmark(tmp_path):
    """`python examples/benchmark.py cifar10n stripes.parquet` in a folder that has it and test.parquet."""
    write_stripes(tmp_path / "stripes.parquet", 320, 0.3, seed=0)
    write_stripes(tmp_path / "test.parquet", 40, 0, seed=1)

    def go(*flags, data="stripes.parquet"):
        command = [sys.executable, EXAMPLES / "benchmark.py", "cifar10n", data, *flags]
        return subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)

    return go


def rows_of(markdown):
    """The cells of each table row, by heading."""
    tables = {}
    for line in markdown.splitlines():
        if line.startswith("### "):
            own = tables[line.removeprefix("### ")] = []
        elif line.startswith("| "):
            own.append([cell.strip() for cell in line.strip("|").split("|")])
    return {heading: rows[2:] for heading, rows in tables.items()}


@pytest.mark.slow
def test_the_benchmark_runs_every_method_once_and_shows_the_tables(benchmark, tmp_path):
    methods = ["none", "plain", "cleanlab", "fine-tune", "trusted-only"]
    if importlib.util.find_spec("cleanlab") is None:
        methods.remove("cleanlab")
    flags = ("--rows", "300", "--trusted", "60", "--seeds", "0", "--epochs", "2", "--device", "cpu")
    flags += ("--test", "test.parquet", "--settings", "human", "symmetric-0.2", "--methods", *methods)
    done = benchmark(*flags, "--jobs", "2", "--markdown", "table.md")
    assert done.returncode == 0, done.stderr

    runs = pd.read_parquet(tmp_path / "benchmark.parquet")
    assert sorted(zip(runs.setting, runs.method, strict=True)) == sorted([
        *(("human", method) for method in methods),
        *(("symmetric-0.2", method) for method in methods[:-1]),  # trusted-only would be the same run
    ])  # fmt: skip
    assert set(runs.options) == {"--device cpu"}
    assert (runs.rows == 300).all()
    assert (runs.judged_rows == 240).all()
    assert (runs.trusted_rows_excluded == 60).all()
    assert runs[runs.setting == "human"].noise_rate.between(0.2, 0.4).all()
    for name in ("label_accuracy_after", "noise_auroc", "calibration_error", "test_accuracy"):
        assert runs[name].between(0, 1).all(), name
    assert (runs.seconds > 0).all()
    assert runs.peak_gigabytes.between(0.1, 8).all()
    tuned = runs[runs.method == "fine-tune"]
    assert set(tuned.fine_tune_epochs) <= {0, 1, 2, 5, 10, 20}
    changed = runs[runs.fix_rows > 0]
    wrong = (changed.noise_rate * changed.judged_rows).round()
    assert np.allclose(changed.fix_per_wrong_row, changed.fix_rows / wrong)

    assert (tmp_path / "table.md").read_text() == done.stdout
    tables = rows_of(done.stdout)
    assert [*tables] == ["human", "symmetric-0.2", "Label accuracy after, %", "Test accuracy, %"]
    for heading, rows in tables.items():
        assert [row[0] for row in rows] == methods[: -1 if heading == "symmetric-0.2" else None]
    last = tables["Label accuracy after, %"][-1]
    assert (last[0], last[1]) == ("trusted-only", last[2])

    before = (tmp_path / "benchmark.parquet").stat().st_mtime_ns
    again = benchmark(*flags)
    assert (again.returncode, again.stderr, again.stdout) == (0, "", done.stdout)
    other = benchmark(*flags, "--settings", "symmetric-0.2", "--methods", "trusted-only")
    assert (other.returncode, other.stderr, other.stdout) == (0, "", done.stdout)
    assert (tmp_path / "benchmark.parquet").stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_benchmark_takes_vectors(benchmark, tmp_path):
    rng = np.random.default_rng(0)
    for name, rows, wrong in (("vectors", 300, 0.3), ("vectors of test", 60, 0)):
        kinds = rng.integers(3, size=rows)
        given = np.where(rng.random(rows) < wrong, (kinds + 1) % 3, kinds)
        values = np.eye(3)[kinds] * 3 + rng.normal(size=(rows, 3))
        columns = {"label": given, "clean_label": kinds, "v": list(values)}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    flags = ("--features", "v", "--test", "vectors of test.parquet", "--trusted", "60", "--seeds", "0")
    flags += ("--rows", "280", "--settings", "human", "symmetric-0.2", "--epochs", "4", "--device", "cpu")
    methods = ("none", "apply", "plain", "trusted-only")
    done = benchmark(*flags, "--methods", *methods, data="vectors.parquet")
    assert done.returncode == 0, done.stderr
    runs = pd.read_parquet(tmp_path / "benchmark.parquet")
    assert set(runs.options) == {"--features v --device cpu"}
    assert (runs.judged_rows == 220).all()
    assert (runs[runs.method != "apply"].test_accuracy > 0.5).all()
    assert runs[runs.setting == "human"].noise_rate.between(0.2, 0.4).all()


def is_group_alive(leader):
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("end", [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)])
def test_a_stopped_benchmark_leaves_no_process_and_no_file(benchmark, start, tmp_path, monkeypatch, end):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    flags = ("--methods", "none", "trusted-only", "--settings", "human", "--seeds", "0", "--jobs", "2")
    process = start(
        "cifar10n", "stripes.parquet", "--trusted", "60", "--epochs", "100000", *flags,
        program=(EXAMPLES / "benchmark.py",), text=True,
    )  # fmt: skip
    assert {process.stderr.readline() for _ in range(2)} == {
        f"human {method} seed 0, 100000 epochs ...\n" for method in ("none", "trusted-only")
    }
    kill, signum = end
    kill(process.pid, signum)
    assert process.wait(timeout=60) == 128 + signum
    assert process.stderr.read().splitlines()[-1].endswith("Finished runs are in benchmark.parquet.")
    deadline = time.monotonic() + 60
    while is_group_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_group_alive(process.pid)
    assert not [*tmp_path.glob("relabel-*")]
    assert not (tmp_path / "benchmark.parquet").exists()


def test_runs_accumulate_and_the_tables_show_those_of_one_kind(example, benchmark, tmp_path):
    script = example("benchmark")
    output = tmp_path / "benchmark.parquet"

    def add(method, seed, after, setting="human", options="", epochs=None, **figures):
        run = script.Run("cifar10n", setting, method, seed, 320, 1000, epochs, options)
        script.add_result(output, {**vars(run), "label_accuracy_after": after, **figures})

    add("mslc", 0, 0.5, "symmetric-0.2", options="--precision 0.9")
    add("mslc", 0, 0.99, "symmetric-0.2")  # under other conditions
    add("fine-tune", 0, 0.7, fix_precision=0.9, fine_tune_epochs=5.0)
    for seed, after in enumerate((0.1, 0.8, 0.9)):
        add("none", seed, after, options="--precision 0.9", fix_precision=0.5 if seed else None)
    add("none", 0, 0.7, options="--precision 0.9", fix_precision=None)  # in place of the first
    add("none", 0, 0.6, options="--precision 0.9", epochs=5)  # with a budget of its own
    assert len(pq.read_table(output)) == 7

    done = benchmark("--precision", "0.9", "--methods")  # no method: the tables alone
    assert (done.returncode, done.stderr) == (0, "")
    tables = rows_of(done.stdout)
    assert "| method | seeds | after | fix precision |\n" in done.stdout, "no column that no run fills"
    assert tables["human"] == [
        ["none", "3", "80.0 ± 10.0", "50.0 ± 0.0 (2)"],
        ["none@5", "1", "60.0", "–"],
        ["fine-tune", "1", "70.0", "90.0"],
    ]
    assert tables["Label accuracy after, %"] == [
        ["none", "80.0 ± 10.0", "–"], ["none@5", "60.0", "–"],
        ["mslc", "–", "50.0"], ["fine-tune", "70.0", "–"]
    ]  # fmt: skip
    assert "Test accuracy, %" not in tables


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--settings", "human", "sideways-0.2"), "--settings sideways-0.2: not a setting of cifar10n"),
        (("--methods", "guessing"), "--methods guessing: not one of"),
        (("--methods", "none@few"), "--methods none@few: few is not a number of epochs"),
        (("--methods", "apply", "--pretrained", "nosuch.pt"), "--pretrained nosuch.pt: no such file"),
        (("--markdown", "nowhere/table.md"), "nowhere/table.md has no folder"),
        (("--jobs", "0"), "--jobs 0: needs at least one"),
        (("--features", "nosuch"), "--features nosuch: stripes.parquet has no such column"),
    ],
)
def test_the_benchmark_refuses_a_mistake_before_any_run(benchmark, tmp_path, flags, message):
    done = benchmark(*flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "benchmark.parquet").exists()


def test_a_baseline_puts_the_corrected_label_on_top(example):
    probability = np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7]])
    corrected = np.array([2, 1, 2])
    soft = example("baselines").soft_labels(probability, corrected)
    assert soft.dtype == np.float32
    assert soft.argmax(axis=1).tolist() == corrected.tolist()
    assert np.allclose(soft, [[0.2, 0.3, 0.5], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7]], atol=1e-5)
    assert np.allclose(soft.sum(axis=1), 1, atol=1e-6)
