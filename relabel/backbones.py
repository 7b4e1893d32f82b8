"""Backbones by name: modules that return (logits, features).

`cnn8` is ours, for small images and small budgets; `mlp` is for vectors (`--features`); `linear` is the head
alone, for features computed once (`--freeze`); every classification model of torchvision whose last layer is
a `nn.Linear` joins by its torchvision name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from relabel.data.batches import ImageInputs, Inputs, VectorInputs
from relabel.device import Compute
from relabel.errors import RelabelError
from relabel.modality import VECTORS, of_values
from relabel.sample_memory import per_sample

SMALL_IMAGE = 64  # up to this size a stem that divides the resolution by four would leave nothing to see


class Backbone(nn.Module):
    """A feature extractor and a linear head.

    `forward(inputs)` returns (logits [B, C], features [B, D]) with logits = head(features); the
    last-layer meta-gradient relies on exactly that. Logits are float32 whatever the autocast type:
    a probability of 1e-4 has to survive the subtraction 1 - p.
    """

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, 3, H, W] or [B, D] to (logits [B, C], features [B, D])."""
        features = self.body(inputs).float()
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features), features


def build(
    name: str,
    num_classes: int,
    size: int,
    weights: str = "none",
    standardisation: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> Backbone:
    """A backbone for square images of `size` px, or vectors [size], and `num_classes` classes.

    standardisation: mean and scale [size] of vectors, None where they are standardised already.
    `weights` is `none`, `imagenet` (torchvision's own download and cache) or the path of a state dict,
    whose classifier is ignored when it has another number of classes. Raises RelabelError for an
    unknown name and for weights that are missing, unreadable or of another architecture.
    """
    if name == VECTORS.backbone:
        mean, scale = standardisation or (np.zeros(size, np.float32), np.ones(size, np.float32))
        return mlp(num_classes, torch.from_numpy(mean), torch.from_numpy(scale))
    if name == "cnn8":
        if weights == "imagenet":
            raise RelabelError(
                "--weights imagenet: cnn8 has no ImageNet weights.", "Use a torchvision backbone."
            )
        backbone = _cnn8(num_classes)
        if weights != "none":
            _load(backbone, _read_state_dict(Path(weights)), weights)
        return backbone
    return _torchvision(name, num_classes, size, weights)


class Standardise(nn.Module):
    """(vectors − mean) · scale, with mean and scale [D] as buffers: a saved backbone brings its own."""

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.mean: Tensor
        self.scale: Tensor

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, D] to [B, D]."""
        return (vectors - self.mean) * self.scale


def mlp(num_classes: int, mean: Tensor, scale: Tensor, width: int = 256, dropout: float = 0.5) -> Backbone:
    """Two hidden layers on vectors [B, D], standardised by mean and scale [D]; dropout before each layer.

    Vectors have no augmentation that keeps a network from memorising wrong labels; dropout does. The width
    hardly matters. See examples/RESULTS.md, "Dropout for vectors".
    """
    layers: list[nn.Module] = [Standardise(mean, scale), nn.Dropout(dropout)]
    for size in (len(mean), width):
        layers += [
            nn.Linear(size, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        ]
    return Backbone(nn.Sequential(*layers), nn.Linear(width, num_classes))


def for_values(
    values: NDArray[np.uint8] | NDArray[np.float32],
    num_classes: int,
    name: str = "cnn8",
    augment: str = "shift",
) -> tuple[Backbone, Inputs]:
    """A fresh network and what it is shown: images [N, S, S, 3] augmented, or standardised vectors [N, D].

    name: of the backbone for images; vectors take the MLP.
    """
    size = values.shape[1]
    if of_values(values.ndim) is VECTORS:
        return build(VECTORS.backbone, num_classes, size), VectorInputs(torch.from_numpy(values))
    return build(name, num_classes, size), ImageInputs(values.astype(np.uint8, copy=False), augment)


def linear(dimension: int, num_classes: int) -> Backbone:
    """The head alone, on vectors [B, dimension]."""
    return Backbone(nn.Identity(), nn.Linear(dimension, num_classes))


def with_head(backbone: Backbone, head: nn.Linear, mean: Tensor, scale: Tensor) -> Backbone:
    """The backbone's body under a head that was trained on (features − mean) · scale; mean, scale: [D].

    The standardisation is folded into the head, so that what comes out is a backbone like any other.
    """
    weight = head.weight.detach().cpu().double() * scale.double()
    folded = nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        folded.weight.copy_(weight)
        folded.bias.copy_(head.bias.detach().cpu().double() - weight @ mean.double())
    return Backbone(backbone.body, folded)


@contextmanager
def untracked(backbone: nn.Module) -> Iterator[None]:
    """The region of a forward pass in training mode that leaves no trace in BatchNorm's running statistics.

    Its outputs are those of any other such pass. Putting copies of the buffers back afterwards would take six
    operations a layer.
    """
    tracking = [m for m in backbone.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def evaluate(
    backbone: Backbone,
    inputs: Inputs,
    compute: Compute,
    rows: Tensor | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(index [B], logits [B, C], features [B, D]) of `rows`, by default all, batch by batch.

    In evaluation mode, in which it leaves the backbone, and without augmentation. batch_size: 64 by default,
    on a CPU 16: larger arrays cost the C library more than they save (examples/RESULTS.md, "Speed").
    """
    batch_size = batch_size or (16 if compute.device.type == "cpu" else 64)
    rows = torch.arange(len(inputs)) if rows is None else rows
    backbone = backbone.to(compute.device).to(memory_format=compute.memory_format).eval()
    for start in range(0, len(rows), batch_size):
        index = rows[start : start + batch_size]
        with torch.no_grad(), compute.autocast():
            logits, features = backbone(inputs.batch(index, compute.device, None))
        yield index, logits, features


def frozen_features(
    backbone: Backbone, inputs: Inputs, compute: Compute, on_batch: Callable[[int], None] = lambda rows: None
) -> Tensor:
    """Penultimate features [len(inputs), D] as the backbone stands, in host memory or a mapped file."""
    features = per_sample(len(inputs), backbone.head.in_features)
    for index, _, penultimate in evaluate(backbone, inputs, compute):
        features[index] = penultimate.cpu()
        on_batch(len(index))
    return features


def _conv(channels_in: int, channels_out: int, *, pool: bool = False) -> nn.Sequential:
    # Pooling before the normalisation leaves a quarter of the values to normalise and to rectify:
    # on a CPU those memory-bound steps cost as much as the convolution itself.
    layers: list[nn.Module] = [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


def _cnn8(num_classes: int, width: int = 64) -> Backbone:
    """Seven 3 x 3 convolutions and a linear head, any image size from 8 px."""
    body = nn.Sequential(
        _conv(3, width // 2),
        _conv(width // 2, width, pool=True),
        _conv(width, width),
        _conv(width, 2 * width, pool=True),
        _conv(2 * width, 2 * width),
        _conv(2 * width, 4 * width, pool=True),
        _conv(4 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Backbone(body, nn.Linear(4 * width, num_classes))


def _torchvision(name: str, num_classes: int, image_size: int, weights: str) -> Backbone:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise RelabelError(
            f"--backbone {name}: no such backbone.",
            "Use cnn8 or a torchvision classifier such as resnet18, resnet50 or mobilenet_v3_small.",
        )
    model = models.get_model(name, weights=None)
    model.aux_logits = False  # googlenet and inception would return several logits in training
    path, head = _fresh_head(model, name, num_classes)
    if weights == "imagenet":
        entry = models.get_model_weights(name).DEFAULT
        try:
            with redirect_stdout(sys.stderr):  # torch reports the download on standard output
                state = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise RelabelError(
                f"--weights imagenet: {name}'s weights are not cached and could not be downloaded ({error}).",
                "Connect once, set TORCH_HOME to a cache that has them, or use --weights none.",
            ) from error
        _load(model, state, weights)
    elif weights != "none":
        _load(model, _read_state_dict(Path(weights)), weights)
    if image_size <= SMALL_IMAGE:
        _small_image_stem(model)
    _replace(model, path, nn.Identity())
    backbone = Backbone(model, head)
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # some architectures take one size only, or none this small
        raise RelabelError(
            f"--backbone {name} cannot take images of {image_size} px ({error}).", "Set another --image-size."
        ) from error
    return backbone.train()


def _fresh_head(model: nn.Module, name: str, num_classes: int) -> tuple[str, nn.Linear]:
    """Replace the model's last `nn.Linear` by a fresh one of `num_classes`; returns its path and it."""
    path, last = list(model.named_modules())[-1]
    if not isinstance(last, nn.Linear):
        raise RelabelError(
            f"--backbone {name}: its last layer is not linear.",
            "Use for example resnet18 or mobilenet_v3_small.",
        )
    head = nn.Linear(last.in_features, num_classes)
    _replace(model, path, head)
    return path, head


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(owner), attribute, module)


def _small_image_stem(model: nn.Module) -> None:
    """Keep the resolution in the first layers: stride 1 in the first convolution, no max-pooling.

    ResNets for 32 px images replace the 7 x 7 first convolution by a 3 x 3 one (He et al. 2016, 4.2);
    the pretrained kernel's centre is kept, so that `--weights` still means something.
    """
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            owner, _, attribute = key.rpartition(".")
            stem = nn.Conv2d(3, module.out_channels, 3, stride=1, padding=1, bias=module.bias is not None)
            middle = module.kernel_size[0] // 2
            with torch.no_grad():
                stem.weight.copy_(module.weight[:, :, middle - 1 : middle + 2, middle - 1 : middle + 2])
                if module.bias is not None and stem.bias is not None:
                    stem.bias.copy_(module.bias)
            setattr(model.get_submodule(owner), attribute, stem)
            break
    if isinstance(getattr(model, "maxpool", None), nn.MaxPool2d):
        model.maxpool = nn.Identity()


def _read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a file, read without executing anything from it."""
    if not path.is_file():
        raise RelabelError(
            f"--weights {path}: no such file.", "Use none, imagenet or the path of a state dict."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RelabelError(
            f"--weights {path}: not a state dict that can be loaded safely ({type(error).__name__}).",
            "Save one with torch.save(model.state_dict(), PATH).",
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RelabelError(
            f"--weights {path}: holds no state dict.", "Save one with torch.save(model.state_dict(), PATH)."
        )
    return state


def _load(model: nn.Module, state: Mapping[str, Tensor], weights: str) -> None:
    """Load all but a classifier of another shape; anything else that does not fit is an error."""
    own = model.state_dict()
    head = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    head_keys = {f"{head}.weight", f"{head}.bias"}
    fitting = {k: v for k, v in state.items() if k not in head_keys or own[k].shape == v.shape}
    wrong = [key for key, value in fitting.items() if key not in own or own[key].shape != value.shape]
    wrong += [key for key in own if key not in state and key not in head_keys]
    if wrong:
        raise RelabelError(
            f"--weights {weights}: does not fit the backbone: {len(wrong)} tensors differ, first {wrong[0]}.",
            "Choose the --backbone these weights were saved from.",
        )
    model.load_state_dict(fitting, strict=False)
