import pytest

from relabel.config import FitConfig, PredictConfig
from relabel.errors import RelabelError
from relabel.options import build


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
        ("--meta-gradient", [{"meta_gradient": "first-layer"}]),
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
