"""Teaching a TMLC-Net that transfers: record episodes, learn from them, record more with it, learn from all.

The first generation of episodes is trained on the given labels. In the second, a third as many, the corrector
learned from the first rewrites them, so that the final one also knows the dynamics of networks that are being
corrected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relabel import __version__, files
from relabel.calibration import labelled_runs
from relabel.calibration.labelled_runs import LabelledRun
from relabel.calibration.prior import CalibrationPrior
from relabel.config import PretrainConfig
from relabel.correctors.base import Memory
from relabel.correctors.registry import create
from relabel.correctors.tmlc_net import (
    CANDIDATES,
    TMLCNet,
    chosen,
    kept,
    likeliest,
    mean_losses,
    normalized_features,
)
from relabel.data.sources import open_source
from relabel.device import Compute, resolve
from relabel.errors import RelabelError, RunError
from relabel.label_noise import anchor_points
from relabel.label_noise.transition_matrix import TransitionEstimate
from relabel.labels.assemble import versions
from relabel.pretraining.episodes import Episode, Pool, Recording, draw, drawn_from, record
from relabel.progress import Silent, Watcher
from relabel.saved.corrector_file import CorrectorFile
from relabel.training import checkpoint

_PAIRS = 1_500  # (row, class) pairs a step
_LEARNING_RATE = 3e-3
_FIRST_SHARE = 0.12  # of an episode's epochs, before which no corrector is used
_LARGEST = 32  # px


def pretrain(config: PretrainConfig, watcher: Watcher | None = None) -> CorrectorFile:
    """Meta-train a TMLC-Net on sources whose labels are true.

    Writes its recordings to the folder `config.recordings`, which must exist. Raises RelabelError for
    anything wrong with flags or input, before any training.
    """
    watcher = watcher or Silent()
    compute = resolve(config.compute.device, config.compute.amp)
    pools = _pools(config, compute, watcher)
    recordings: list[Recording] = []
    corrector: TMLCNet | None = None
    for generation in (1, 2):
        made = [one for _, one in _record_all(generation, corrector, pools, config, compute, watcher)]
        recordings += made
        corrector = learn(recordings, config.steps, config.seed, watcher)
    assert corrector is not None
    calibration_prior = prior_of(made, config.seed)
    trained = {
        "sources": [
            {"name": pool.name, "rows": len(pool.true), "classes": len(pool.class_names)}
            for pool in {pool.name: pool for pool in pools}.values()  # one named twice has twice the episodes
        ],
        **drawn_from(pools),
        "episodes": len(recordings),
        "calibration_episodes": len(made),
        "steps": config.steps,
        "seed": config.seed,
        "versions": versions(),
    }
    return CorrectorFile.of(corrector, "tmlc", 2, 1, {}, trained, calibration_prior)


def first_generation(
    config: PretrainConfig, watcher: Watcher
) -> tuple[dict[str, Pool], list[tuple[Episode, Recording]]]:
    """The sources by name, and the episodes of training on the given labels with their recordings.

    Errors and folder as for `pretrain`.
    """
    compute = resolve(config.compute.device, config.compute.amp)
    pools = _pools(config, compute, watcher)
    return {pool.name: pool for pool in pools}, _record_all(1, None, pools, config, compute, watcher)


def learn(
    recordings: Sequence[Recording],
    steps: int,
    seed: int,
    watcher: Watcher,
    options: Mapping[str, str] | None = None,
) -> TMLCNet:
    """A TMLC-Net that has learned to name the true label, at any time of any of the recordings.

    options: those of TMLC-Net.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    corrector = create("tmlc", 2, 1, {**(options or {}), "start": "random"})
    assert isinstance(corrector, TMLCNet)
    optimizer = torch.optim.AdamW(corrector.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    # Of 20 steps the rate would rise in none, and torch divides by their number.
    total = max(steps, 21)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total, pct_start=0.05)
    dynamics = [Dynamics.of(recording, corrector.without) for recording in recordings]
    watcher.stage("Learning", steps)
    for _ in range(steps):
        drawn = int(rng.integers(len(recordings)))
        recording = recordings[drawn]
        _, epochs, classes = recording.probability.shape
        passed = int(rng.integers(max(2, round(_FIRST_SHARE * epochs)), epochs + 1))
        trained = rng.permutation(np.flatnonzero(~recording.held_out.numpy()))
        rows = torch.from_numpy(trained[: max(64, _PAIRS // min(classes, CANDIDATES))])
        loss = corrector.trusted_loss(
            recording.given[rows], recording.true[rows], dynamics[drawn].memory(rows, passed)
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(corrector.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        watcher.advance()
    return corrector.requires_grad_(False)


@dataclass(frozen=True)
class Dynamics:
    """TMLC-Net's features of a recording: losses [n, E, C, 2], entropy [n, E]; without: the net's option.

    candidates: [n, 20] by the epoch whose end chose them, where there are more than 20 classes.
    """

    losses: Tensor
    entropy: Tensor
    without: str
    candidates: dict[int, Tensor]

    @classmethod
    def of(cls, recording: Recording, without: str = "nothing") -> Dynamics:
        """Computed once, because a step needs eight epochs of them."""
        probabilities = recording.probability.unbind(dim=1)
        found, trained = [], ~recording.held_out
        for probability in map(Tensor.float, probabilities):
            means = None if without == "nnp" else mean_losses(probability, recording.seen, trained)
            found.append(normalized_features(probability, means))
        candidates = {}
        if recording.probability.shape[2] > CANDIDATES:
            candidates = {
                epoch: likeliest(probabilities[epoch].float(), recording.seen)
                for epoch in {chosen(epoch) for epoch in range(len(probabilities))}
            }
        losses, entropy = (
            torch.stack([part.half() for part in parts], dim=1) for parts in zip(*found, strict=True)
        )
        return cls(losses, entropy, without, candidates)

    def memory(self, rows: Tensor, epochs: int) -> Memory:
        """What a corrector remembers of `rows` after so many epochs."""
        first = chosen(epochs - 1) if self.candidates else 0
        stored = [epochs - 1] if self.without == "tse" else [first + place for place in kept(epochs - first)]
        losses, entropy = self.losses[rows][:, stored], self.entropy[rows][:, stored]
        if not self.candidates:
            return {"losses": losses, "entropy": entropy}
        candidates = self.candidates[first][rows]
        wanted = candidates.long()[:, None, :, None].expand(-1, len(stored), -1, 2)
        return {"candidates": candidates, "losses": losses.gather(2, wanted), "entropy": entropy}


def prior_of(recordings: Sequence[Recording], seed: int) -> CalibrationPrior:
    """The calibration prior, learned from the ends of corrected runs."""
    return labelled_runs.learn([labelled_run(recording) for recording in recordings], seed)


def labelled_run(recording: Recording) -> LabelledRun:
    """The end of a recorded run with its true labels, for `labelled_runs`."""
    evidence = {
        "early": recording.early.numpy(),
        "late": recording.late.numpy(),
        "last": recording.last.float().numpy(),
    }
    anchors = anchor_points.count(recording.early, recording.seen.numpy())
    return LabelledRun(
        evidence,
        recording.given.numpy(),
        recording.true.numpy(),
        recording.held_out.numpy(),
        TransitionEstimate.of(anchors).matrix,
    )


def _pools(config: PretrainConfig, compute: Compute, watcher: Watcher) -> list[Pool]:
    pools = []
    for location, name in zip(config.sources, short_names(config.sources), strict=True):
        source = open_source(location, options=config.reading, largest=_LARGEST, watcher=watcher)
        for warning in source.warnings:
            watcher.warn(warning)
        values, errors = source.content.values(_LARGEST, watcher)
        if errors:
            row = min(errors)
            watcher.warn(
                f"{len(errors)} of {len(source):,} {source.noun} of {source.location} cannot be used and are "
                f"left out; first {source.file_names[row]!r}: {errors[row]}."
            )
        usable = source.given >= 0
        usable[list(errors)] = False
        if len(np.unique(source.given[usable])) < 2:
            raise RelabelError(
                f"{source.location}: fewer than two classes have {source.noun} that can be used.",
                "Name another source, with true labels.",
            )
        pools.append(Pool(name, values[usable], source.given[usable], source.class_names, compute))
    return pools


def short_names(locations: Sequence[str]) -> list[str]:
    """The ends of the locations, long enough to be distinct."""
    parts = [Path(location).parts for location in locations]
    for length in count(1):
        names = [str(Path(*own[-length:])) for own in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _record_all(
    generation: int,
    corrector: TMLCNet | None,
    pools: Sequence[Pool],
    config: PretrainConfig,
    compute: Compute,
    watcher: Watcher,
) -> list[tuple[Episode, Recording]]:
    """The episodes of one generation with their recordings, those in the folder as they are."""
    digest = checkpoint.fingerprint(
        {
            "seed": config.seed,
            # The second generation is made with what was learned from the whole first one.
            "learned": None if corrector is None else [config.episodes, config.steps],
            "pools": [
                [
                    pool.name,
                    files.digest(pool.images),
                    pool.true.tolist(),
                ]
                for pool in pools
            ],
            "compute": compute.describe(),
            "versions": [__version__, torch.__version__],
        }
    )
    first = config.episodes
    numbers = range(first) if generation == 1 else range(first, first + math.ceil(first / 3))
    episodes = [draw(number, config.seed, pools) for number in numbers]
    watcher.stage(f"Recording {generation}/2", sum(episode.epochs for episode in episodes))
    recordings: list[tuple[Episode, Recording]] = []
    for episode in episodes:
        assert config.recordings is not None
        path = config.recordings / f"{episode.number:04d}.episode"
        recording = _restored(path, digest)
        if recording is None:
            pool = pools[episode.number % len(pools)]
            try:
                recording = record(episode, pool, corrector, compute)
            except RunError:  # the rates are drawn, and now and then too high
                watcher.advance(episode.epochs)
                watcher.warn(f"Episode {episode.number + 1} diverged and is left out.")
                continue
            checkpoint.save(path, recording.state(), digest)
        recordings.append((episode, recording))
        watcher.advance(episode.epochs)
        watcher.say(_sentence(episode, recording))
    if not recordings:
        raise RunError("Every episode diverged.", "Check that the sources' labels are true.")
    return recordings


def _restored(path: Path, digest: str) -> Recording | None:
    try:
        return Recording.restored(checkpoint.load(path, digest)) if path.exists() else None
    except RelabelError:  # damaged, or of a run with other settings: made anew
        return None


def _sentence(episode: Episode, recording: Recording) -> str:
    noises = " and ".join(f"{kind} {rate:.2f}" for kind, rate in episode.noises)
    size = "" if episode.image_size is None else f" at {episode.image_size} px"
    right = (recording.given == recording.true).float().mean().item()
    found = (recording.late.argmax(dim=1) == recording.true).float().mean().item()
    return (
        f"Episode {episode.number + 1}: {episode.rows:,} rows of {episode.pool} in {len(episode.classes)} "
        f"classes, {noises}, {episode.backbone}{size}, {episode.epochs} epochs: "
        f"{right * 100:.1f} % of the labels right, {found * 100:.1f} % by the late window."
    )
