"""relabel from Python: what its users hand over and get back."""

import doctest
import inspect
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import relabel
from relabel import api, cli
from relabel.cli.flags import takes
from relabel.config import (
    ApplyConfig,
    CorruptConfig,
    EvaluateConfig,
    FitConfig,
    PredictConfig,
    PretrainConfig,
)
from relabel.options import options_of

TINY = {"epochs": 2, "batch_size": 16, "device": "cpu", "amp": "off"}
NAMES = np.array(["cat", "dog", "emu"])
FUNCTIONS = {
    "fit": FitConfig, "apply": ApplyConfig, "predict": PredictConfig, "pretrain": PretrainConfig,
    "corrupt": CorruptConfig, "evaluate": EvaluateConfig,
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors [90, 4], their true classes and noisy ones."""
    rng = np.random.default_rng(0)
    true = np.arange(90) % 3
    vectors = (rng.normal(size=(90, 4)) + 4 * np.eye(3, 4)[true]).astype(np.float32)
    return vectors, true, np.where(rng.random(90) < 0.2, (true + 1) % 3, true)


@pytest.fixture
def trusted(data) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(30), data[1][:30]


@pytest.fixture
def folder(data, tmp_path, monkeypatch) -> Path:
    """The same data as files, in the current folder."""
    monkeypatch.chdir(tmp_path)
    vectors, true, given = data
    pq.write_table(pa.table({"v": list(vectors), "label": NAMES[given]}), "v.parquet")
    rows = "".join(f"{row},{NAMES[true[row]]}\n" for row in range(30))
    Path("trusted.csv").write_text(f"index,label\n{rows}")
    Path("truth.csv").write_text("index,label\n" + "".join(f"{r},{NAMES[c]}\n" for r, c in enumerate(true)))
    Path("note.txt").write_text("dear diary")
    return tmp_path


@pytest.fixture(scope="module")
def fitted(data) -> relabel.Labels:
    vectors, true, given = data
    rows = np.arange(30)
    return relabel.fit(
        features=vectors, labels=NAMES[given], trusted=(rows, NAMES[true[rows]]), keep_model=True, **TINY
    )


def test_the_functions_and_flags_are_one(monkeypatch):
    """Every flag is a keyword, and every keyword but those of Python alone a flag."""
    for name, config in FUNCTIONS.items():
        options = options_of(config)
        keywords = inspect.signature(getattr(relabel, name)).parameters
        assert {option.name for option in options} <= keywords.keys()
        assert keywords.keys() - {option.name for option in options} <= {"progress"}
        flags = inspect.signature(takes(config)(lambda config: None)).parameters
        assert len(flags) == len([option for option in options if not option.words.hidden])
        for option in options:
            if not option.is_needed and keywords[option.name].default is not None:
                assert keywords[option.name].default == option.default


@pytest.mark.parametrize("name", [*FUNCTIONS, "calibrate", "read"])
def test_the_help_shows_every_argument_once_with_a_type_in_plain_words(name):
    shown = inspect.signature(getattr(relabel, name))
    for parameter in shown.parameters.values():
        assert not re.search("object|'[A-Z]|pathlib|typing|relabel", str(parameter))
    assert re.search(r" -> [A-Z]\w+$", str(shown))
    text = inspect.getdoc(getattr(relabel, name))
    explained = re.findall(r"^(\w+): ", text.partition("Arguments; ")[2], re.MULTILINE)
    assert explained == ([] if name == "read" else list(shown.parameters))
    assert not re.search(r"--\w| - is ", text)


def test_the_named_types_take_no_library():
    code = "import relabel.types as t, sys; print(t.Table, {'numpy', 'pandas', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize("name", ["fit", "apply", "predict", "corrupt", "evaluate", "calibrate", "read"])
def test_the_example_of_the_docstring_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestFinder().find(getattr(api, name), name)
    assert examples[0].examples
    results = [doctest.DocTestRunner().run(example) for example in examples]
    assert not sum(result.failed for result in results)


def test_importing_relabel_imports_nothing_else_at_once():
    code = (
        "import time; begin = time.perf_counter(); import relabel, sys; took = time.perf_counter() - begin\n"
        "print(took, {'torch', 'numpy', 'pyarrow', 'rich', 'typer'} & set(sys.modules))\n"
        "relabel.RelabelError, dir(relabel)\n"
        "print({'torch', 'numpy', 'pyarrow', 'rich', 'typer'} & set(sys.modules))\n"
        "import inspect, signal; help = inspect.signature(relabel.fit)\n"
        "print('torch' in sys.modules, signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, third = done.stdout.splitlines()
    assert float(first.split()[0]) < 0.1
    assert first.endswith("set()")
    assert second == "set()"
    assert third == "False True"


def test_everything_public_is_there():
    assert set(relabel.__all__) <= set(dir(relabel))
    for name in relabel.__all__:
        assert getattr(relabel, name) is not None
    with pytest.raises(AttributeError, match="nosuch"):
        relabel.nosuch  # noqa: B018


def columns(labels: relabel.Labels) -> pd.DataFrame:
    table = labels.to_pandas()
    return table.assign(soft_label=table.soft_label.map(tuple))


def test_what_is_handed_over_may_be_an_array_a_frame_a_series_a_list_or_a_file(data, folder, fitted):
    vectors, true, given = data
    rows = np.arange(30)
    named = NAMES[given]
    frame = pd.DataFrame({"v": list(vectors), "label": named})
    checked = pd.DataFrame({"index": rows, "label": NAMES[true[rows]]})
    expected = columns(fitted).drop(columns="file_name")
    for arguments in (
        {
            "features": vectors.tolist(),
            "labels": list(named),
            "trusted": (list(rows), list(NAMES[true[:30]])),
        },
        {"features": vectors, "labels": pd.Series(named), "trusted": checked},
        {"features": torch.from_numpy(vectors), "labels": pl.Series(named), "trusted": pl.DataFrame(checked)},
        {"source": frame, "features": "v", "trusted": "trusted.csv"},
        {
            "source": pl.DataFrame({"v": vectors, "label": named}),
            "features": "v",
            "trusted": folder / "trusted.csv",
        },
        {"source": folder / "v.parquet", "features": "v", "trusted": (np.arange(90) < 30, NAMES[true])},
    ):
        found = relabel.fit(**arguments, keep_model=True, **TINY)
        pd.testing.assert_frame_equal(columns(found).drop(columns="file_name"), expected)


def test_integers_are_classes_by_their_numbers_and_some_values_stand_for_no_label(data, trusted):
    vectors, _, given = data
    for missing in (None, float("nan"), -1, ""):
        labels = [*given[:-2].tolist(), missing, missing]
        if missing == "":
            labels = [str(label) for label in labels]
        found = relabel.fit(features=vectors, labels=labels, trusted=trusted, corrector="none", **TINY)
        assert found.class_names == ["0", "1", "2"]
        assert found.summary.unlabelled_rows == 2
        assert found.table["original_label"].null_count == 2


def test_nothing_is_printed_and_the_caller_s_random_numbers_and_threads_stay(data, trusted, capfd):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    arguments = {"features": data[0], "labels": data[2], "trusted": trusted, **TINY}
    first = relabel.fit(**arguments)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    second = relabel.fit(**arguments)
    pd.testing.assert_frame_equal(columns(first), columns(second))
    assert capfd.readouterr() == ("", "")
    relabel.fit(**arguments, progress=True)
    out, err = capfd.readouterr()
    assert (out, "Epoch 1/2" in err) == ("", True)


def test_warnings_are_kept_with_the_labels(data, trusted):
    vectors = data[0].copy()
    vectors[-1] = np.nan
    found = relabel.fit(features=vectors, labels=data[2], trusted=trusted, corrector="none", **TINY)
    assert any("1 of 90 vectors cannot be used" in warning for warning in found.warnings)
    assert found.decide(precision=0.5).warnings == found.warnings


def test_an_interruption_passes_through(data, trusted, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("relabel.verbs.fit.fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        relabel.fit(features=data[0], labels=data[2], trusted=trusted, **TINY)


def test_a_model_and_a_corrector_go_on_as_objects_or_files(data, fitted, tmp_path):
    fitted.model.save(tmp_path / "model.pt")
    for labels in (None, NAMES[data[2]]):
        found, expected = (
            relabel.predict(features=data[0], labels=labels, model=model, amp="off")
            for model in (fitted.model, tmp_path / "model.pt")
        )
        assert found.class_names == list(NAMES)
        pd.testing.assert_frame_equal(columns(found), columns(expected))
    fitted.corrector.save(tmp_path / "tmlc.pt")
    kept, read = (
        relabel.apply(features=data[0], labels=data[2], corrector=corrector, **TINY)
        for corrector in (fitted.corrector, str(tmp_path / "tmlc.pt"))
    )
    pd.testing.assert_frame_equal(columns(kept), columns(read))
    with pytest.raises(relabel.RelabelError, match="keep_model=True"):
        kept.model  # noqa: B018


def test_outputs_are_written_as_by_the_flags(data, trusted, folder):
    found = relabel.fit(
        features=data[0], labels=data[2], trusted=trusted, output="labels.parquet",
        save_corrector="tmlc.pt", save_model=Path("model.pt"), **TINY,
    )  # fmt: skip
    pd.testing.assert_frame_equal(columns(relabel.read("labels.parquet")), columns(found))
    assert {path.name for path in folder.iterdir() if path.suffix in (".pt", ".checkpoint")} == {
        "tmlc.pt", "model.pt",
    }  # fmt: skip
    relabel.predict(features=data[0], model="model.pt", output=folder / "predicted.parquet")
    relabel.apply(
        features=data[0], labels=data[2], corrector="tmlc.pt", output="labels.parquet", overwrite=True, **TINY
    )
    assert len(relabel.read(folder / "predicted.parquet")) == len(relabel.read("labels.parquet")) == 90


def test_a_checkpoint_that_was_kept_is_continued(data, trusted, folder, monkeypatch):
    arguments = {"features": data[0], "labels": data[2], "trusted": trusted, **TINY}
    whole = relabel.fit(**arguments)
    from relabel.training import checkpoint

    plain = checkpoint.save

    def save_and_stop(*words):
        plain(*words)
        raise KeyboardInterrupt

    monkeypatch.setattr("relabel.training.checkpoint.save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        relabel.fit(**arguments, checkpoint="state")
    monkeypatch.setattr("relabel.training.checkpoint.save", plain)
    assert Path("state").exists()
    found = relabel.fit(**arguments, checkpoint="state", resume=True)
    pd.testing.assert_frame_equal(columns(found), columns(whole))
    assert not Path("state").exists()


def test_labels_are_held_against_the_truth(data, fitted, folder):
    true = NAMES[data[1]]
    fitted.save("labels.parquet")
    index = np.arange(90)
    expected = relabel.evaluate("labels.parquet", "truth.csv")
    for truth in (
        list(true),
        pl.Series(true),
        pd.DataFrame({"index": index, "label": true}),
        Path("truth.csv"),
        "truth.csv",
        {"index": index, "label": true},
        pa.table({"index": index, "label": true}),
    ):
        assert relabel.evaluate(fitted, truth) == fitted.evaluate(truth) == expected
    assert expected.rows == 60
    with pytest.raises(relabel.RelabelError, match=r"^truth cannot be read"):
        fitted.evaluate(5)


def test_a_data_frame_of_labels_marks_what_is_missing_as_pandas_does(data, trusted, tmp_path):
    vectors, given = data[0].copy(), data[2].astype(object)
    vectors[80], given[70] = np.nan, None
    labels = relabel.fit(features=vectors, labels=given, trusted=trusted, corrector="none", **TINY)
    frame = labels.to_pandas()
    assert np.flatnonzero(frame.error.notna()).tolist() == [80]
    assert np.flatnonzero(frame.original_label.isna()).tolist() == [70]
    assert np.flatnonzero(frame.noise_probability.isna()).tolist() == [70, 80]
    for column in ("soft_label", "corrected_label", "action"):
        assert np.flatnonzero(frame[column].isna()).tolist() == [80]
    soft = np.stack(frame.soft_label.dropna())
    assert (soft.shape, soft.dtype) == ((89, 3), np.float32)
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-5)
    labels.save(tmp_path / "labels.parquet")
    read = pd.read_parquet(tmp_path / "labels.parquet")
    pd.testing.assert_frame_equal(frame.drop(columns="soft_label"), read.drop(columns="soft_label"))


def test_noisy_labels_of_arrays_and_frames(data, folder):
    vectors, true, _ = data
    settings = {"noise": "symmetric", "rate": 0.3, "seed": 3}
    noisy = relabel.corrupt(features=vectors, labels=NAMES[true], output="noisy.csv", **settings)
    assert noisy.actual_rate == pytest.approx(0.3, abs=0.02)
    assert Path("noisy.csv").exists()
    frame = pd.DataFrame({"v": list(vectors), "label": NAMES[true]})
    again = relabel.corrupt(frame, features="v", **settings)
    assert noisy.table["label"] == again.table["label"]


COMMAND = ("v.parquet", "--features", "v", "--trusted", "trusted.csv")
CALL = {"source": "v.parquet", "features": "v", "trusted": "trusted.csv"}


@pytest.mark.parametrize(
    ("command", "flags", "keywords"),
    [
        ("fit", ("--epochs", "1"), {"epochs": 1}),
        ("fit", ("--precision", "95"), {"precision": 95}),
        ("fit", ("--seed", "-1"), {"seed": -1}),
        ("fit", ("--lr", "nan"), {"lr": float("nan")}),
        ("fit", ("--corrector", "nosuch"), {"corrector": "nosuch"}),
        ("fit", ("--preset", "nosuch"), {"preset": "nosuch"}),
        ("fit", ("--option", "nosuch=1"), {"option": {"nosuch": "1"}}),
        ("fit", ("--augment", "spin"), {"augment": "spin"}),
        ("fit", ("--device", "abacus"), {"device": "abacus"}),
        ("fit", ("--image-size", "8"), {"image_size": 8}),
        ("fit", ("--freeze",), {"freeze": True}),
        ("fit", ("--no-cache",), {"cache": False}),
        ("fit", ("--trusted-column", "label"), {"trusted_column": "label"}),
        ("fit", ("--trusted", "nosuch.csv"), {"trusted": "nosuch.csv"}),
        ("fit", ("--labels", "nosuch.csv"), {"labels": Path("nosuch.csv")}),
        ("fit", ("--labels", "trusted.csv"), {"labels": "trusted.csv"}),
        ("fit", ("--features", "nosuch"), {"features": "nosuch"}),
        ("fit", ("-o", "nosuch/labels.parquet"), {"output": "nosuch/labels.parquet"}),
        ("fit", ("-o", "labels.csv"), {"output": "labels.csv"}),
        ("fit", ("-o", "v.parquet"), {"output": "v.parquet"}),
        ("fit", ("-o", "trusted.csv", "--overwrite"), {"output": "trusted.csv", "overwrite": True}),
        ("fit", ("--save-model", "nosuch/m.pt"), {"save_model": "nosuch/m.pt"}),
        ("fit", ("--save-corrector", "v.parquet"), {"save_corrector": "v.parquet"}),
        ("fit", ("--checkpoint", "note.txt"), {"checkpoint": "note.txt"}),
        ("fit", ("--checkpoint", "trusted.csv"), {"checkpoint": "trusted.csv"}),
        ("apply", ("--corrector", "nosuch.pt"), {"corrector": "nosuch.pt"}),
        ("apply", ("--epochs", "0"), {"epochs": 0}),
    ],
)  # fmt: skip
def test_a_mistake_has_the_command_line_s_sentence(capfd, folder, command, flags, keywords):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert cli.run([command, *COMMAND, *flags]) == 2
    sentence = capfd.readouterr().err.splitlines()[-1]
    with pytest.raises(relabel.RelabelError) as refusal:
        getattr(relabel, command)(**{**CALL, **keywords})
    shared = str(refusal.value).replace(f" See help(relabel.{command}).", f" See relabel {command} --help.")
    assert sentence == f"Error: {shared}"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("function", "keywords", "sentence"),
    [
        ("fit", {"features": "v", "trusted": "trusted.csv"}, "fit needs source."),
        ("fit", CALL | {"epoch": 2}, "fit has no keyword epoch. Did you mean epochs?"),
        ("fit", {"source": "v.parquet", "features": "v"}, "fit needs trusted rows"),
        ("fit", CALL | {"features": np.eye(3)}, "source and an array of features are both data."),
        ("fit", CALL | {"trusted": [1, 2]}, "trusted is a list, not a pair of rows and labels."),
        ("fit", CALL | {"labels": ["cat"]}, "labels"),
        ("fit", CALL | {"output": "-"}, "--output -: only the command line writes to standard output."),
        ("predict", {"source": "v.parquet", "features": "v"}, "predict needs model."),
        ("predict", {"source": "v.parquet", "features": "v", "model": "m.pt"}, "--model m.pt: no such file."),
        ("corrupt", {"source": "v.parquet", "features": "v", "noise": "pink", "rate": 0.1}, "--noise pink"),
        ("corrupt", {"source": "v.parquet", "features": "v", "noise": "symmetric", "rate": 2}, "--rate 2"),
        ("evaluate", {"labels": "note.txt", "truth": "truth.csv"}, "note.txt is not a Parquet file"),
        ("read", {"path": "nosuch.parquet"}, "nosuch.parquet"),
        ("pretrain", {"sources": ["v.parquet", "nosuch"], "features": "v"}, "nosuch"),
    ],
)  # fmt: skip
def test_a_mistake_of_python_alone_is_one_sentence_too(folder, function, keywords, sentence):
    with pytest.raises(relabel.RelabelError) as refusal:
        getattr(relabel, function)(**keywords)
    assert sentence in refusal.value.message + (" " + refusal.value.hint if refusal.value.hint else "")
    assert str(refusal.value).endswith((".", "?"))


@pytest.mark.parametrize(
    "state", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_the_state_of_torch_around_a_call_changes_nothing(data, trusted, state):
    vectors, _, given = data
    plain = relabel.fit(features=vectors, labels=given, trusted=trusted, **TINY)
    with state():
        assert relabel.fit(features=vectors, labels=given, trusted=trusted, **TINY).table == plain.table


def test_another_default_type_changes_nothing_and_stays(data, trusted):
    vectors, _, given = data
    plain = relabel.fit(features=vectors, labels=given, trusted=trusted, **TINY)
    torch.set_default_dtype(torch.float64)
    try:
        assert relabel.fit(features=vectors, labels=given, trusted=trusted, **TINY).table == plain.table
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_calls_of_several_threads_do_not_share_random_numbers(data, trusted):
    vectors, _, given = data

    def table(seed: int) -> pa.Table:
        return relabel.fit(features=vectors, labels=given, trusted=trusted, seed=seed, **TINY).table

    expected = [table(1), table(2)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(table, [1, 2])) == expected


def test_labels_may_come_from_a_generator(data, trusted):
    vectors, _, given = data
    plain = relabel.fit(features=vectors, labels=given, trusted=trusted, **TINY)
    found = relabel.fit(features=vectors, labels=(int(label) for label in given), trusted=trusted, **TINY)
    assert found.table == plain.table
