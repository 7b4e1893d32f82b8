from pathlib import Path

import pytest

from relabel.config import DEFAULT_CORRECTOR, PRESETS, RECIPES, FitConfig, PredictConfig, SourceOptions
from relabel.correctors import registry
from relabel.correctors.registry import REGISTRY
from relabel.errors import RelabelError
from relabel.verbs.fit import schedule_for


def config(**values) -> FitConfig:
    return FitConfig("images", Path("trusted.csv"), **values)


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
        ("--lr", [{"learning_rate": value} for value in (0, -1, float("nan"), float("inf"))]),
        ("--meta-lr", [{"meta_learning_rate": value} for value in (0, -1, float("nan"), float("inf"))]),
        ("--seed", [{"seed": value} for value in (-1, 2**63)]),
        ("--freeze", [{"freeze": True}]),
        ("--preset", [{"preset": "mslc"}, {"preset": "mslc-paper", "corrector": "mlc"}]),
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
        config(reading=SourceOptions(features="f_*"), **value)


def test_a_model_of_vectors_decodes_nothing():
    with pytest.raises(RelabelError, match=r"^--no-cache is for images, and --features f_\* names vectors"):
        PredictConfig("v.parquet", Path("m.pt"), reading=SourceOptions(features="f_*"), cache=False)


def test_the_mlp_goes_with_vectors_alone():
    config(reading=SourceOptions(features="f_*"), backbone="mlp")
    with pytest.raises(RelabelError, match=r"^--backbone mlp takes vectors"):
        config(backbone="mlp")


def test_the_edges_are_allowed():
    config(image_size=8, epochs=2, warmup=1, batch_size=2, seed=2**63 - 1, precision=0.999)
    config(warmup=100, weights="imagenet", freeze=True, meta_every=1, meta_batch_size=1)


def test_a_preset_names_its_corrector_or_agrees_with_the_one_asked_for():
    for name, preset in PRESETS.items():
        for corrector in (None, preset.corrector):
            assert config(preset=name, corrector=corrector).recipe is preset


@pytest.mark.parametrize("corrector", REGISTRY)
def test_without_a_preset_the_recipe_is_the_corrector_s_own(corrector):
    assert config(corrector=corrector).recipe is RECIPES[corrector]
    assert RECIPES[corrector].corrector == corrector


def test_the_default_corrector_is_registered():
    assert config().recipe is RECIPES[DEFAULT_CORRECTOR]


@pytest.mark.parametrize("recipe", [*RECIPES.values(), *PRESETS.values()], ids=[*RECIPES, *PRESETS])
def test_a_recipe_can_be_followed(recipe):
    registry.check(recipe.corrector, recipe.options)
    assert 0 < recipe.warmup < 1
    assert recipe.meta_every >= 1
    assert recipe.meta_batch_size >= 1
    config(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        meta_learning_rate=recipe.meta_learning_rate,
    )


def test_the_recipe_s_rates_and_optimizer_reach_the_schedule():
    """MLC's paper moves T by plain gradient descent after a virtual step of 1e-3 (section 4.1)."""
    schedule = schedule_for(config(preset="mlc-paper"), 1000)
    assert (schedule.meta_optimizer, schedule.meta_learning_rate) == ("sgd", 1e-2)
    assert schedule.virtual_learning_rate == 1e-3
    assert schedule_for(config(corrector="mlc"), 1000).meta_optimizer == "adam"


@pytest.mark.parametrize("name", PRESETS)
def test_a_paper_s_milestones_are_whole_epochs(name):
    preset = PRESETS[name]
    assert name == f"{preset.corrector}-paper"
    assert preset.epochs
    assert preset.epochs * preset.warmup == pytest.approx(round(preset.epochs * preset.warmup))
    assert preset.milestones is not None, "no paper has the one cycle"
    for milestone in preset.milestones:
        reached = preset.epochs * milestone
        assert reached == pytest.approx(round(reached))
        assert round(reached) >= milestone * preset.epochs, "reached by the epoch's first batch"
    assert list(preset.milestones) == sorted(preset.milestones)
