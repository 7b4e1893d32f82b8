"""A user has embeddings in place of images: every command takes them, and no flag about images does."""

import csv
import json
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from relabel.interrupts import Stopped

ROWS, BROKEN = 48, 30
QUICK = ("--epochs", "3", "--device", "cpu", "--batch-size", "16", "-q")


def write_vectors(path, seed=0, dimension=6, rows=ROWS, **columns):
    """Two well-separated classes in units of very different size, with one row that has no vector."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    values = (rng.normal(0, 0.5, (rows, dimension)) + labels[:, None]) * np.logspace(-3, 3, dimension)
    lists = [None if row == BROKEN else list(value) for row, value in enumerate(values)]
    names = {"file_name": [f"text/{row}" for row in range(rows)]}
    given = {"label": [f"c{label}" for label in labels]}
    embedding = pa.array(lists, pa.list_(pa.float32(), dimension))
    pq.write_table(pa.table({**names, **given, "embedding": embedding, **columns}), path)


@pytest.fixture
def vectors(folder, tools):
    """`vectors.parquet`, and `trusted_vectors.csv` with twelve of its rows."""
    write_vectors("vectors.parquet")
    tools["write_csv"]("trusted_vectors.csv", [(f"text/{row}", f"c{row % 2}") for row in range(12)])
    return folder


@pytest.fixture
def fit_vectors(run, vectors):
    command = (
        "fit",
        "vectors.parquet",
        "--features",
        "embedding",
        "--trusted",
        "trusted_vectors.csv",
        *QUICK,
    )
    return lambda *flags: run(*command, *flags)


def columns(path="labels.parquet"):
    return pq.read_table(path).to_pydict()


def metadata(path="labels.parquet"):
    return json.loads(pq.read_schema(path).metadata[b"relabel"])


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--corrector", "none"),
        *(
            ("--corrector", name, "--meta-gradient", form)
            for name in ("mslc", "mlc", "metalabelnet")
            for form in ("last-layer", "exact")
        ),
    ],
    ids=" ".join,
)
def test_every_corrector_gives_whole_labels(fit_vectors, flags):
    done = fit_vectors(*flags)
    assert done.code == 0, done.err
    assert "1 of 48 vectors cannot be used" in done.err
    assert "first 'text/30': there is no vector." in done.err
    found = columns()
    assert found["file_name"] == [f"text/{row}" for row in range(ROWS)]
    assert found["original_label"] == [f"c{row % 2}" for row in range(ROWS)]
    assert found["error"] == [None if row != BROKEN else "there is no vector" for row in range(ROWS)]
    assert found["soft_label"][BROKEN] is found["corrected_label"][BROKEN] is None
    usable = [row for row in range(ROWS) if row != BROKEN]
    assert all(sum(found["soft_label"][row]) == pytest.approx(1, abs=1e-5) for row in usable)
    assert [row for row in range(ROWS) if found["trusted"][row]] == list(range(12))


def test_wrong_labels_are_found_in_vectors_of_any_unit(run, vectors, tools):
    write_vectors("many.parquet", rows=200)
    wrong = [row for row in range(200) if row % 5 == 0]
    given = [(str(row), f"c{(row + (row in wrong)) % 2}") for row in range(200)]
    tools["write_csv"]("given.csv", given, header=("index", "label"))
    tools["write_csv"]("some.csv", [(f"text/{row}", f"c{row % 2}") for row in range(80) if row != BROKEN])
    flags = ("--features", "embedding", "--trusted", "some.csv", "--labels", "given.csv")
    assert run("fit", "many.parquet", *flags, *QUICK, "--epochs", "20").code == 0
    corrected = columns()["corrected_label"]
    assert np.mean([corrected[row] == f"c{row % 2}" for row in wrong if row >= 80]) > 0.9


def test_the_files_name_the_column_and_the_dimension(fit_vectors, run):
    assert fit_vectors("--save-model", "model.pt", "--save-corrector", "corrector.pt").code == 0
    recorded = metadata()
    assert (recorded["backbone"], recorded["features"], recorded["dimension"]) == ("mlp", "embedding", 6)
    assert not {"image_size", "weights"} & set(recorded)
    for file in ("labels.parquet", "model.pt", "corrector.pt"):
        shown = run("inspect", file).out.decode()
        assert "Features " in shown
        assert " embedding\n" in shown
    assert "without a label" not in run("inspect", "labels.parquet").out.decode()
    assert json.loads(run("inspect", "model.pt", "--json").out)["dimension"] == 6


def test_columns_of_numbers_are_named_by_a_glob(run, vectors):
    values = np.stack(pq.read_table("vectors.parquet")["embedding"].fill_null([0.0] * 6).to_pylist())
    write_vectors("wide.parquet", **{f"f_{n}": values[:, n] for n in range(6)})
    flags = ("--trusted", "trusted_vectors.csv", *QUICK)
    assert run("fit", "wide.parquet", "--features", "f_*", *flags).code == 0
    assert metadata()["dimension"] == 6
    assert columns()["error"] == [None] * ROWS


def test_a_saved_model_labels_vectors_it_has_not_seen(fit_vectors, run, vectors):
    assert fit_vectors("--save-model", "model.pt", "--epochs", "20").code == 0
    write_vectors("new.parquet", seed=1)
    flags = ("--model", "model.pt", "--features", "embedding", "-q")
    done = run("predict", "new.parquet", *flags, "-o", "new_labels.parquet")
    assert done.code == 0, done.err
    found = columns("new_labels.parquet")
    assert found["error"][BROKEN] == "there is no vector"
    right = [found["corrected_label"][row] == f"c{row % 2}" for row in range(ROWS) if row != BROKEN]
    assert np.mean(right) > 0.9
    assert metadata("new_labels.parquet")["features"] == "embedding"


def test_a_corrector_moves_to_other_vectors(fit_vectors, run, vectors):
    assert fit_vectors("--save-corrector", "tmlc.pt").code == 0
    write_vectors("more.parquet", seed=2, dimension=4)
    flags = ("--corrector", "tmlc.pt", "--features", "embedding", *QUICK)
    assert run("apply", "more.parquet", *flags, "-o", "more_labels.parquet").code == 0
    assert metadata("more_labels.parquet")["dimension"] == 4


def test_an_interrupted_run_continues_to_the_same_result(fit_vectors, monkeypatch):
    from relabel.training import checkpoint

    assert fit_vectors("-o", "whole.parquet").code == 0
    save = checkpoint.save

    def stopping(*arguments):
        save(*arguments)
        raise Stopped(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stopping)
        assert fit_vectors().code == 130
    assert fit_vectors("--resume").code == 0
    assert columns() == columns("whole.parquet")


def test_a_checkpoint_of_other_vectors_is_not_continued(fit_vectors, monkeypatch, vectors):
    def stopping(*_):
        raise Stopped(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("relabel.verbs.fit.label_rows", stopping)
        assert fit_vectors().code == 130
    write_vectors("vectors.parquet", dimension=5)
    done = fit_vectors("--resume")
    assert done.code == 2
    assert "checkpoint" in done.err


def test_classes_and_trusted_rows_come_from_the_source_as_with_images(run, vectors):
    kinds = np.arange(ROWS) % 2
    checked = pa.array([int(kind) if row < 12 else None for row, kind in enumerate(kinds)])
    write_vectors("numbered.parquet", kind=pa.array(kinds), checked=checked)
    Path("classes.txt").write_text("warm\ncold\n")
    flags = ("--features", "embedding", "--label-column", "kind", "--trusted-column", "checked")
    done = run(
        "fit", "numbered.parquet", *flags, "--save-corrector", "tmlc.pt", "--save-model", "m.pt", *QUICK
    )
    assert done.code == 0, done.err
    found = columns()
    assert metadata()["class_names"] == ["warm", "cold"]
    assert found["original_label"] == ["cold" if kind else "warm" for kind in kinds]
    assert [row for row in range(ROWS) if found["trusted"][row]] == list(range(12))

    done = run("apply", "numbered.parquet", *flags, "--corrector", "tmlc.pt", "-o", "applied.parquet", *QUICK)
    assert done.code == 0, done.err
    assert sum(columns("applied.parquet")["trusted"]) == 12
    names = (*flags[:4], "--classes", "warm,cold")
    done = run("predict", "numbered.parquet", *names, "--model", "m.pt", "-o", "predicted.parquet", "-q")
    assert done.code == 0, done.err
    assert columns("predicted.parquet")["original_label"] == found["original_label"]
    done = run(
        "corrupt", "numbered.parquet", *names, "--noise", "symmetric", "--rate", "0.2", "-o", "-", "-q"
    )
    assert done.code == 0, done.err
    clean = [row["clean_label"] for row in csv.DictReader(done.out.decode().splitlines())]
    assert clean == found["original_label"]


@pytest.mark.parametrize("noise", ["symmetric", "feature-dependent", "instance-dependent"])
def test_a_benchmark_is_made_of_clean_vectors(run, vectors, noise):
    flags = ("--features", "embedding", "--noise", noise, "--rate", "0.5", "-q")
    done = run("corrupt", "vectors.parquet", *flags, "-o", "noisy.csv")
    assert done.code == 0, done.err
    with open("noisy.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["clean_label"] for row in rows] == [f"c{row % 2}" for row in range(ROWS)]
    wrong = [row for row in range(ROWS) if rows[row]["label"] != rows[row]["clean_label"]]
    assert 12 <= len(wrong) <= 36
    if noise != "symmetric":
        assert BROKEN not in wrong
        assert "1 of 48 vectors cannot be used and keep their label; first 'text/30'" in done.err
    again = run("corrupt", "vectors.parquet", *flags, "-o", "-")
    assert again.out.decode() == (vectors / "noisy.csv").read_text()
    assert run("corrupt", "vectors.parquet", *flags, "-o", "noisy.parquet").code == 0
    assert "Features" in run("inspect", "noisy.parquet").out.decode()


FIT = ("fit", "vectors.parquet", "--features", "embedding", "--trusted", "trusted_vectors.csv")
IMAGES = ("fit", "images", "--trusted", "trusted.csv")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            (*FIT, "--image-size", "32"),
            "--image-size 32 is for images, and --features embedding names vectors.",
        ),
        ((*FIT, "--augment", "flip"), "--augment flip is for images"),
        ((*FIT, "--weights", "imagenet"), "--weights imagenet is for images"),
        ((*FIT, "--freeze"), "--freeze is for images"),
        ((*FIT, "--backbone", "resnet18"), "--backbone resnet18 is for images"),
        ((*IMAGES, "--backbone", "mlp"), "--backbone mlp takes vectors. Name their column with --features."),
        ((*IMAGES, "--features", "embedding"), "--features embedding: images is neither a .parquet file nor"),
        ((*FIT, "--trusted", "images"), "--trusted images is a folder of images"),
        ((*FIT, "--features", "embeding"), "vectors.parquet has no column 'embeding', but"),
        ((*FIT, "--features", "file_name"), "the column 'file_name' of vectors.parquet holds string"),
        (
            ("fit", "vectors.parquet", "--trusted", "trusted_vectors.csv"),
            "holds vectors in the column 'embedding'",
        ),
        (("pretrain", "vectors.parquet", "-o", "p.pt"), "holds vectors in the column 'embedding'"),
        (
            ("pretrain", "images", "--features", "embedding", "-o", "p.pt"),
            "images is neither a .parquet file",
        ),
        (
            (*FIT, "--split", "train"),
            "--split has no meaning for vectors.parquet, which is a table of vectors.",
        ),
        ((*FIT, "--classes", "c0,c2"), "the label 'c1' is none of the classes of --classes."),
        (("fit", "nosuch.parquet", *FIT[2:]), "There is no file or folder 'nosuch.parquet'."),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(run, vectors, files, arguments, sentence):
    before = files()
    done = run(*arguments)
    assert done.code == 2
    assert done.err.startswith("Error: ")
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert not done.out
    assert files() == before


def test_vectors_and_models_that_do_not_fit_are_refused(fit_vectors, fit, run, vectors, files):
    assert fit_vectors("--save-model", "model.pt").code == 0
    assert fit("-q", "--save-model", "images.pt", "-o", "images.parquet").code == 0
    write_vectors("short.parquet", dimension=5)
    before = files()
    for source, flags, sentence in (
        (
            "short.parquet",
            ("--model", "model.pt", "--features", "embedding"),
            "have 5 dimensions and the model",
        ),
        ("images", ("--model", "model.pt"), "model.pt was trained on vectors and labels no images."),
        ("vectors.parquet", ("--model", "model.pt"), "in its fit it was --features embedding."),
        (
            "vectors.parquet",
            ("--model", "images.pt", "--features", "embedding"),
            "images.pt was trained on images and labels no vectors",
        ),
    ):
        done = run("predict", source, *flags, "-o", "new.parquet")
        assert done.code == 2
        assert sentence in done.err
        assert done.err.count("\n") == 1
    assert files() == before


def test_a_real_process_leaves_with_the_exit_code_and_answers_without_torch(start, vectors):
    process = start(*FIT, "--image-size", "32", program=("-X", "importtime", "-m", "relabel"))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, b"")
    assert err.decode().splitlines()[-1].startswith("Error: --image-size 32 is for images")
    assert b"torchvision" not in err


def test_a_corrector_learns_on_vectors_and_is_applied_to_others(run, vectors, monkeypatch):
    from relabel.pretraining import episodes

    monkeypatch.setattr(episodes, "_EPOCHS", (2, 3))
    monkeypatch.setattr(episodes, "_JUDGE_SAMPLES", 100)
    write_vectors("other.parquet", seed=1, dimension=4)
    tiny = ("--features", "embedding", "--episodes", "3", "--steps", "3", "--device", "cpu")
    done = run("pretrain", "vectors.parquet", "other.parquet", "-o", "tmlc.pt", *tiny)
    assert done.code == 0, done.err
    sentence = (
        "1 of 48 vectors of vectors.parquet cannot be used and are left out; first 'text/30': there is no"
    )
    assert f"Warning: {sentence} vector." in done.err
    assert "rows of vectors.parquet in 2 classes" in done.err
    assert ", mlp, " in done.err
    assert json.loads(run("inspect", "tmlc.pt", "--json").out)["backbones"] == ["mlp"]
    flags = ("--features", "embedding", "--corrector", "tmlc.pt", *QUICK)
    assert run("apply", "vectors.parquet", *flags).code == 0
    assert columns()["error"][BROKEN] == "there is no vector"


def test_shards_of_vectors_give_the_same_labels_as_one_file(run, fit_vectors):
    assert fit_vectors("-o", "one.parquet").code == 0
    Path("shards").mkdir()
    table = pq.read_table("vectors.parquet")
    for number in range(3):
        pq.write_table(table.slice(20 * number, 20), f"shards/train-{number}.parquet")
    for source in ("shards", "shards/*.parquet"):
        flags = ("--features", "embedding", "--trusted", "trusted_vectors.csv", *QUICK, "--overwrite")
        done = run("fit", source, *flags)
        assert done.code == 0, done.err
        assert columns() == columns("one.parquet")
