"""A user labels images that were not in the fit, with the model the fit saved."""

import io
import json
import os
import pickle
import signal

import pyarrow.parquet as pq
import pytest
import torch

FIT = ("fit", "images", "--trusted", "trusted.csv", "--epochs", "2", "--image-size", "8")
# The process says when it decodes, and takes its time over it.
SLOW_DECODING = """
import sys, time
from relabel import cli
from relabel.data import batches
def decode(*arguments):
    print("decoding", file=sys.stderr, flush=True)
    time.sleep(0.5)
batches.decode = decode
from relabel.__main__ import main as command
command()
"""


@pytest.fixture
def model(fit, folder, tools):
    """`model.pt` of a small fit, and two folders of images it has not seen: `new` with classes, `flat`."""
    assert fit("-q", "--save-model", "model.pt", "-o", "fit.parquet").code == 0
    for number in range(6):
        colour = "red" if number % 2 else "blue"
        tools["draw"](folder / f"new/{colour}/{number}.png", colour, seed=100 + number)
        tools["draw"](folder / f"flat/{number}.png", colour, seed=100 + number)
    return folder / "model.pt"


@pytest.fixture
def predict(run, model):
    return lambda *flags, source="new": run("predict", source, "--model", "model.pt", *flags)


def columns(path="labels.parquet"):
    return pq.read_table(path).to_pydict()


def metadata(path="labels.parquet"):
    return json.loads(pq.read_schema(path).metadata[b"relabel"])


def test_unseen_images_get_the_columns_of_fit(predict, folder, files):
    (folder / "new/red/broken.png").write_bytes(b"no picture")
    before = files()
    done = predict()
    assert done.code == 0
    assert set(files()) - set(before) == {"labels.parquet"}
    assert pq.read_schema("labels.parquet").equals(pq.read_schema("fit.parquet"))
    found = columns()
    assert found["file_name"] == [
        *(f"blue/{n}.png" for n in (0, 2, 4)), *(f"red/{n}.png" for n in (1, 3, 5)), "red/broken.png",
    ]  # fmt: skip
    assert found["original_label"] == ["blue"] * 3 + ["red"] * 4
    assert found["trusted"] == [False] * 7
    assert found["error"][:6] == [None] * 6
    assert found["error"][6]
    assert found["corrected_label"][6] is found["soft_label"][6] is found["action"][6] is None
    assert all(0 <= share <= 1 for share in found["noise_probability"][:6])
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in found["soft_label"][:6])
    assert "1 of 7 images cannot be used" in done.err
    assert "Wrote labels.parquet" in done.err
    assert "\nRows " in done.err


def test_a_flat_folder_without_labels_is_labelled(predict):
    assert predict("-q", source="flat").code == 0
    found = columns()
    assert found["original_label"] == found["noise_probability"] == [None] * 6
    assert set(found["corrected_label"]) <= {"red", "blue"}
    assert set(found["action"]) == {"review"}


def test_labels_may_come_from_a_table(predict, tools):
    tools["write_csv"]("labels.csv", [("0.png", "red"), ("./1.png", "blue")])
    assert predict("-q", "--labels", "labels.csv", source="flat").code == 0
    assert columns()["original_label"] == ["red", "blue", None, None, None, None]
    tools["write_csv"]("flat/list.csv", [("3.png",), ("5.png",)], header=("file_name",))
    assert predict("-q", "--overwrite", source="flat/list.csv").code == 0
    assert columns()["file_name"] == ["3.png", "5.png"]


def test_the_file_says_what_made_it(predict, run):
    assert predict("-q", "--precision", "0.8").code == 0
    recorded, fitted = metadata(), metadata("fit.parquet")
    for name in ("class_names", "corrector", "backbone", "image_size", "epochs", "seed", "trusted_rows"):
        assert recorded[name] == fitted[name]
    assert recorded["model"]["file"] == "model.pt"
    assert recorded["command"] == "relabel predict new --model model.pt -q --precision 0.8"
    assert recorded["calibration"]["selection"]["precision"] == 0.8
    assert "Command " in run("inspect", "labels.parquet").out.decode()


def test_the_summary_comes_as_json_too(predict):
    done = predict("--json", "-q")
    summary = json.loads(done.out)
    assert (summary["rows"], summary["trusted_rows"], summary["output"]) == (6, 0, "labels.parquet")
    assert sum(summary["actions"].values()) == 6
    assert done.err == ""


def test_a_model_is_inspected(model, run):
    shown = run("inspect", "model.pt").out.decode()
    assert shown.startswith("Model file\n")
    assert "Class names   blue, red" in shown
    described = json.loads(run("inspect", "model.pt", "--json").out)
    assert described["kind"] == "relabel model"
    assert (described["backbone"], described["corrector"], described["image_size"]) == ("cnn8", "tmlc", 8)
    assert described["calibration"]["calibration_rows"] == 2  # of the eight trusted rows, a quarter


def test_a_model_is_not_overwritten_unasked_nor_written_over_another_file(fit, model, files):
    before = files()
    assert "--save-model: The output model.pt exists." in fit("--save-model", "model.pt").err
    assert "is also --output" in fit("--save-model", "./labels.parquet").err
    assert "is also --trusted" in fit("--save-model", "trusted.csv", "--overwrite").err
    assert files() == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("predict", "new"), "--model"),
        (("predict", "--model", "model.pt"), "Missing argument 'SOURCE'."),
        (("predict", "nosuch", "--model", "model.pt"), "'nosuch'"),
        (("predict", "new", "--model", "nosuch.pt"), "--model nosuch.pt: no such file."),
        (("predict", "new", "--model", "images"), "--model images: no such file."),
        (("predict", "new", "--model", "trusted.csv"), "trusted.csv is not a model file"),
        (("predict", "new", "--model", "model.pt", "--precision", "95"), "--precision 95"),
        (("predict", "new", "--model", "model.pt", "--device", "abacus"), "'abacus'"),
        (("predict", "new", "--model", "model.pt", "--amp", "fp8"), "'fp8'"),
        (("predict", "new", "--model", "model.pt", "--trusted", "trusted.csv"), "--trusted"),
        (("predict", "new", "--model", "model.pt", "-o", "fit.parquet"), "fit.parquet exists"),
        (("predict", "new", "--model", "model.pt", "-o", "model.pt", "--overwrite"), "is also --model"),
        (("predict", "new", "--model", "model.pt", "-o", "-", "--json"), "both want standard output"),
        (("predict", "new", "--model", "model.pt", "--labels", "nosuch.csv"), "nosuch.csv"),
        (("predict", "odd", "--model", "model.pt"), "no class of the model model.pt: 'green'."),
        (("predict", "void", "--model", "model.pt"), "There is no image in void"),
        (("predict", "broken", "--model", "model.pt"), "None of the images of broken can be read"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    run, model, folder, files, tools, arguments, sentence
):
    tools["draw"](folder / "odd/green/0.png", "red")
    (folder / "void").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken/0.png").write_bytes(b"no picture")
    before = files()
    done = run(*arguments)
    assert done.code == 2
    assert done.err.startswith("Error: ")
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert not done.out
    assert files() == before


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("kind", ["half", "code", "pickle", "newer", "shape", "corrector"])
@pytest.mark.parametrize("command", ["predict", "inspect"])
def test_a_damaged_or_hostile_model_is_one_sentence_and_nothing_in_it_runs(
    predict, run, model, folder, fit, kind, command
):
    content = torch.load(model, weights_only=True)
    sentence = "is not a model file"
    if kind == "half":
        model.write_bytes(model.read_bytes()[:5000])
    elif kind == "pickle":
        model.write_bytes(pickle.dumps(Evil()))
    elif kind == "corrector":
        assert fit("-q", "--save-corrector", "model.pt", "-o", "fit.parquet", "--overwrite").code == 0
    else:
        sentence = "has format 3" if kind == "newer" else sentence
        content |= {"code": {"trained": Evil()}, "newer": {"format": 3}, "shape": {"class_names": []}}[kind]
        torch.save(content, model)
        sentence = "is not a whole model file" if kind == "shape" else sentence
    done = predict() if command == "predict" else run("inspect", "model.pt")
    assert not (folder / "evil").exists()
    if command == "inspect" and kind == "corrector":
        assert done.code == 0
        return
    assert done.code == 2
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1
    assert "model.pt" in done.err
    if command == "inspect" and kind in ("half", "code"):
        sentence = "is neither a corrector nor a model file that can be loaded safely"
    assert sentence in done.err or (command == "inspect" and kind == "pickle")


def test_ctrl_c_ends_with_130_and_nothing_written(start, model, files):
    before = files()
    process = start("predict", "new", "--model", "model.pt", program=("-c", SLOW_DECODING))
    for line in process.stderr:
        if b"decoding" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read().decode().splitlines()[-1] == "Interrupted. Nothing was written."
    assert files() == before


def test_real_processes_fit_predict_and_inspect_through_a_pipe(start, folder, files, tools):
    assert start(*FIT, "--save-model", "model.pt", "-q").wait(120) == 0
    for number in range(4):
        tools["draw"](folder / f"flat/{number}.png", "red", seed=200 + number)
    (folder / "flat/broken.png").write_bytes(b"no picture")
    before = files()
    first = start("predict", "flat", "--model", "model.pt", "-o", "-", "-q")
    second = start("inspect", "-", "--json", stdin=first.stdout)
    first.stdout.close()
    out, err = second.communicate(timeout=120)
    assert (first.wait(60), second.returncode, err) == (0, 0, b"")
    assert json.loads(out)["rows"] == 5
    assert files() == before


def test_standard_output_is_the_file(predict):
    done = predict("-o", "-")
    assert done.code == 0
    assert "Wrote the labels to standard output" in done.err
    assert predict("-q").code == 0
    assert pq.read_table(io.BytesIO(done.out)).equals(pq.read_table("labels.parquet"))


def test_a_reader_that_goes_away_is_reported_in_one_sentence(model, start):
    read, write = os.pipe()
    os.close(read)
    process = start("predict", "new", "--model", "model.pt", "-o", "-", "-q", stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.decode() == "Error: The reader of standard output closed it too early.\n"


def test_a_disk_that_refuses_leaves_nothing(predict, model, files, monkeypatch):
    before = files()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", full)
    done = predict()
    assert done.code == 1
    assert "labels.parquet could not be written: No space left on device." in done.err
    assert files() == before


def test_every_corrector_and_a_frozen_backbone_save_a_model(fit, run, model):
    from relabel import backbones
    from relabel.correctors.registry import REGISTRY

    torch.manual_seed(0)
    torch.save(backbones.build("cnn8", 2, 8).state_dict(), "weights.pt")
    settings = [("--corrector", name) for name in REGISTRY]
    settings.append(("--backbone", "cnn8", "--weights", "weights.pt", "--freeze"))
    for flags in settings:
        assert fit("-q", "--overwrite", "--save-model", "other.pt", *flags).code == 0
        assert run("predict", "flat", "--model", "other.pt", "-q", "--overwrite").code == 0
        assert columns()["error"] == [None] * 6
