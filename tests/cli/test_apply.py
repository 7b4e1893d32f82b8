"""A user without any trusted row corrects labels with what a corrector has learned on other data."""

import io
import json
import os
import pickle
import shlex

import pyarrow.parquet as pq
import pytest
import torch

from relabel.config import SHIPPED_CORRECTOR

SMALL = ("--image-size", "8", "--device", "cpu", "--batch-size", "16")
TINY = ("--epochs", "2", *SMALL)
APPLY = ("apply", "images", "--corrector", "tmlc.pt")
COMMIT = "0123456789" * 4
LAST_SENTENCE = "Name a file that fit --corrector tmlc --save-corrector or pretrain has written."


@pytest.fixture
def corrector(fit, folder):
    """`tmlc.pt` of a small fit."""
    assert fit("-q", "--save-corrector", "tmlc.pt", "-o", "fit.parquet").code == 0
    return folder / "tmlc.pt"


@pytest.fixture
def apply(run, corrector):
    return lambda *flags, source="images": run("apply", source, "--corrector", "tmlc.pt", *TINY, *flags)


def columns(path="labels.parquet"):
    return pq.read_table(path).to_pydict()


def metadata(path="labels.parquet"):
    return json.loads(pq.read_schema(path).metadata[b"relabel"])


def test_the_file_has_the_columns_of_fit(apply, folder, files):
    (folder / "images/red/unreadable.png").write_bytes(b"no picture")
    before = files()
    done = apply()
    assert done.code == 0
    assert set(files()) - set(before) == {"labels.parquet"}
    assert pq.read_schema("labels.parquet").equals(pq.read_schema("fit.parquet"))
    found = columns()
    *good, broken = range(29)
    assert found["file_name"][:28] == columns("fit.parquet")["file_name"]
    assert found["original_label"] == ["blue"] * 14 + ["red"] * 15
    assert found["trusted"] == [False] * 29
    assert all(found["error"][row] is None for row in good)
    assert found["error"][broken]
    assert found["corrected_label"][broken] is found["soft_label"][broken] is found["action"][broken] is None
    assert all(0 <= found["noise_probability"][row] <= 1 for row in good)
    assert all(sum(found["soft_label"][row]) == pytest.approx(1, abs=1e-5) for row in good)
    assert "1 of 29 images cannot be used" in done.err
    assert "0 trusted rows calibrate the labels, 3 given labels are held out." in done.err
    assert "Epoch 2/2 (meta)" in done.err
    assert "\nFixes " in done.err
    assert "name trusted rows with --trusted" in done.err


def test_the_file_says_what_made_it(apply, run):
    assert apply("-q", "--precision", "0.8").code == 0
    recorded = metadata()
    assert (recorded["corrector"], recorded["trusted_rows"], recorded["epochs"]) == ("tmlc", 0, 2)
    assert recorded["pretrained"]["file"] == "tmlc.pt"
    assert recorded["pretrained"]["trusted_rows"] == 8
    assert recorded["calibration"]["calibration_rows"] == 0
    assert recorded["calibration"]["selection"]["precision"] == 0.8
    assert (
        recorded["command"]
        == f"relabel apply images --corrector tmlc.pt {shlex.join(TINY)} -q --precision 0.8"
    )
    assert "Trusted rows" in run("inspect", "labels.parquet").out.decode()


def test_without_a_corrector_it_is_the_one_that_comes_with_relabel(run, folder):
    assert run("apply", "images", *TINY, "-q").code == 0
    recorded = metadata()
    assert recorded["pretrained"]["file"] == "tmlc.pt"
    assert recorded["command"] == f"relabel apply images {shlex.join(TINY)} -q"
    card = json.loads(run("inspect", "--json").out)
    assert {name: recorded["pretrained"][name] for name in ("sources", "episodes")} == {
        name: card[name] for name in ("sources", "episodes")
    }
    assert (card["kind"], card["corrector"]) == ("relabel corrector", "tmlc")
    assert {"noise", "backbones", "image_sizes"} < set(card)
    shown = run("inspect").out.decode()
    assert "Corrector file" in shown
    assert "cifar10" in shown
    assert SHIPPED_CORRECTOR.stat().st_size < 1_000_000


def test_other_classes_and_another_backbone_are_no_hindrance(apply, folder, tools):
    for number in range(6):
        for name, colour in (("a", "red"), ("b", "blue"), ("c", "red")):
            tools["draw"](folder / f"other/{name}/{number}.png", colour, (12, 12), seed=300 + number)
    assert apply("-q", "--backbone", "mobilenet_v3_small", source="other").code == 0
    assert metadata()["class_names"] == ["a", "b", "c"]
    assert metadata()["backbone"] == "mobilenet_v3_small"
    assert {len(row) for row in columns()["soft_label"]} == {3}


def test_trusted_rows_calibrate(apply):
    done = apply("--trusted", "trusted.csv", "--json")
    assert done.code == 0
    summary = json.loads(done.out)
    assert (summary["rows"], summary["trusted_rows"]) == (28, 8)
    assert summary["calibration"]["calibration_rows"] == 8
    assert sum(columns()["trusted"]) == 8
    assert "8 trusted rows calibrate the labels, " in done.err


def test_a_seed_repeats_it(apply):
    assert apply("-q").code == apply("-q", "-o", "again.parquet").code == 0
    assert pq.read_table("labels.parquet").equals(pq.read_table("again.parquet"))
    assert apply("-q", "-o", "other.parquet", "--seed", "1").code == 0
    assert columns("other.parquet")["soft_label"] != columns()["soft_label"]


def test_standard_output_is_the_file(apply):
    done = apply("-o", "-")
    assert done.code == 0
    assert "Wrote the labels to standard output" in done.err
    assert apply("-q").code == 0
    assert pq.read_table(io.BytesIO(done.out)).equals(pq.read_table("labels.parquet"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("images", "--corrector", "nosuch.pt"), "--corrector nosuch.pt: no such file."),
        (("images", "--corrector", "images"), "--corrector images: no such file."),
        (("images", "--corrector", "trusted.csv"), "trusted.csv is not a corrector file"),
        (("images", "--corrector", "mslc.pt"), f"A trained mslc is of no use on other data. {LAST_SENTENCE}"),
        (("images", "--corrector", "model.pt"), "model.pt is not a corrector file."),
        (("images", "--corrector", "hf://user"), "hf://user is not the name of a file on the Hub."),
        (("images", "--corrector", "hf://user/repo/../x.pt"), "hf://user/repo/tmlc.pt"),
        (("nosuch", "--corrector", "tmlc.pt"), "'nosuch'"),
        (("--corrector", "tmlc.pt"), "Missing argument 'SOURCE'."),
        (("images", "--corrector", "tmlc.pt", "--trusted", "nosuch.csv"), "nosuch.csv"),
        (("images", "--corrector", "tmlc.pt", "--precision", "95"), "--precision 95"),
        (("images", "--corrector", "tmlc.pt", "--epochs", "1"), "--epochs 1"),
        (("images", "--corrector", "tmlc.pt", "--option", "target=given"), "--option"),
        (("images", "--corrector", "tmlc.pt", "-o", "fit.parquet"), "fit.parquet exists"),
        (("images", "--corrector", "tmlc.pt", "-o", "."), "The output . is a folder."),
        (("images", "--corrector", "tmlc.pt", "-o", "tmlc.pt", "--overwrite"), "is also --corrector"),
        (("images", "--corrector", "tmlc.pt", "--checkpoint", "tmlc.pt"), "is also --corrector"),
        (
            ("images", "--corrector", "tmlc.pt", "--trusted", "list.csv", "-o", "list.csv", "--overwrite"),
            "is also --trusted",
        ),
        (("images", "--corrector", "tmlc.pt", "-o", "-", "--json"), "both want standard output"),
        (("images", "--corrector", "tmlc.pt", "--labels", "nosuch.csv"), "nosuch.csv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_nothing_is_written(run, made, files, arguments, sentence):
    before = files()
    done = run("apply", *arguments)
    assert done.code == 2
    assert done.err.startswith("Error: ")
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert not done.out
    assert files() == before


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A transferable corrector, one that is not and a model, as files would hold them."""
    from relabel.calibration import calibrate
    from relabel.correctors import registry
    from relabel.files import save_tensors
    from relabel.label_noise.transition_matrix import TransitionEstimate
    from relabel.saved.corrector_file import CorrectorFile

    written = tmp_path_factory.mktemp("correctors")
    no_rows = torch.zeros(0, dtype=torch.int64).numpy()
    nothing = calibrate.fit(
        {"late": torch.zeros(0, 2).numpy(), "last": torch.zeros(0, 2).numpy()},
        no_rows, no_rows, TransitionEstimate.of(torch.zeros(2, 2, dtype=torch.int64).numpy()), 0,
    ).calibration_prior  # fmt: skip
    for name in ("tmlc", "mslc"):
        torch.manual_seed(0)
        made = registry.create(name, 2, 256)
        CorrectorFile.of(made, name, 2, 256, {}, {}, nothing).save(written / f"{name}.pt")
    save_tensors(written / "model.pt", "model", 1, {})
    return written


@pytest.fixture
def made(folder, written):
    """Those files in the current folder, without the cost of a fit."""
    for path in written.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for name in ("fit.parquet", "list.csv"):
        (folder / name).touch()
    return folder / "tmlc.pt"


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("half", "tmlc.pt is not a corrector file that can be loaded safely"),
        ("code", "tmlc.pt is not a corrector file that can be loaded safely"),
        ("pickle", "tmlc.pt is not a corrector file that can be loaded safely"),
        ("text", "tmlc.pt is not a corrector file that can be loaded safely"),
        ("newer", "tmlc.pt has format 99"),
        ("part", "tmlc.pt is not a whole corrector file"),
        ("shape", "tmlc.pt does not hold the parameters of tmlc"),
        ("calibration_prior", "tmlc.pt does not hold the parameters of tmlc"),
    ],
)
def test_a_damaged_or_hostile_corrector_is_one_sentence_and_nothing_in_it_runs(
    run, made, files, folder, kind, sentence
):
    content = torch.load(made, weights_only=True)
    changed = {
        "code": {"trained": Evil()},
        "newer": {"format": 99},
        "part": {"state": None},
        "shape": {"state": {**content["state"], "encoder.weight_ih_l0": torch.zeros(3)}},
        "calibration_prior": {
            "calibration_prior": {**content["calibration_prior"], "right": torch.ones(3, dtype=torch.bool)}
        },
    }
    if kind in changed:
        torch.save(content | changed[kind], made)
    else:
        whole = made.read_bytes()
        made.write_bytes({"half": whole[:5000], "pickle": pickle.dumps(Evil()), "text": b"a,b\n"}[kind])
    before = files()
    done = run(*APPLY, *TINY)
    assert not (folder / "evil").exists()
    assert done.code == 2
    assert done.err.startswith(f"Error: {sentence}")
    assert done.err.count("\n") == 1
    assert files() == before


def test_real_processes_apply_and_inspect_through_a_pipe(start, made, files):
    """With a corrector from the Hub's cache, and no network."""
    cached = made.parent / f"hub/models--user--repo/snapshots/{COMMIT}/tmlc.pt"
    cached.parent.mkdir(parents=True)
    made.rename(cached)
    refs = cached.parents[2] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    offline = {**os.environ, "HF_HOME": str(made.parent), "HF_HUB_OFFLINE": "1"}
    offline.pop("HF_HUB_CACHE", None)
    before = files()
    command = ("apply", "images", "--corrector", "hf://user/repo", *TINY, "-o", "-", "-q")
    first = start(*command, env=offline)
    second = start("inspect", "-", "--json", stdin=first.stdout)
    first.stdout.close()
    out, err = second.communicate(timeout=120)
    assert (first.wait(60), first.stderr.read(), second.returncode, err) == (0, b"", 0, b"")
    recorded = json.loads(out)
    assert (recorded["rows"], recorded["corrector"]) == (28, "tmlc")
    assert recorded["pretrained"]["file"] == str(cached)
    assert files() == before


@pytest.fixture
def interrupted(run, made, stopped):
    """A run that was stopped after its first epoch."""
    return stopped(lambda: run(*APPLY, "--epochs", "4", *SMALL))


def test_an_interrupted_run_is_continued_to_the_same_result(run, interrupted, files):
    assert interrupted.code == 130
    program, *arguments = shlex.split(interrupted.err.splitlines()[-1].split("continue with: ")[1])
    assert (program, arguments[:3]) == ("relabel", ["apply", "--resume", "images"])
    done = run(*arguments)
    assert done.code == 0
    assert "Resuming after epoch 1" in done.err
    assert run(*APPLY, "--epochs", "4", *SMALL, "-q", "-o", "whole.parquet").code == 0
    assert columns() == columns("whole.parquet")
    assert ".labels.parquet.checkpoint" not in files()


def test_another_corrector_in_the_same_file_does_not_continue_the_run(run, interrupted, made, files):
    content = torch.load(made, weights_only=True)
    content["state"]["encoder.weight_ih_l0"] += 1
    whole = made.read_bytes()
    torch.save(content, made)
    before = files()
    done = run(*APPLY, "--epochs", "4", *SMALL, "--resume")
    assert done.code == 2
    assert "belongs to a run with other data or other settings" in done.err
    assert files() == before
    made.with_name("moved.pt").write_bytes(whole)
    moved = ("apply", "images", "--corrector", "moved.pt", "--epochs", "4", *SMALL, "--resume")
    assert run(*moved, "-q").code == 0, "the same corrector, wherever it lies"
