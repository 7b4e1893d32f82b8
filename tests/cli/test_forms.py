"""Every form a SOURCE can have goes through the commands, with the flags that belong to it."""

import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

NAMES = [f"{colour}/{colour}{n}.png" for colour in ("blue", "red") for n in range(14)]
CLASSES = ["blue", "red"]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def forms(folder):
    """The images of `folder` in every other form, their classes as integers where the form has them."""
    contents = [(folder / "images" / name).read_bytes() for name in NAMES]
    labels = [CLASSES.index(name.split("/")[0]) for name in NAMES]
    cells = [{"bytes": content, "path": name} for content, name in zip(contents, NAMES, strict=True)]
    features = {
        "image": {"_type": "Image"},
        **{name: {"_type": "ClassLabel", "names": CLASSES} for name in ("label", "checked")},
    }
    checked = [label if row % 3 == 0 else None for row, label in enumerate(labels)]
    table = pa.table({"image": cells, "label": labels, "checked": pa.array(checked, pa.int64())})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, "table.parquet")
    (folder / "data").mkdir()
    for shard in range(2):
        pq.write_table(table.slice(14 * shard, 14), f"data/train-0000{shard}-of-00002.parquet")
        with tarfile.open(f"shard-{shard}.tar", "w") as tar:
            for row in range(14 * shard, 14 * shard + 14):
                add(tar, NAMES[row], contents[row])
                add(tar, NAMES[row].replace(".png", ".cls"), b"%d" % labels[row])
    with zipfile.ZipFile("images.zip", "w") as archive:
        for name, content in zip(NAMES, contents, strict=True):
            archive.writestr(name, content)
    with zipfile.ZipFile("listed.zip", "w") as archive:
        listed = "".join(f"{number}.png,{name.split('/')[0]}\n" for number, name in enumerate(NAMES))
        archive.writestr("metadata.csv", "file_name,label\n" + listed)
        for number, content in enumerate(contents):
            archive.writestr(f"{number}.png", content)
    for path, mode in (("images.tar", "w"), ("images.tar.gz", "w:gz")):
        with tarfile.open(path, mode) as tar:
            for name in NAMES:
                tar.add(f"images/{name}", f"./{name}")
    import datasets

    datasets.disable_progress_bars()
    data = datasets.Dataset(pa.Table.from_batches(table.to_batches()))
    datasets.DatasetDict({"train": data, "test": data.select(range(3))}).save_to_disk("saved")
    return folder


FORMS = {
    "table": ("table.parquet",),
    "shards": ("data/train-*.parquet",),
    "folder of shards": ("data",),
    "saved": ("saved", "--split", "train"),
    "WebDataset": ("shard-{0..1}.tar", "--classes", "blue,red"),
    "zip": ("images.zip",),
    "tar": ("images.tar",),
    "tar.gz": ("images.tar.gz",),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_rows_of_the_folder(run, forms, form):
    for noise in ("symmetric", "instance-dependent"):  # from the labels, and from the pixels
        flags = ("--noise", noise, "--rate", "0.3", "-o", "-", "-q")
        expected = run("corrupt", "images", *flags).out
        if form == "saved":  # save_to_disk drops the folders
            expected = re.sub(rb"(?m)^\w+/", b"", expected)
        done = run("corrupt", *FORMS[form], *flags)
        assert done.code == 0, done.err
        assert done.out == expected


@pytest.mark.parametrize("form", ["table", "saved"])
def test_a_column_of_the_source_holds_the_trusted_labels(run, forms, form):
    tiny = ("--epochs", "2", "--image-size", "8", "--device", "cpu", "--batch-size", "16", "-q")
    done = run("fit", *FORMS[form], "--trusted-column", "checked", *tiny)
    assert done.code == 0, done.err
    rows = pq.read_table("labels.parquet").to_pylist()
    assert [row["file_name"].rpartition("/")[2] for row in rows] == [name.split("/")[1] for name in NAMES]
    assert [row["trusted"] for row in rows] == [row % 3 == 0 for row in range(28)]
    assert [row["original_label"] for row in rows] == [name.split("/")[0] for name in NAMES]


def test_an_archive_with_metadata_gives_the_labels_of_the_folder(run, forms):
    flags = ("--noise", "symmetric", "--rate", "0.3", "-o", "-", "-q")
    expected = run("corrupt", "images", *flags).out.decode()
    done = run("corrupt", "listed.zip", *flags)
    assert done.code == 0, done.err
    for number, name in enumerate(NAMES):
        expected = expected.replace(f"{name},", f"{number}.png,")
    assert done.out.decode() == expected


def test_the_source_is_a_truth_by_any_of_its_columns(run, forms):
    tiny = ("--epochs", "2", "--image-size", "8", "--device", "cpu", "--batch-size", "16", "-q")
    assert run("fit", "data/*.parquet", "--trusted-column", "checked", *tiny).code == 0
    done = run("evaluate", "labels.parquet", "--truth", "table.parquet", "--label-column", "label", "--json")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert (figures["rows"], figures["label_accuracy_before"]) == (18, 1)
    done = run("evaluate", "labels.parquet", "--truth", "data/*.parquet", "--label-column", "checked")
    assert "covers no row that can be compared" in done.err  # the trusted rows alone


def test_a_manifest_and_its_columns_by_other_names(run, forms, tools):
    rows = [
        (name, name.split("/")[0], name.split("/")[0] if n % 3 == 0 else "") for n, name in enumerate(NAMES)
    ]
    tools["write_csv"]("images/all.csv", rows, ("img", "kind", "checked"))
    names = ("--image-column", "img", "--label-column", "kind", "--trusted-column", "checked")
    tiny = ("--epochs", "2", "--image-size", "8", "--device", "cpu", "--batch-size", "16", "-q")
    done = run("fit", "images/all.csv", *names, *tiny, "--save-corrector", "tmlc.pt", "--save-model", "m.pt")
    assert done.code == 0, done.err
    expected = pq.read_table("labels.parquet").to_pylist()
    assert sum(row["trusted"] for row in expected) == 10

    done = run("apply", *FORMS["WebDataset"], "--corrector", "tmlc.pt", "-o", "applied.parquet", *tiny)
    assert done.code == 0, done.err
    assert pq.read_table("applied.parquet")["original_label"].to_pylist() == [row[1] for row in rows]
    done = run("predict", "images.zip", "--model", "m.pt", "-o", "predicted.parquet", "-q")
    assert done.code == 0, done.err
    assert pq.read_table("predicted.parquet")["file_name"].to_pylist() == NAMES


def test_pretrain_reads_every_form_too(run, forms):
    flags = ("-o", "tmlc.pt", "--episodes", "2", "--steps", "1", "--device", "cpu")
    done = run("pretrain", "table.parquet", "--label-column", "nosuch", *flags)
    assert done.code == 2
    assert "table.parquet has no column 'nosuch'; it has image, label, checked." in done.err


def test_a_classes_file_orders_the_classes_and_one_that_belongs_elsewhere_is_left_alone(run, forms):
    Path("images/classes.txt").write_text("red\ngreen\nblue\n")
    noise = ("--noise", "symmetric", "--rate", "0.2", "--overwrite", "-o", "noisy.parquet")
    assert run("corrupt", "images", *noise).code == 0
    stored = json.loads(pq.read_schema("noisy.parquet").metadata[b"relabel"])
    assert stored["class_names"] == ["red", "green", "blue"]
    Path("images/classes.txt").write_text("1 red\n2 blue\n")
    done = run("corrupt", "images", *noise)
    assert done.code == 0
    assert "Warning: images/classes.txt is left alone: " in done.err
    stored = json.loads(pq.read_schema("noisy.parquet").metadata[b"relabel"])
    assert stored["class_names"] == ["blue", "red"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("saved",), "saved has the splits train, test. Name one with --split."),
        (("broken.zip",), "broken.zip cannot be read: "),
        (("broken.parquet",), "broken.parquet cannot be read: "),
        (("data/test-*.parquet",), "No file matches 'data/test-*.parquet'."),
        (
            ("images", "--split", "train"),
            "--split has no meaning for images, which is a folder of class folders.",
        ),
        (("images", "--streaming"), "--streaming has no meaning for images"),
        (("table.parquet", "--revision", "main"), "--revision has no meaning for table.parquet"),
        (("images", "--classes", "blue,green"), "the label 'red' is none of the classes of --classes."),
        (("images", "--classes", "nosuch.txt"), "--classes nosuch.txt: there is no such file."),
        (("table.parquet", "--image-column", "label"), "that column holds int64, not images."),
        (("images", "--trusted-column", "x"), "--trusted and --trusted-column both name trusted rows."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(run, forms, files, words, sentence):
    Path("broken.zip").write_bytes(Path("images.zip").read_bytes()[:500])
    Path("broken.parquet").write_bytes(Path("table.parquet").read_bytes()[:-50])
    before = files()
    done = run("fit", *words, "--trusted", "trusted.csv")
    assert done.code == 2
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert files() == before


def test_outputs_in_a_folder_of_shards_are_no_shards_the_next_time(run, forms, monkeypatch):
    monkeypatch.chdir("data")
    noise = ("--noise", "symmetric", "--rate", "0.2", "-q")
    assert run("corrupt", ".", *noise, "-o", "noisy.parquet").code == 0
    tiny = ("--epochs", "2", "--image-size", "8", "--device", "cpu", "-q")
    assert run("fit", ".", "--labels", "noisy.parquet", "--trusted-column", "checked", *tiny).code == 0
    assert run("corrupt", ".", *noise, "-o", "again.parquet").code == 0
    assert pq.read_table("again.parquet").equals(pq.read_table("noisy.parquet"))
    assert run("evaluate", "labels.parquet", "--truth", ".").code == 0


def test_an_output_does_not_replace_a_shard(run, forms):
    shard = "data/train-00001-of-00002.parquet"
    done = run(
        "corrupt", "data/*.parquet", "--noise", "symmetric", "--rate", "0.2", "-o", shard, "--overwrite"
    )
    assert done.code == 2
    assert f"--output {shard} is also SOURCE ({shard})." in done.err


def test_fit_without_trusted_rows_names_both_ways(run, folder):
    done = run("fit", "images")
    assert done.code == 2
    assert "there is neither --trusted nor --trusted-column." in done.err


def test_a_real_process_reads_a_table_with_broken_rows_to_its_end(start, forms):
    table = pq.read_table("table.parquet").to_pylist()
    table[3]["image"] = None
    table[5]["image"]["bytes"] = b"no image"
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    table[7]["image"]["bytes"] = buffer.getvalue()[:-60]
    pq.write_table(pa.Table.from_pylist(table), "broken.parquet")
    flags = ("--epochs", "2", "--image-size", "8", "--device", "cpu", "-o", "-", "-q")
    process = start("fit", "broken.parquet", "--trusted-column", "checked", *flags)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    rows = pq.read_table(io.BytesIO(out)).to_pylist()
    assert len(rows) == 28
    assert [row for row in range(28) if rows[row]["error"]] == [3, 5, 7]
    assert rows[3]["error"] == "the row has no image"
    assert rows[3]["corrected_label"] is None
