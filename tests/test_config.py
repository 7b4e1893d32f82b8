from pathlib import Path

import numpy as np
import pytest

from relabel.config import (
    NOISES,
    ApplyConfig,
    CorruptConfig,
    EvaluateConfig,
    FitConfig,
    PredictConfig,
    PretrainConfig,
)
from relabel.correctors.registry import in_words
from relabel.errors import RelabelError
from relabel.options import build, changed, options_of, values_of
from relabel.simulate import noise


def config(**values) -> FitConfig:
    return build(FitConfig, source="images", trusted="trusted.csv", **values)


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--precision", [{"precision": value} for value in (0, 1, 95, float("nan"))]),
        ("--image-size", [{"image_size": value} for value in (7, 1025)]),
        ("--epochs", [{"epochs": value} for value in (1, 0, -3)]),
        ("--batch-size", [{"batch_size": 1}]),
        ("--meta-every", [{"meta_every": value} for value in (0, -1)]),
        ("--meta-batch-size", [{"meta_batch_size": 0}]),
        ("--warmup", [{"warmup": 0}, {"warmup": 5, "epochs": 5}]),
        ("--lr", [{"lr": value} for value in (0, -1, float("nan"), float("inf"))]),
        ("--meta-lr", [{"meta_lr": value} for value in (0, -1, float("nan"), float("inf"))]),
        ("--seed", [{"seed": value} for value in (-1, 2**63)]),
        ("--freeze", [{"freeze": True}]),
    ],
)
def test_a_value_no_run_can_have_is_refused_by_its_flag(flag, values):
    for value in values:
        with pytest.raises(RelabelError, match=f"^{flag} "):
            config(**value)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--backbone cnn8", {"backbone": "cnn8"}),
        ("--weights w.pt", {"weights": "w.pt"}),
        ("--freeze", {"freeze": True}),
        ("--image-size 8", {"image_size": 8}),
        ("--augment none", {"augment": "none"}),
        ("--no-cache", {"cache": False}),
    ],
)
def test_what_is_about_images_does_not_go_with_vectors(flag, value):
    with pytest.raises(RelabelError, match=f"^{flag} is for images, and --features f_\\* names vectors"):
        config(features="f_*", **value)


def test_a_model_of_vectors_decodes_nothing():
    with pytest.raises(RelabelError, match=r"^--no-cache is for images, and --features f_\* names vectors"):
        build(PredictConfig, source="v.parquet", model="m.pt", features="f_*", cache=False)


def test_the_mlp_goes_with_vectors_alone():
    config(features="f_*", backbone="mlp")
    with pytest.raises(RelabelError, match=r"^--backbone mlp takes vectors"):
        config(backbone="mlp")


def test_the_edges_are_allowed():
    config(image_size=8, epochs=2, warmup=1, batch_size=2, seed=2**63 - 1, precision=0.999)
    config(warmup=100, weights="imagenet", freeze=True, meta_every=1, meta_batch_size=1)


@pytest.mark.parametrize(
    ("keyword", "value", "sentence"),
    [
        ("epochs", "many", "Invalid value for '--epochs': not a valid integer."),
        ("epochs", 2.5, "Invalid value for '--epochs': not a valid integer."),
        ("seed", True, "Invalid value for '--seed': not a valid integer."),
        ("seed", None, "Invalid value for '--seed': not a valid integer."),
        ("lr", "fast", "Invalid value for '--lr': not a valid number."),
        ("freeze", "yes", "Invalid value for '--freeze': not true or false."),
        ("labels", 3, "Invalid value for '--labels': not a path."),
        ("weights", 3, "Invalid value for '--weights': not a text."),
        ("option", "start=random", "Invalid value for '--option': not a mapping of names to values."),
        ("meta_gradient", "first-layer", "'first-layer' is not one of 'last-layer', 'exact'."),
        (
            "device",
            ["cpu"],
            "Invalid value for '--device': ['cpu'] is not one of 'auto', 'cpu', 'cuda', 'mps'.",
        ),
        ("source", 3, "Invalid value for 'SOURCE': not a text."),
    ],
)
def test_a_value_of_another_type_is_reported_by_its_flag_as_on_the_command_line(keyword, value, sentence):
    with pytest.raises(RelabelError) as refusal:
        build(FitConfig, **{"source": "images", keyword: value})
    assert sentence in refusal.value.message
    assert refusal.value.hint == "See help(relabel.fit)."


def test_an_unknown_keyword_is_reported_with_the_one_that_was_meant():
    with pytest.raises(RelabelError, match=r"^fit has no keyword epoch\. Did you mean epochs\?$"):
        config(epoch=3)
    with pytest.raises(RelabelError, match=r"^predict needs model\."):
        build(PredictConfig, source="images")


def test_numbers_and_paths_of_other_kinds_are_taken():
    found = config(epochs=np.int64(3), lr=np.float32(0.5), freeze=np.bool_(False), labels="given.csv")
    assert (found.training.epochs, found.training.lr, found.network.freeze) == (3, 0.5, False)
    assert found.labels == Path("given.csv")
    assert build(FitConfig, source=Path("images")).source == "images"


CONFIGS = (FitConfig, ApplyConfig, PredictConfig, PretrainConfig, CorruptConfig, EvaluateConfig)


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_option_is_declared_once_and_survives_a_change(kind):
    options = options_of(kind)
    assert len({option.name for option in options}) == len(options)
    assert all(in_words(option.words.help).endswith(".") for option in options)
    needed = {option.name: "x" for option in options if option.is_needed and option.types[0] is not float}
    needed |= {option.name: 0.5 for option in options if option.is_needed and option.types[0] is float}
    whole = build(kind, **needed)
    assert values_of(whole).keys() == {option.called for option in options}
    for option in options:
        if option.default == 0 and option.types[0] is int:
            assert values_of(changed(whole, **{option.name: 1}))[option.called] == 1


def test_the_noises_are_those_there_are():
    assert tuple(noise.NOISE_MODELS) == NOISES
