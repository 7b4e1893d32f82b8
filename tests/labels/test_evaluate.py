import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from relabel.errors import RelabelError
from relabel.labels.metadata import Metadata, Run
from relabel.labels.parquet import Columns, write_labels
from relabel.labels.table import Labels
from relabel.progress import Silent

NAMES = ["a.png", "b.png", "c.png", "d.png", "e.png"]


@pytest.fixture
def labels(tmp_path):
    return write(tmp_path, NAMES)


@pytest.fixture
def numbered(tmp_path):
    return write(tmp_path, list("01234"))


def write(tmp_path, names, features=None, numbered_labels=False):
    """Given x x y y ?; corrected x y y x x; the fourth trusted, the fifth unlabelled."""
    soft = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [1, 0], [0.6, 0.4]], dtype=np.float32)
    columns = Columns(
        class_names=["x", "y"],
        file_names=names,
        given=np.array([0, 0, 1, 1, -1]),
        soft_label=soft,
        corrected=soft.argmax(axis=1),
        noise_probability=np.array([0.1, 0.8, 0.3, 1, np.nan], dtype=np.float32),
        action=np.array(["keep", "fix", "keep", "fix", "review"]),
        trusted=np.array([False, False, False, True, False]),
        errors={},
    )
    run = Run(features=features)
    metadata = Metadata(["x", "y"], numbered_labels=numbered_labels, run=run)
    write_labels(tmp_path / "labels.parquet", columns, metadata)
    return tmp_path / "labels.parquet"


@pytest.fixture
def truth(tmp_path):
    def write(*rows, header="file_name,label"):
        (tmp_path / "truth.csv").write_text("\n".join([header, *rows]) + "\n")
        return tmp_path / "truth.csv"

    return write


def test_the_figures_are_those_of_a_count_by_hand(labels, truth):
    found = Labels.read(labels).evaluate(truth("a.png,x", "b.png,y", "c.png,x", "d.png,x", "e.png,x"))
    assert (found.rows, found.trusted_rows_excluded, found.unlabelled_rows) == (3, 1, 1)
    assert found.label_accuracy_before == pytest.approx(1 / 3)
    assert found.label_accuracy_after == pytest.approx(2 / 3)
    assert (found.fix_rows, found.fix_precision) == (1, 1)
    assert (found.keep_rows, found.keep_precision) == (2, 0.5)
    assert found.unlabelled_accuracy == 1
    assert found.noise_auroc == 1  # 0.8 and 0.3 are wrong, 0.1 is right


def test_clean_label_comes_before_label_and_empty_means_unknown(labels, truth):
    table = truth("a.png,y,x", "b.png,x,", "./c.png,x,y", header="file_name,label,clean_label")
    found = Labels.read(labels).evaluate(table)
    assert (found.rows, found.rows_without_truth, found.label_accuracy_before) == (2, 2, 1)


def test_a_true_class_the_labels_do_not_have_counts_as_wrong_and_is_warned_of(labels, truth):
    warnings = []
    watcher = Silent()
    watcher.warn = warnings.append
    table = truth("a.png,z", "b.png,y", "c.png,X", "d.png,X", "e.png,")
    assert Labels.read(labels).evaluate(table, watcher=watcher).label_accuracy_after == pytest.approx(1 / 3)
    assert warnings == [
        f"--truth {table}: 3 row(s) have a label that is no class of the labels file, with which nothing can "
        "agree: 'z', 'X'. Known classes: 'x', 'y'."
    ]
    Labels.read(labels).evaluate(truth("a.png,X", "b.png,y"), watcher=watcher)
    assert warnings[1].endswith(": 'X'. Did you mean 'x'? Known classes: 'x', 'y'.")
    Labels.read(labels).evaluate(truth("a.png,x", "b.png,"), watcher=watcher)
    assert len(warnings) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a.png,x", "q.png,x"], r"row 3 \('q.png'\)"),
        (["a.png,x", "./a.png,x"], r"listed twice: row 3"),
        (["a.png,", "a.png,x"], r"listed twice: row 3"),
        (["d.png,x"], "covers no row that can be compared"),
        (["a.png,"], "covers no row that can be compared"),
    ],
)
def test_a_truth_that_does_not_fit_is_refused(labels, truth, rows, message):
    with pytest.raises(RelabelError, match=message):
        Labels.read(labels).evaluate(truth(*rows))


def test_the_column_of_the_truth_is_named(labels, truth):
    table = truth("a.png,y,x", "b.png,x,y", header="filename,label,checked")
    assert Labels.read(labels).evaluate(table, "checked").label_accuracy_before == 0.5
    with pytest.raises(RelabelError, match="needs the columns file_name and nosuch, and has filename, label"):
        Labels.read(labels).evaluate(table, "nosuch")


def test_labels_of_other_classes_are_no_truth(labels, truth):
    with pytest.raises(RelabelError, match=r"none of its labels \('0', '1'\) is a class of the labels file"):
        Labels.read(labels).evaluate(truth("a.png,0", "b.png,1", "c.png,0"))


def images(path, names, **columns):
    """A Parquet table of images that cannot be decoded, its labels as Hugging Face writes them."""
    features = {name: {"_type": "ClassLabel", "names": ["y", "x"]} for name in columns}
    cells = [{"bytes": b"no image", "path": name} for name in names]
    table = pa.table({"img": cells, **columns})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def test_a_table_of_images_is_a_truth(labels, tmp_path):
    true, given = [1, 0, 1, 1, 1], [0, 0, 0, 0, 0]
    plain = Labels.read(labels).evaluate(images(tmp_path / "t.parquet", NAMES, label=true))
    assert plain.label_accuracy_after == pytest.approx(2 / 3)
    assert plain.unlabelled_accuracy == 1
    table = images(tmp_path / "t.parquet", NAMES[::-1], label=given, clean_label=true[::-1], other=given)
    assert Labels.read(labels).evaluate(table) == plain
    assert Labels.read(labels).evaluate(table, "other") != plain
    for part in range(2):
        rows = slice(3 * part, 3 * part + 3)
        images(tmp_path / f"part-{part}.parquet", NAMES[rows], label=true[rows])
    assert Labels.read(labels).evaluate(tmp_path / "part-*.parquet") == plain
    with pytest.raises(RelabelError, match=r"not in the labels file: row 2 \('q.png'\)"):
        Labels.read(labels).evaluate(images(tmp_path / "t.parquet", ["a.png", "q.png"], label=[1, 0]))
    with pytest.raises(RelabelError, match="has no column 'nosuch'"):
        Labels.read(labels).evaluate(table, "nosuch")


def test_rows_without_names_are_found_by_their_number(tmp_path, numbered):
    true = [1, 0, 1, 1, 1]
    found = Labels.read(numbered).evaluate(images(tmp_path / "t.parquet", [None] * 5, label=true))
    assert found.label_accuracy_after == pytest.approx(2 / 3)
    with pytest.raises(RelabelError, match=r"t\.parquet has 4 rows and the labels file, .* 5\."):
        Labels.read(numbered).evaluate(images(tmp_path / "t.parquet", [None] * 4, label=true[:4]))


@pytest.mark.parametrize("names", [NAMES, list("01234")])
def test_the_vectors_of_the_source_are_a_truth(tmp_path, names):
    file = write(tmp_path, names, features="f_*")
    columns = {"f_0": [0.0] * 5, "f_1": [1.0] * 5, "true": ["x", "y", "x", "x", "x"]}
    named = {"id": names} if names == NAMES else {}

    def against(rows=slice(None), **more):
        table = {name: values[rows] for name, values in {**columns, **named}.items()} | more
        pq.write_table(pa.table(table), tmp_path / "v.parquet")
        return Labels.read(file).evaluate(tmp_path / "v.parquet", "true")

    plain = against()
    assert plain.label_accuracy_after == pytest.approx(2 / 3)
    assert against(index=[0, 1, 2, 3, 4]) == plain
    if named:
        assert against(index=[4, 3, 2, 1, 0]) == plain
        assert against(slice(2)).rows == 2
        del named["id"]
        assert against(index=[0, 1, 2, 3, 4]) == plain, "by index, as SOURCE may be named"
    else:
        with pytest.raises(RelabelError, match="its column index numbers the rows otherwise than they stand"):
            against(index=[4, 3, 2, 1, 0])
        assert against(slice(2), index=[0, 1]).rows == 2
        with pytest.raises(RelabelError, match=r"v\.parquet has 2 rows and the labels file, .* 5\."):
            against(slice(2))


def test_numbers_are_a_truth_where_they_were_labels(tmp_path, truth):
    table = truth("a.png,0", "b.png,1", "c.png,0", "d.png,0", "e.png,0")
    assert Labels.read(write(tmp_path, NAMES, numbered_labels=True)).evaluate(table).label_accuracy_after == (
        pytest.approx(2 / 3)
    )
    (tmp_path / "labels.parquet").unlink()
    with pytest.raises(RelabelError, match="none of its labels"):
        Labels.read(write(tmp_path, NAMES, numbered_labels=False)).evaluate(table)


def test_a_truth_in_memory_is_that_of_its_file(labels, truth):
    pandas = pytest.importorskip("pandas")
    read = Labels.read(labels)
    plain = read.evaluate(truth("a.png,x", "b.png,y", "c.png,x", "d.png,x", "e.png,x"))
    true = ["x", "y", "x", "x", "x"]
    frame = pandas.DataFrame({"file_name": NAMES, "label": true})
    for form in (true, np.array(true), pandas.Series(true), frame, frame[::-1], dict(frame)):
        assert read.evaluate(form) == plain
    assert read.evaluate(str(labels.parent / "truth.csv")) == plain
    assert read.evaluate([None, *true[1:]]).rows == plain.rows - 1
    assert read.evaluate(frame.rename(columns={"label": "checked"}), "checked") == plain
    with pytest.raises(RelabelError, match="truth has an entry for each of 4 rows, and there are 5"):
        read.evaluate(true[:4])
    with pytest.raises(RelabelError, match="truth: none of its labels"):
        read.evaluate([0, 1, 0, 0, 0])


def test_ids_are_a_truth_in_memory_where_labels_are_numbered(tmp_path):
    read = Labels.read(write(tmp_path, NAMES, numbered_labels=True))
    assert read.evaluate(np.array([0, 1, 0, 0, 0])).label_accuracy_after == pytest.approx(2 / 3)
