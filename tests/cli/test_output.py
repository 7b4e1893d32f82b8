"""A user cares for files: nothing half-written, nothing replaced unasked, the same seed the same bytes."""

import errno
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def without_command(path):
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[b"relabel"])
    return table.to_pydict(), {key: value for key, value in metadata.items() if key != "command"}


def test_a_run_leaves_the_output_and_nothing_else(fit, folder, files):
    before = files()
    (folder / "sub").mkdir()
    assert fit("-q", "-o", "sub/labels.parquet").code == 0
    assert set(files()) - set(before) == {"sub/labels.parquet"}


def test_an_existing_output_is_refused_before_any_work_and_replaced_with_overwrite(fit, monkeypatch, files):
    assert fit("-q").code == 0
    before = files()
    with monkeypatch.context() as patch:
        patch.setattr("relabel.verbs.fit.fit", lambda *_: pytest.fail("trained"))
        done = fit("-q")
    assert done.code == 2
    assert "labels.parquet exists" in done.err
    assert files() == before
    assert fit("-q", "--overwrite", "--seed", "1").code == 0
    assert files()["labels.parquet"] != before["labels.parquet"]


def test_the_same_seed_gives_the_same_bytes_but_for_the_command(fit, monkeypatch):
    monkeypatch.setattr("shlex.join", lambda _: "relabel fit")
    assert {fit("-q", "-o", name).code for name in ("a", "b")} == {0}
    assert Path("a").read_bytes() == Path("b").read_bytes()
    assert fit("-q", "-o", "c", "--seed", "1").code == 0
    assert without_command("a")[0] != without_command("c")[0]


def test_the_command_line_is_kept_in_the_file(fit, run):
    assert fit("-q", "-o", "my labels").code == 0
    assert without_command("my labels")[1]["seed"] == 0
    shown = json.loads(run("inspect", "my labels", "--json").out)
    assert shown["command"].startswith("relabel fit images --trusted trusted.csv")
    assert shown["command"].endswith("-q -o 'my labels'")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_path_that_is_not_unicode_costs_no_run(fit, run, folder):
    (folder / "images").rename(folder / "ima\udcffges")
    source, saved = "ima\udcffges", "mod\udcffel.pt"
    assert fit("-q", "--save-model", saved, "-o", "\udcff.parquet", source=source).code == 0
    assert run("predict", source, "--model", saved, "-q", "-o", "predicted.parquet").code == 0
    noise = ("--noise", "symmetric", "--rate", "0.5", "-q")
    assert run("corrupt", source, *noise, "-o", "noisy\udcff.parquet").code == 0
    for name in ("\udcff.parquet", "predicted.parquet", "noisy\udcff.parquet"):
        shown = json.loads(run("inspect", name, "--json").out)
        assert r"'ima\udcffges'" in shown["command"]
        assert r"'ima\udcffges'" in run("inspect", name).out.decode()
    assert json.loads(run("inspect", "predicted.parquet", "--json").out)["model"]["file"] == r"mod\udcffel.pt"


def test_of_hundreds_of_classes_the_largest_cells_of_a_matrix_are_kept(fit, run, folder):
    (folder / "many.txt").write_text("\n".join(["blue", "red", *(f"class{number}" for number in range(298))]))
    assert fit("-q", "--classes", "many.txt", "--corrector", "mlc").code == 0
    shown = json.loads(run("inspect", "labels.parquet", "--json").out)
    for name in ("noise_matrix", "transition_matrix"):
        assert name not in shown
        assert len(shown[f"{name}_diagonal"]) == 300
        cells = shown[f"{name}_largest"]
        assert 0 < len(cells) <= 1_000
        assert all(cell["true"] != cell["given"] for cell in cells)
        assert cells == sorted(cells, key=lambda cell: -cell["share"])
    found = {*pq.read_table("labels.parquet")["corrected_label"].to_pylist()}
    assert {cell["true"] for cell in shown["noise_matrix_largest"]} <= found
    assert "Classes  " in run("inspect", "labels.parquet").out.decode()


def test_quiet_prints_nothing_but_warnings(fit, folder):
    done = fit("--quiet")
    assert (done.code, done.out, done.err) == (0, b"", "")
    (folder / "images/void").mkdir()
    done = fit("--quiet", "--overwrite")
    assert done.code == 0
    assert done.err
    assert all(line.startswith("Warning: ") for line in done.err.splitlines())


def test_json_alone_on_standard_output(fit, run):
    summary = json.loads(fit("--json").out)
    assert summary["rows"] == 28
    assert summary["output"] == "labels.parquet"
    assert sum(summary["actions"].values()) == 28 - summary["trusted_rows"]


@pytest.fixture
def folders(folder):
    """SOURCE as a folder of every kind, with a file of each in `inside` and a link to it."""
    import datasets

    cells = [{"bytes": path.read_bytes()} for path in sorted((folder / "images/red").iterdir())]
    table = pa.table({"image": cells, "label": ["red", "blue"] * 7})
    datasets.disable_progress_bars()
    datasets.Dataset(table).save_to_disk("saved")
    (folder / "shards/sub").mkdir(parents=True)
    pq.write_table(table, "shards/sub/a.parquet")
    shutil.copytree("images", "listed/sub")
    names = [f"{colour}/{colour}{number}.png" for colour in ("red", "blue") for number in range(3)]
    Path("listed/sub/metadata.csv").write_text("file_name,label\n" + "".join(f"{n},{n[:3]}\n" for n in names))
    Path("list.csv").write_text("file_name,label\n" + "".join(f"images/{n},{n[:3]}\n" for n in names))
    for place in ("images/classes.txt", "classes.txt", "order.txt"):
        Path(place).write_text("red\nblue\n")
    return folder


@pytest.mark.parametrize(
    ("source", "output", "sentence"),
    [
        (("images",), "images/red/red9.png", "is an image."),
        (("list.csv",), "images/red/red1.png", "is an image."),
        (("listed",), "listed/sub/metadata.csv", "is part of SOURCE."),
        (("shards",), "shards/sub/a.parquet", "is part of SOURCE."),
        (("saved",), "saved/state.json", "is part of SOURCE."),
        (("images",), "images/classes.txt", "is part of SOURCE."),
        (("list.csv",), "classes.txt", "is also SOURCE's classes."),
        (("images", "--classes", "order.txt"), "order.txt", "is also --classes."),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
@pytest.mark.parametrize("linked", [False, True])
def test_overwrite_replaces_nothing_that_source_is_made_of(
    run, folders, files, source, output, sentence, linked
):
    if linked:
        Path("link").symlink_to(output)
        output = "link"
    before = files()
    noise = ("--noise", "symmetric", "--rate", "0.2")
    for command in (
        ("corrupt", *source, *noise, "-o", output),
        ("fit", *source, "--trusted", "trusted.csv", "-o", output),
        ("fit", *source, "--trusted", "trusted.csv", "--save-corrector", output),
        ("pretrain", *source, "-o", output),
    ):
        done = run(*command, "--overwrite")
        flag = "--save-corrector" if "--save-corrector" in command else "--output"
        name = "SOURCE 1" if command[0] == "pretrain" else "SOURCE"
        assert done.code == 2
        assert done.err == f"Error: {flag} {output} {sentence.replace('SOURCE', name)} Choose another name.\n"
        assert files() == before


def test_overwrite_replaces_what_lies_in_source_and_is_no_part_of_it(run, folders, monkeypatch):
    noise = ("--noise", "symmetric", "--rate", "0.2", "--overwrite")
    pq.write_table(pa.table({"file_name": ["a"]}), "images/truth.parquet")
    assert run("corrupt", "images", *noise, "-o", "images/truth.parquet").code == 0
    monkeypatch.chdir("shards")
    for _ in range(2):
        assert run("corrupt", ".", *noise, "-o", "labels.parquet").code == 0


@pytest.mark.parametrize("when", ["labels", "checkpoint"])
def test_a_full_disk_ends_in_one_sentence_and_no_debris(fit, monkeypatch, files, when):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = files()
    written = "pyarrow.parquet.ParquetWriter.write_table" if when == "labels" else "torch.save"
    monkeypatch.setattr(written, full)
    done = fit("-q")
    assert done.code == 1
    assert "could not be written: No space left on device. Free some space" in done.err
    assert done.err.count("\n") == 1
    new = set(files()) - set(before)
    if when == "labels":  # the training is not lost
        assert new == {".labels.parquet.checkpoint"}
        assert "--resume" in done.err
        monkeypatch.undo()
    else:
        assert not new
        assert "--resume" not in done.err


def test_the_line_that_is_shown_when_the_disk_is_full_replaces_what_was_written(fit, run, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.ParquetWriter.write_table", full)
        done = fit("-q", "--save-corrector", "c.pt")
    assert done.code == 1
    assert Path("c.pt").exists()
    _, *arguments = shlex.split(done.err.split("continue with: ")[1])
    assert run(*arguments).code == 0
    assert len(pq.read_table("labels.parquet")) == 28


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(fit, folder):
    (folder / "locked").mkdir(mode=0o500)
    assert fit("-o", "locked/labels.parquet").code == 2


def test_a_linked_output_replaces_what_the_link_points_to(fit, folder):
    (folder / "real.parquet").write_bytes(b"")
    os.symlink("real.parquet", folder / "labels.parquet")
    assert fit("-q", "--overwrite").code == 0
    assert (folder / "labels.parquet").is_symlink()
    assert len(pq.read_table("real.parquet")) == 28


def test_the_trained_corrector_is_saved_and_inspected(fit, run):
    assert fit("-q", "--save-corrector", "tmlc.pt").code == 0
    shown = json.loads(run("inspect", "tmlc.pt", "--json").out)
    assert shown["corrector"] == "tmlc"
    assert shown["class_names"] == ["blue", "red"]
    assert "Class names      blue, red" in run("inspect", "tmlc.pt").out.decode()
    assert "--save-corrector: The output tmlc.pt exists." in fit("--save-corrector", "tmlc.pt", "-o", "x").err


def test_every_other_flag_is_taken(fit, run, folder):
    import torch

    from relabel import backbones

    torch.save(backbones.build("cnn8", 2, 8).body.state_dict(), "unfit.pt")
    done = fit("--weights", "unfit.pt")
    assert done.code == 2
    assert "does not fit the backbone" in done.err
    flags = ("--backbone", "cnn8", "--augment", "none", "--warmup", "1", "--lr", "0.05", "--amp", "off")
    assert fit("-q", *flags, "--precision", "0.8", "--checkpoint", "state").code == 0
    assert not (folder / "state").exists()
