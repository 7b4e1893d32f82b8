"""A user mistypes: one sentence that names the culprit, exit 2, and nothing written."""

import pytest

FIT = ("fit", "images", "--trusted", "trusted.csv", "--image-size", "8", "--epochs", "2")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("fit",), "Missing argument 'SOURCE'. See relabel fit --help."),
        (("fit", "images"), "--trusted"),
        (("fitt",), "Did you mean 'fit'? See relabel --help."),
        (("fit", "--trusted"), "'--trusted' requires an argument. See relabel fit --help."),
        ((*FIT, "extra"), "extra"),
        ((*FIT, "--nosuch"), "--nosuch"),
        ((*FIT, "--epochs", "many"), "'--epochs': not a valid integer."),
        ((*FIT, "--lr", "fast"), "'--lr'"),
        ((*FIT, "--augment", "spin"), "'spin' is not one of 'flip', 'shift', 'none'"),
        ((*FIT, "--device", "abacus"), "'abacus'"),
        ((*FIT, "--amp", "fp8"), "'fp8'"),
        (
            (*FIT, "--corrector", "nosuch"),
            "--corrector nosuch: no such corrector. Use mslc or mlc or metalabelnet or tmlc or none.",
        ),
        ((*FIT, "--backbone", "nosuch"), "--backbone nosuch"),
        ((*FIT, "--weights", "nosuch.pt"), "--weights nosuch.pt"),
        ((*FIT, "--freeze"), "--freeze needs"),
        ((*FIT, "--epochs", "1"), "--epochs 1"),
        ((*FIT, "--warmup", "2"), "--warmup 2: must be at least 1 and less than the number of epochs."),
        (
            ("fit", "images", "--trusted", "trusted.csv", "--image-size", "8", "--warmup", "80"),
            "--warmup 80: the run has 80 epochs in all.",
        ),
        ((*FIT, "--batch-size", "0"), "--batch-size 0"),
        ((*FIT, "--image-size", "4"), "--image-size 4"),
        ((*FIT, "--lr", "nan"), "--lr nan"),
        ((*FIT, "--lr", "inf"), "--lr inf"),
        ((*FIT, "--precision", "95"), "--precision 95"),
        ((*FIT, "--seed", "-1"), "--seed -1"),
        ((*FIT, "--seed", "99999999999999999999"), "--seed 99999999999999999999"),
        ((*FIT, "-o", "images"), "images is a folder"),
        ((*FIT, "-o", "nosuch/labels.parquet"), "Make the folder first."),
        ((*FIT, "-o", "a" * 250), f"The output {'a' * 250} cannot be written: File name too long. Choose"),
        ((*FIT, "-o", "a" * 300), "aaa cannot be written: File name too long."),
        ((*FIT, "--save-corrector", "a" * 300), "--save-corrector: The output aaa"),
        (("pretrain", "images", "-o", "a" * 250), f"The output {'a' * 250} cannot be written: File name"),
        ((*FIT, "-o", "trusted.csv", "--overwrite"), "--output trusted.csv is also --trusted."),
        ((*FIT, "-o", "labels.csv"), "--output labels.csv: the labels are written as Parquet."),
        (
            ("apply", "images", "-o", "labels.JSON"),
            "--output labels.JSON: the labels are written as Parquet.",
        ),
        ((*FIT, "-o", "fake.parquet", "--epochs", "0"), "--epochs 0"),
        ((*FIT, "-o", "fake.parquet", "--corrector", "mslcc"), "--corrector mslcc"),
        (("fit", "nosuch", *FIT[2:], "-o", "fake.parquet"), "'nosuch'"),
        ((*FIT, "-o", "fake.parquet"), "fake.parquet exists"),
        (
            (*FIT, "--corrector", "none", "--save-corrector", "c.pt"),
            "--save-corrector: with --corrector none",
        ),
        ((*FIT[:2], "--trusted", "nosuch.csv"), "--trusted: there is no file or folder nosuch.csv."),
        ((*FIT, "-o", "./a", "--save-corrector", "a"), "is also --output"),
        ((*FIT, "--checkpoint", "trusted.csv"), "--checkpoint trusted.csv is also --trusted."),
        ((*FIT, "--checkpoint", "nosuch/state"), "--checkpoint: The output nosuch/state has no folder"),
        ((*FIT, "--checkpoint", "note.txt"), "--checkpoint note.txt is damaged or another kind of file."),
        ((*FIT, "--checkpoint", "note.txt", "--resume"), "note.txt is damaged or another kind of file"),
        ((*FIT, "-o", "-", "--json"), "--json and -o - both want standard output."),
        ((*FIT, "--labels", "nosuch.csv"), "--labels: there is no file or folder nosuch.csv."),
        (("fit", "images", "--trusted", ""), "After --trusted there is an empty word. Write what belongs"),
        (("fit", "images", "--trusted="), "After --trusted there is an empty word."),
        ((*FIT, "--label-column", ""), "After --label-column there is an empty word."),
        (("fit", "", *FIT[2:]), "After fit there is an empty word."),
        (("evaluate", "note.txt", "--truth", ""), "After --truth there is an empty word."),
        (
            ("fit", "images", "--trusted", "images/"),
            "--trusted images is SOURCE itself, so every given label",
        ),
        (("fit", "images", "--trusted", "."), "--trusted . holds SOURCE, so every given label"),
        (("apply", "images/", "--trusted", "./images"), "--trusted images is SOURCE itself"),
        (("fit", "images/list.csv", "--trusted", "images/list.csv"), "images/list.csv is SOURCE itself"),
        ((*FIT, "--labels", "./trusted.csv"), "--trusted trusted.csv is also --labels, so every label in it"),
        (
            ("fit", "images/list.csv", "--trusted-column", "label"),
            "--trusted-column label is where the given labels come from",
        ),
        (("fit", "nosuch", *FIT[2:]), "'nosuch'"),
        (("fit", "empty", *FIT[2:]), "There is no image in empty"),
        (("fit", "images/red", *FIT[2:]), "None of the images of images/red has a label."),
        (("fit", "lonely", *FIT[2:]), "lonely has only one class, 'red'."),
        (("corrupt", "images", "--noise", "pink", "--rate", "0.1", "-o", "n.csv"), "--noise pink"),
        (("corrupt", "images", "--noise", "symmetric", "--rate", "2", "-o", "n.csv"), "--rate 2"),
        (("corrupt", "images", "--noise", "asymmetric", "--rate", "0.1", "-o", "n.csv"), "--map"),
        (("corrupt", "images", "--noise", "symmetric", "--rate", "0.1", "-o", "note.txt"), "note.txt exists"),
        (("evaluate", "nosuch", "--truth", "trusted.csv"), "nosuch"),
        (("evaluate", "note.txt", "--truth", "trusted.csv"), "note.txt is not a Parquet file"),
        (("evaluate", "note.txt"), "--truth"),
        (("inspect", "nosuch"), "nosuch"),
        (("inspect", "images"), "images is a folder."),
        (("inspect", "fake.zip"), "fake.zip"),
        (("demo", "images"), "The folder images is not empty."),
        (("demo", "note.txt"), "note.txt is not a folder."),
        (
            ("demo", "note.txt/x"),
            "The folder note.txt/x/images could not be made: Not a directory. Name anot",
        ),
        (("fit", "images", "--trusted", "a" * 300), "--trusted: there is no file or folder aaa"),
        (("apply", "images", "--corrector", "a" * 300), "aaa: the name is too long."),
        (("predict", "images", "--model", "a" * 300), "aaa: the name is too long."),
        (("inspect", "a" * 300), "aaa: the name is too long."),
        (("evaluate", "a" * 300, "--truth", "trusted.csv"), "aaa: the name is too long."),
        (("demo", "a" * 300), "aaa/images could not be made: File name too long. Name another folder."),
        (("demo", "/dev/null/x"), "The folder /dev/null/x/images could not be made: Not a directory."),
    ],
    ids=lambda value: " ".join(value[-3:])[:40] if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(run, folder, files, tools, arguments, sentence):
    (folder / "note.txt").write_text("dear diary")
    (folder / "fake.zip").write_bytes(b"PK\x03\x04 and no more")
    (folder / "fake.parquet").write_bytes(b"PAR1 and no more")
    (folder / "empty/sub").mkdir(parents=True)
    tools["draw"](folder / "lonely/red/a.png", "red")
    tools["write_csv"]("images/list.csv", [("red/red0.png", "red"), ("blue/blue0.png", "blue")])
    before = files()
    done = run(*arguments)
    *rest, last = done.err.splitlines()
    assert done.code == 2
    assert last.startswith("Error: ")
    assert sentence in last
    assert last.endswith((".", "?"))
    assert all(line.startswith("Warning: ") for line in rest) or "--resume" in arguments
    assert not done.out
    assert files() == before


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([("red/nosuch.png", "red")], "row 2 ('red/nosuch.png')"),
        ([("red/red0.png", "red"), ("red/red1.png", "rad")], "row 3 ('rad'). Did you mean 'red'?"),
        ([("red/red0.png", "red"), ("./red/red0.png", "blue")], "row 3 (same image as row 2)"),
        ([("red/red0.png", "")], "row 2"),
        ([], "holds no usable row"),
        ([(f"red/{n}.png", "red") for n in range(99)], "has 99 rows, more than the 28 of SOURCE"),
    ],
    ids=["file", "class", "twice", "no label", "no row", "too many"],
)
def test_trusted_rows_that_cannot_be_trusted_are_refused_by_row(fit, files, tools, rows, sentence):
    tools["write_csv"]("bad.csv", rows)
    before = files()
    done = fit("--trusted", "bad.csv")
    assert done.code == 2
    assert sentence in done.err
    assert "--trusted bad.csv" in done.err
    assert done.err.count("\n") == 1
    assert files() == before


def test_a_table_without_the_columns_names_those_it_has(fit, tools):
    tools["write_csv"]("bad.csv", [("red/red0.png", "red")], header=("image", "class"))
    done = fit("--trusted", "bad.csv")
    assert done.code == 2
    assert "bad.csv needs the columns file_name and label, and has image, class." in done.err


def test_a_traceback_comes_under_relabel_debug_only_with_the_same_exit_code(run, folder, monkeypatch):
    assert "Traceback" not in run("inspect", "nosuch").err
    monkeypatch.setenv("RELABEL_DEBUG", "1")
    done = run("inspect", "nosuch")
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("Error: ")


def test_a_defect_of_ours_is_one_line_and_exit_1(fit, monkeypatch, files):
    def broken(*_, **__):
        raise ValueError("several\nlines")

    monkeypatch.setattr("relabel.verbs.run.open_source", broken)
    done = fit()
    assert done.code == 1
    assert done.err == "Error: ValueError: several lines (RELABEL_DEBUG=1 shows where).\n"


def test_a_real_process_leaves_with_the_exit_code(start):
    process = start("inspect", "nosuch")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, b"")
    assert err.decode().startswith("Error: ")
