import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from relabel import backbones
from relabel.backbones import Backbone, build
from relabel.data.batches import ImageInputs
from relabel.device import resolve
from relabel.errors import RelabelError


def images(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(size))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("size", [8, 9, 33, 64, 150])
def test_cnn8_takes_any_size_from_8_px(size: int) -> None:
    backbone = build("cnn8", 5, size)
    logits, features = backbone(images(size))
    assert logits.shape == (2, 5)
    assert features.shape == (2, backbone.head.in_features)
    assert torch.equal(logits, backbone.head(features))


@pytest.mark.parametrize("name", ["cnn8", "resnet18", "mobilenet_v3_small"])
def test_logits_are_the_head_of_the_features_in_float32_under_autocast(name: str) -> None:
    backbone = build(name, 4, 8).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits, features = backbone(images(8))
    assert logits.dtype == features.dtype == torch.float32
    assert torch.equal(logits, backbone.head(features))


def test_linear_is_the_head_alone() -> None:
    vectors = torch.randn(3, 7)
    logits, features = backbones.linear(7, 4)(vectors)
    assert logits.shape == (3, 4)
    assert torch.equal(features, vectors)


@pytest.mark.parametrize("dimension", [1, 300])
def test_the_mlp_standardises_and_keeps_the_statistics_in_its_state(dimension: int) -> None:
    vectors = torch.randn(8, dimension) * 1e6 + 1e7
    mean, scale = vectors.mean(dim=0), 1 / vectors.std(dim=0)
    scale[0] = 0  # a dimension that was the same in every row
    torch.manual_seed(0)
    backbone = backbones.mlp(4, mean, scale)
    backbone.train()(vectors)
    logits, features = backbone.eval()(vectors)
    assert logits.shape == (8, 4)
    assert features.shape == (8, backbone.head.in_features)
    assert torch.equal(logits, backbone.head(features))
    other = backbones.mlp(4, torch.zeros(dimension), torch.ones(dimension))
    other.load_state_dict(backbone.state_dict())
    assert torch.equal(other.eval()(vectors)[0], logits)
    vectors[:, 0] += 1e9
    assert torch.equal(backbone(vectors)[0], logits)


@pytest.mark.parametrize(
    ("name", "size", "resolution"),
    [
        ("resnet18", 64, 64),
        ("resnet18", 65, 17),  # the usual stem: a stride of two, twice
        ("mobilenet_v3_small", 64, 64),
        ("mobilenet_v3_small", 65, 33),
    ],
)
def test_the_stem_keeps_the_resolution_of_small_images(name: str, size: int, resolution: int) -> None:
    backbone = build(name, 3, size).eval()
    first_block = {"resnet18": "layer1", "mobilenet_v3_small": "features.1"}[name]
    seen: list[torch.Size] = []
    backbone.body.get_submodule(first_block).register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape[2:])
    )
    with torch.no_grad():
        assert backbone(images(size, batch=1))[0].shape == (1, 3)
    assert seen == [torch.Size([resolution, resolution])]


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet19", "none", "resnet19: no such backbone"),
        ("fcn_resnet50", "none", "fcn_resnet50: no such backbone"),
        ("squeezenet1_0", "none", "squeezenet1_0: its last layer is not linear"),
        ("cnn8", "imagenet", "cnn8 has no ImageNet weights"),
        ("cnn8", "nowhere.pt", "nowhere.pt: no such file"),
        ("resnet18", "nowhere.pt", "nowhere.pt: no such file"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, weights: str, message: str) -> None:
    with pytest.raises(RelabelError, match=message) as caught:
        build(name, 3, 32, weights)
    assert caught.value.hint


def saved(path: Path, state: object) -> str:
    torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_of_the_same_class_count_are_taken_whole(tmp_path: Path, wrapped: bool) -> None:
    state = build("cnn8", 4, 8).state_dict()
    path = saved(tmp_path / "weights.pt", {"state_dict": state, "epoch": 3} if wrapped else state)
    assert_same(build("cnn8", 4, 8, path).state_dict(), state)


def test_torchvision_weights_of_the_same_class_count_are_taken_whole(tmp_path: Path) -> None:
    model = models.mobilenet_v3_small(num_classes=4)
    path = saved(tmp_path / "weights.pt", model.state_dict())
    backbone = build("mobilenet_v3_small", 4, 65, path).eval()
    assert torch.equal(backbone(images(65))[0], model.eval()(images(65)))


def test_weights_of_another_class_count_leave_the_head_fresh(tmp_path: Path) -> None:
    donor = build("cnn8", 7, 8)
    backbone = build("cnn8", 4, 8, saved(tmp_path / "weights.pt", donor.state_dict()))
    assert_same(backbone.body.state_dict(), donor.body.state_dict())
    assert backbone(images(8))[0].shape == (2, 4)


def test_torchvision_weights_of_another_class_count_leave_the_head_fresh(tmp_path: Path) -> None:
    model = models.mobilenet_v3_small(num_classes=7)
    backbone = build("mobilenet_v3_small", 4, 65, saved(tmp_path / "weights.pt", model.state_dict()))
    model.classifier[3] = nn.Identity()
    assert_same(backbone.body.state_dict(), model.state_dict())
    assert backbone.head.out_features == 4


def test_a_small_image_stem_keeps_the_centre_of_the_loaded_kernel(tmp_path: Path) -> None:
    model = models.resnet18()
    backbone = build("resnet18", 4, 32, saved(tmp_path / "weights.pt", model.state_dict()))
    stem = backbone.body.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    assert torch.equal(stem.weight, model.conv1.weight[:, :, 2:5, 2:5])


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fc.weight": torch.zeros(2, 2)}, "does not fit the backbone"),
        ([torch.zeros(2)], "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path: Path, state: object, message: str) -> None:
    path = saved(tmp_path / "weights.pt", state)
    with pytest.raises(RelabelError, match=message) as caught:
        build("cnn8", 4, 8, path)
    assert path in caught.value.message


@pytest.mark.parametrize(("donor", "name"), [("cnn8", "resnet18"), ("resnet18", "cnn8")])
def test_weights_of_another_architecture_are_refused(tmp_path: Path, donor: str, name: str) -> None:
    path = saved(tmp_path / "weights.pt", build(donor, 4, 32).state_dict())
    with pytest.raises(RelabelError, match="does not fit the backbone"):
        build(name, 4, 32, path)


def test_a_part_of_a_state_dict_is_refused(tmp_path: Path) -> None:
    state = build("cnn8", 4, 8).state_dict()
    del state["body.0.0.weight"]
    with pytest.raises(RelabelError, match=r"first body\.0\.0\.weight"):
        build("cnn8", 4, 8, saved(tmp_path / "weights.pt", state))


def test_a_file_that_is_no_torch_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not weights")
    with pytest.raises(RelabelError, match="safely"):
        build("cnn8", 4, 8, str(path))


def test_code_in_a_weights_file_is_not_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = saved(tmp_path / "weights.pt", RunsCode(marker))
    with pytest.raises(RelabelError, match="safely"):
        build("cnn8", 4, 8, path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file does hold code that runs when it is loaded carelessly"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache laid out as torchvision's, and a network that answers nothing."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints / models.MobileNet_V3_Small_Weights.DEFAULT.url.rpartition("/")[2]


def imagenet() -> Backbone:
    return build("mobilenet_v3_small", 4, 65, "imagenet")


def test_imagenet_weights_come_from_the_torchvision_cache(cache: Path) -> None:
    model = models.mobilenet_v3_small()
    torch.save(model.state_dict(), cache)
    backbone = imagenet()
    model.classifier[3] = nn.Identity()
    assert_same(backbone.body.state_dict(), model.state_dict())
    assert backbone.head.out_features == 4


def test_imagenet_weights_without_cache_and_network_are_refused(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RelabelError, match="could not be downloaded") as caught:
        imagenet()
    assert "mobilenet_v3_small" in caught.value.message
    assert "TORCH_HOME" in caught.value.hint
    assert not cache.exists()
    assert capsys.readouterr().out == "", "standard output is for the labels file"


def test_code_in_the_cache_is_not_executed(cache: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save(RunsCode(marker), cache)
    with pytest.raises(RelabelError):
        imagenet()
    assert not marker.exists()


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_a_head_on_standardised_features_becomes_one_on_plain_features(offset: float) -> None:
    torch.manual_seed(0)
    backbone, head = build("cnn8", 5, 8), nn.Linear(256, 3)
    features = torch.randn(6, 256) + offset
    mean, scale = features.mean(dim=0), 1 / features.std(dim=0)
    scale[7] = 0  # a feature that was the same in every row
    folded = backbones.with_head(backbone, head, mean, scale)
    assert folded.body is backbone.body
    torch.testing.assert_close(folded.head(features), head((features - mean) * scale), rtol=1e-3, atol=1e-3)
    features[:, 7] += 1000
    torch.testing.assert_close(folded.head(features), head((features - mean) * scale), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("rows", "batch_size", "sizes"), [(1, 2, [1]), (5, 2, [2, 2, 1]), (20, None, [16, 4])]
)
def test_evaluation_goes_through_every_row_once_in_order_without_a_trace(
    rows: int, batch_size: int | None, sizes: list[int]
) -> None:
    backbone = build("cnn8", 3, 8)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)
    inputs, compute = ImageInputs(pixels, "flip"), resolve("cpu", "off")
    batches = list(backbones.evaluate(backbone, inputs, compute, batch_size=batch_size))
    assert [len(index) for index, _, _ in batches] == sizes
    every = torch.arange(rows)
    assert torch.equal(torch.cat([index for index, _, _ in batches]), every)
    logits, features = backbone.eval()(inputs.batch(every, compute.device, None))
    torch.testing.assert_close(torch.cat([batch for _, batch, _ in batches]), logits)
    torch.testing.assert_close(torch.cat([batch for _, _, batch in batches]), features)
    assert_same(backbone.state_dict(), before)


@pytest.mark.parametrize("name", ["cnn8", "resnet18"])
def test_an_untracked_forward_pass_is_any_other_but_for_the_running_statistics(name: str) -> None:
    torch.manual_seed(0)
    backbone = build(name, 3, 16)
    fixed = nn.BatchNorm2d(3, track_running_stats=False)
    backbone.body = nn.Sequential(fixed, backbone.body)
    inputs = images(16, batch=4)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with backbones.untracked(backbone):
        found = backbone(inputs)
    assert_same(backbone.state_dict(), before)

    expected = backbone(inputs)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    moved = [key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])]
    assert moved
    assert all("running" in key or "tracked" in key for key in moved)
    assert not fixed.track_running_stats


def test_running_statistics_are_tracked_again_after_an_error() -> None:
    backbone = build("cnn8", 3, 8)
    with pytest.raises(RuntimeError), backbones.untracked(backbone):
        backbone(torch.zeros(2, 5, 8, 8))  # five channels
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.track_running_stats for norm in norms)
