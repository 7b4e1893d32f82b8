"""Episodes: short training runs on data whose truth is known, for a transferable corrector to learn from.

No two are alike. Which classes and rows take part, what noise their labels get, the image size, backbone,
rates, length and augmentation are drawn at random, so that the training dynamics met here are as varied as
those of the data sets to come. An episode is recorded once, as the predictions of every epoch, and replayed
as often as the corrector's own training asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from relabel import backbones
from relabel.calibration import transfer
from relabel.correctors.plain import Plain
from relabel.correctors.tmlc_net import TMLCNet
from relabel.data.sources import UNLABELLED
from relabel.data.vectors import standardisation
from relabel.device import Compute
from relabel.schedule import BATCH_SIZE, WEIGHT_DECAY, Schedule, averaged_epochs, default_learning_rate
from relabel.simulate import noise
from relabel.training.loop import Training
from relabel.training.rows import Rows

# Noise models and the largest share of wrong labels; beyond it a wrong class may outnumber the right one.
_NOISE = {
    "symmetric": 0.65,
    "flip-random": 0.5,
    "flip-to-one": 0.4,
    "feature-dependent": 0.4,
    "instance-dependent": 0.45,
}
_LEAST_RATE = 0.03
_BACKBONES = {"cnn8": 0.8, "resnet18": 0.1, "mobilenet_v3_small": 0.1}
_SIZES = {12: 0.45, 16: 0.35, 24: 0.15, 32: 0.05}
_AUGMENTATIONS = {"flip": 0.6, "shift": 0.3, "none": 0.1}  # without any, a small network soon memorises
_ROWS = (200, 5_000)
_EPOCHS = (15, 80)
_EFFORT = 160_000  # images of 16 px an episode may show its network: two minutes of one core
_JUDGE_SAMPLES = 40_000  # shown to the network whose boundaries make noise depend on features


@dataclass(frozen=True)
class Pool:
    """A source with known truth: images uint8 [N, S, S, 3], or vectors float32 [N, D]; true class ids [N]."""

    name: str
    images: NDArray[np.uint8] | NDArray[np.float32]
    true: NDArray[np.int64]
    class_names: list[str]
    compute: Compute

    @property
    def has_vectors(self) -> bool:
        """Whether vectors take the place of images."""
        return self.images.ndim == 2

    @cached_property
    def logits(self) -> NDArray[np.float32]:
        """[N, C] of a network trained on the true labels, for noise that depends on features."""
        rows, classes = np.arange(len(self.true)), len(self.class_names)
        torch.manual_seed(0)
        size = None if self.has_vectors else min(16, self.images.shape[1])
        backbone, inputs = backbones.for_values(_scaled(self.images, size), classes, augment="shift")
        training = Training(
            backbone,
            Plain(classes, 1),
            inputs,
            _rows(self.true),
            Schedule(
                epochs=max(4, min(30, _JUDGE_SAMPLES // len(rows))),
                batch_size=BATCH_SIZE,
                learning_rate=default_learning_rate(BATCH_SIZE),
                weight_decay=WEIGHT_DECAY,
            ),
            self.compute,
            seed=0,
        )
        training.run(lambda report: None, lambda: None)
        found = [logits.cpu() for _, logits in training.predict(torch.from_numpy(rows))]
        judged: NDArray[np.float32] = torch.cat(found).numpy()
        return judged


def drawn_from(pools: Sequence[Pool]) -> dict[str, Any]:
    """What the episodes of some pools are drawn from, as plain values: for a model card."""
    with_images = any(not pool.has_vectors for pool in pools)
    with_vectors = any(pool.has_vectors for pool in pools)
    return {
        "noise": [f"{name} up to {most * 100:.0f} %" for name, most in _NOISE.items()],
        "backbones": list(_BACKBONES) * with_images + ["mlp"] * with_vectors,
        **({"image_sizes": list(_SIZES)} if with_images else {}),
        "epochs": list(_EPOCHS),
        "rows": list(_ROWS),
    }


@dataclass(frozen=True)
class Episode:
    """One run to be recorded: `noises` are (model, rate), each put on labels that are still right.

    image_size: in pixels, None for vectors.
    """

    number: int
    pool: str
    classes: tuple[int, ...]
    rows: int
    noises: tuple[tuple[str, float], ...]
    image_size: int | None
    augment: str
    backbone: str
    epochs: int
    warmup_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class Recording:
    """A finished episode of n rows over E epochs and C classes.

    probability: [n, E, C], the softmax in training; last: [n, C], of the finished backbone; given, true: [n];
    held_out: [n] bool, rows whose given label the training did not see.
    """

    probability: Tensor
    last: Tensor
    given: Tensor
    true: Tensor
    held_out: Tensor

    @property
    def seen(self) -> Tensor:
        """The given labels [n] as training saw them, −1 where they were held out."""
        return torch.where(self.held_out, UNLABELLED, self.given)

    @property
    def early(self) -> Tensor:
        """The temporal ensemble's early window [n, C], as at the end of a fit."""
        return self._average(averaged_epochs(self.probability.shape[1])[0])

    @property
    def late(self) -> Tensor:
        """The late window [n, C]."""
        return self._average(averaged_epochs(self.probability.shape[1])[1])

    def _average(self, epochs: range) -> Tensor:
        return self.probability[:, epochs.start : epochs.stop].float().mean(dim=1)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values for a file."""
        return dict(vars(self))

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Recording:
        """What `state` returned."""
        return cls(**state)


def draw(number: int, seed: int, pools: Sequence[Pool]) -> Episode:
    """Episode `number` of those that `seed` stands for."""
    rng = np.random.default_rng([seed, number])
    pool = pools[number % len(pools)]
    present = np.unique(pool.true)  # a class folder may be empty
    count = len(present) if rng.random() < 0.4 else int(rng.integers(2, len(present) + 1))
    classes = np.sort(rng.permutation(present)[:count])
    available = int(np.isin(pool.true, classes).sum())
    native = pool.images.shape[1]
    sizes = {size: share for size, share in _SIZES.items() if size <= native} or {native: 1.0}
    size = int(rng.choice(list(sizes), p=np.array(list(sizes.values())) / sum(sizes.values())))
    epochs = round(float(np.exp(rng.uniform(*np.log(_EPOCHS)))))
    backbone = str(rng.choice(list(_BACKBONES), p=list(_BACKBONES.values())))
    effort = _EFFORT * (16 / size) ** 2 / epochs / (1 if backbone == "cnn8" else 2)
    if pool.has_vectors:
        backbone, effort = "mlp", _ROWS[1]  # whose effort hardly counts
    most = max(_ROWS[0], min(available, _ROWS[1], int(effort)))
    rows = round(float(np.exp(rng.uniform(np.log(max(_ROWS[0], most // 2)), np.log(most)))))
    rows = min(rows, available)
    kinds = rng.choice(list(_NOISE), size=1 if rng.random() < 0.6 else 2, replace=False)
    # Of two classes half the labels being wrong would leave nothing to go by.
    most_wrong = min(*(_NOISE[kind] for kind in kinds), 0.8 * (1 - 1 / count))
    rate = float(rng.uniform(_LEAST_RATE, most_wrong))
    shares = [1.0] if len(kinds) == 1 else [0.5, 0.5]
    batch_size = int(rng.choice([32, 64, 128])) if rows >= 1_000 else int(rng.choice([16, 32, 64]))
    return Episode(
        number=number,
        pool=pool.name,
        classes=tuple(int(label) for label in classes),
        rows=rows,
        noises=tuple((str(kind), rate * share) for kind, share in zip(kinds, shares, strict=True)),
        image_size=None if pool.has_vectors else size,
        augment=str(rng.choice(list(_AUGMENTATIONS), p=list(_AUGMENTATIONS.values()))),
        backbone=backbone,
        epochs=epochs,
        warmup_epochs=max(1, round(epochs * float(rng.uniform(0.15, 0.5)))),
        batch_size=batch_size,
        learning_rate=default_learning_rate(batch_size)
        * float(np.exp(rng.uniform(np.log(0.5), np.log(1.5)))),
        weight_decay=float(rng.choice([1e-4, 5e-4, 1e-3])),
        seed=int(rng.integers(2**31)),
    )


@dataclass(frozen=True)
class Scene:
    """The data of an episode: images [n, S, S, 3] or vectors [n, D]; given and true class ids [n]."""

    values: NDArray[np.uint8] | NDArray[np.float32]
    given: NDArray[np.int64]
    true: NDArray[np.int64]


def stage(episode: Episode, pool: Pool) -> Scene:
    """Draw an episode's rows and put its noise on their labels."""
    rng = np.random.default_rng(episode.seed)
    rows = np.sort(rng.permutation(np.flatnonzero(np.isin(pool.true, episode.classes)))[: episode.rows])
    true = np.searchsorted(np.array(episode.classes), pool.true[rows])
    subset = _Subset(_scaled(pool.images[rows], episode.image_size), pool, rows, episode.classes)
    given = true
    names = [pool.class_names[label] for label in episode.classes]
    for kind, rate in episode.noises:
        seed = int(rng.integers(2**31))
        noisy = noise.corrupt(true, names, noise=kind, rate=rate, seed=seed, images=subset).labels
        given = np.where(given == true, noisy, given)
    return Scene(subset.images, given, true)


def training_of(
    episode: Episode,
    scene: Scene,
    corrector: TMLCNet | None,
    compute: Compute,
    rows: NDArray[np.int64] | None = None,
    predicted: NDArray[np.int64] | None = None,
) -> Training:
    """An episode's training, not yet begun: on the given labels of its `rows` (default: all), or with a copy
    of the corrector, frozen.

    predicted: other rows, to be followed without their label.
    """
    classes = len(episode.classes)
    torch.manual_seed(episode.seed)
    backbone, inputs = backbones.for_values(scene.values, classes, episode.backbone, episode.augment)
    return Training(
        backbone,
        _for_classes(corrector, classes) if corrector else Plain(classes, backbone.head.in_features),
        inputs,
        _rows(scene.given, rows, predicted),
        Schedule(
            epochs=episode.epochs,
            warmup_epochs=min(episode.warmup_epochs, episode.epochs - 1),
            batch_size=episode.batch_size,
            learning_rate=episode.learning_rate,
            weight_decay=episode.weight_decay,
        ),
        compute,
        episode.seed,
        frozen=True,
    )


def record(episode: Episode, pool: Pool, corrector: TMLCNet | None, compute: Compute) -> Recording:
    """Run an episode and keep what it predicted; corrector: as for `training_of`."""
    scene = stage(episode, pool)
    held_out = transfer.held_out(scene.given, episode.seed)
    parts = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    training = training_of(episode, scene, corrector, compute, *parts)
    probability = torch.empty(len(scene.true), episode.epochs, len(episode.classes), dtype=torch.float16)
    for epoch in range(episode.epochs):
        training.run_epoch()
        probability[:, epoch] = training.sample_memory.latest[:].half()
    last = training.evidence()["last"][:].half()
    labels = map(torch.from_numpy, (scene.given, scene.true, held_out))
    return Recording(probability, last, *labels)


def _for_classes(corrector: TMLCNet, classes: int) -> TMLCNet:
    made = TMLCNet(classes, 1, corrector.target, corrector.without)
    made.load_state_dict(corrector.state_dict())
    return made


@dataclass(frozen=True)
class _Subset:
    """`noise.Images` of an episode's rows: images or vectors to be learned, and logits among its classes."""

    images: NDArray[np.uint8] | NDArray[np.float32]
    pool: Pool
    rows: NDArray[np.int64]
    classes: Sequence[int]

    def values(self) -> tuple[noise.RowIndex, NDArray[np.uint8] | NDArray[np.float32]]:
        return np.arange(len(self.rows)), self.images

    def logits(self) -> tuple[noise.RowIndex, NDArray[np.float32]]:
        return np.arange(len(self.rows)), self.pool.logits[self.rows][:, self.classes]


def _rows(
    given: NDArray[np.int64],
    rows: NDArray[np.int64] | None = None,
    predicted: NDArray[np.int64] | None = None,
) -> Rows:
    """Train on `rows` (default: all) under their given label [N], follow `predicted` (default: none)."""
    everyone = np.arange(len(given))
    rows = everyone if rows is None else rows
    seen = np.where(np.isin(everyone, rows), given, UNLABELLED)
    predicted = everyone[:0] if predicted is None else predicted
    return Rows(torch.from_numpy(rows), torch.from_numpy(seen), torch.from_numpy(predicted))


def _scaled(
    values: NDArray[np.uint8] | NDArray[np.float32], size: int | None
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Images [n, size, size, 3], each value the mean of the area it covers; without a size vectors [n, D] in
    units of their standard deviation."""
    if size is None:
        vectors = values.astype(np.float32, copy=False)
        mean, scale = standardisation(vectors, np.ones(len(vectors), dtype=bool))
        standardised: NDArray[np.float32] = (vectors - mean) * scale
        return standardised
    if values.shape[1] == size:
        return values
    channels_first = torch.from_numpy(values).permute(0, 3, 1, 2).float()
    resized = F.interpolate(channels_first, size, mode="area").round().to(torch.uint8)
    smaller: NDArray[np.uint8] = resized.permute(0, 2, 3, 1).contiguous().numpy()
    return smaller
