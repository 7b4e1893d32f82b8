"""What people do today without `relabel`, at the same backbone, image size, augmentation and schedule.

    python examples/baselines.py cleanlab SOURCE --labels noisy.csv --trusted trusted.csv -o labels.parquet

`benchmark.py` runs this file. Every method trains with `relabel`'s own loop and writes its labels file, so
that `relabel evaluate` judges all of them alike: the soft label is the network's distribution with the
corrected label on top, the action is `fix` where the label changed and `keep` elsewhere, and a label's noise
probability is 1 - p(given), not calibrated. The default epochs are those of the `fit` that trains on the
fewest rows, and so for the most epochs: no method sees more samples than a baseline.

plain         Plain training on the given labels; the finished network's argmax replaces every label. It has
              no use for trusted labels: those rows count as any other.
cleanlab      Three networks, each trained on two thirds of the rows under their given labels, predict the
              third. `find_label_issues` flags, and a flagged row takes the argmax; the rest keep their label.
              It has no use for trusted labels either. Test images get the mean of the three networks: no
              fourth training, and more than a user's one network would give.
fine-tune     Plain training on the given labels, then the whole network on the trusted rows, at a constant
              learning rate. Rate and epochs are those with the best accuracy on a third of the trusted
              rows, held out for it; then all of them are used. No fine-tuning at all is among the choices.
trusted-only  The trusted rows alone, under the same schedule, for as many steps as plain training takes, in
              batches of at most 64: at most as many samples as it sees, each of them many times.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

import _shared
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from relabel.backbones import Backbone
from relabel.config import DEFAULT_AUGMENTATION, FitConfig
from relabel.correctors import registry
from relabel.correctors.plain import Plain
from relabel.data.batches import AUGMENTATIONS, ImageInputs, Inputs, VectorInputs, decode_all
from relabel.data.sources import Source, open_source
from relabel.data.trusted import TrustedSet, read_trusted
from relabel.device import Compute, resolve
from relabel.errors import RelabelError
from relabel.labels.metadata import Metadata, Run
from relabel.labels.parquet import Columns
from relabel.labels.table import Labels
from relabel.options import build, changed
from relabel.schedule import Schedule
from relabel.training.loop import Training
from relabel.training.rows import Rows
from relabel.verbs.fit import schedule_for
from relabel.verbs.run import build_backbone, largest_size

FOLDS = 3
FINE_TUNE_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
FINE_TUNE_EPOCHS = (1, 2, 5, 10, 20)
SMALL_BATCH = 64  # what `fit` takes for small data


@dataclass(frozen=True)
class Task:
    """One data set with noisy labels, decoded, and how a network is trained on it.

    config: with the image size that is left open on the command line, if rows are images.
    """

    config: FitConfig
    source: Source
    trusted: TrustedSet
    inputs: Inputs
    compute: Compute

    @property
    def schedule(self) -> Schedule:
        """`fit`'s for this source, whatever part of it a baseline trains on."""
        return _schedule(self.config, len(self.source))

    @property
    def best_known(self) -> NDArray[np.int64]:
        """Given labels [N], replaced by the trusted ones where there are any."""
        labels = self.source.given.copy()
        labels[self.trusted.rows] = self.trusted.labels
        return labels

    def network(self) -> Backbone:
        """A fresh backbone; the same one for the same seed."""
        torch.manual_seed(self.config.run.seed)
        return build_backbone(self.source, self.config.network).backbone

    def training(
        self, network: Backbone, rows: NDArray[np.int64], labels: NDArray[np.int64], schedule: Schedule
    ) -> Training:
        """Plain training of `network` on `rows` [n] under `labels` [N], not yet begun."""
        return Training(
            network,
            Plain(network.head.out_features, network.head.in_features),
            self.inputs,
            Rows(torch.from_numpy(rows), torch.from_numpy(labels)),
            schedule,
            self.compute,
            self.config.run.seed,
        )

    def train(self, rows: NDArray[np.int64], labels: NDArray[np.int64], schedule: Schedule) -> Training:
        """A fresh network, trained to the end of the schedule."""
        training = self.training(self.network(), rows, labels, schedule)
        training.run(lambda report: None, lambda: None)
        return training


@dataclass(frozen=True)
class Outcome:
    """What a method found: distributions [N, C], corrected labels [N], its networks, and more figures."""

    probability: NDArray[np.float64]
    corrected: NDArray[np.int64]
    networks: list[Training]
    figures: dict[str, float] = field(default_factory=dict)


def plain(task: Task) -> Outcome:
    """The argmax of a network that was trained on the given labels."""
    rows = np.arange(len(task.source))
    training = task.train(rows, task.source.given, task.schedule)
    probability = predict(training, rows)
    return Outcome(probability, probability.argmax(axis=1), [training])


def cleanlab(task: Task) -> Outcome:
    """Out-of-sample predictions of K networks; flagged rows take the argmax."""
    given = task.source.given
    networks = []

    def train(rows: NDArray[np.int64]) -> Training:
        networks.append(task.train(rows, given, task.schedule))
        return networks[-1]

    probability, corrected = without_issues(given, len(task.source.class_names), task.config.run.seed, train)
    return Outcome(probability, corrected, networks)


def without_issues(
    given: NDArray[np.int64], classes: int, seed: int, train: Callable[[NDArray[np.int64]], Training]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Out-of-sample distributions [N, C], and given labels [N] with the flagged ones replaced by the argmax.

    train: a finished training on some of the rows.
    """
    probability = np.zeros((len(given), classes))
    for rest, held_out in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(given, given):
        probability[held_out] = predict(train(rest), held_out)
    # By name: AGPL, so an optional dependency of the examples alone.
    flagged = import_module("cleanlab.filter").find_label_issues(given, probability, n_jobs=1)
    return probability, np.where(flagged, probability.argmax(axis=1), given)


def fine_tune(task: Task) -> Outcome:
    """Plain training, then the whole network on the trusted rows."""
    rows = np.arange(len(task.source))
    trained = task.train(rows, task.source.given, task.schedule)
    shuffled = np.random.default_rng(task.config.run.seed).permutation(task.trusted.rows)
    held_out, rest = np.split(shuffled, [len(shuffled) // 3])

    score, rate, epochs = accuracy_and_loss(trained, held_out, task.best_known), FINE_TUNE_RATES[0], 0
    for tried in FINE_TUNE_RATES:
        training = _fine_tuning(task, trained, rest, tried)
        while training.epoch < FINE_TUNE_EPOCHS[-1]:
            training.run_epoch()
            found = accuracy_and_loss(training, held_out, task.best_known)
            if training.epoch in FINE_TUNE_EPOCHS and found > score:
                score, rate, epochs = found, tried, training.epoch

    training = _fine_tuning(task, trained, task.trusted.rows, rate)
    while training.epoch < epochs:
        training.run_epoch()
    probability = predict(training, rows)
    chosen = {"fine_tune_learning_rate": rate, "fine_tune_epochs": float(epochs)}
    return Outcome(probability, probability.argmax(axis=1), [training], chosen)


def trusted_only(task: Task) -> Outcome:
    """The trusted rows alone, for as many steps as plain training takes."""
    full = task.schedule
    steps = full.epochs * -(-len(task.source) // full.batch_size)
    batch_size = min(full.batch_size, SMALL_BATCH)
    epochs = max(2, steps // -(-len(task.trusted.rows) // batch_size))
    config = changed(task.config, batch_size=batch_size, epochs=epochs)
    schedule = replace(_schedule(config, len(task.trusted.rows)), weight_decay=full.weight_decay)
    training = task.train(task.trusted.rows, task.best_known, schedule)
    probability = predict(training, np.arange(len(task.source)))
    return Outcome(probability, probability.argmax(axis=1), [training])


METHODS: dict[str, Callable[[Task], Outcome]] = {
    "plain": plain,
    "cleanlab": cleanlab,
    "fine-tune": fine_tune,
    "trusted-only": trusted_only,
}


def _fine_tuning(task: Task, trained: Training, rows: NDArray[np.int64], rate: float) -> Training:
    """A copy of a trained network, about to learn trusted `rows` at a constant rate."""
    schedule = replace(
        trained.schedule,
        epochs=FINE_TUNE_EPOCHS[-1],
        batch_size=min(trained.schedule.batch_size, SMALL_BATCH),
        learning_rate=rate,
        milestones=(),
    )
    return task.training(copy.deepcopy(trained.backbone), rows, task.best_known, schedule)


def accuracy_and_loss(
    training: Training, rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[float, float]:
    """Accuracy on `rows`, and for ties minus the cross-entropy: larger is better."""
    logits = _logits(training, torch.from_numpy(rows))
    true = torch.from_numpy(labels[rows])
    return (logits.argmax(dim=1) == true).float().mean().item(), -F.cross_entropy(logits, true).item()


def predict(training: Training, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distributions [n, C] of `rows` [n], without augmentation."""
    probability: NDArray[np.float64] = _logits(training, torch.from_numpy(rows)).double().softmax(1).numpy()
    return probability


def _logits(training: Training, rows: Tensor) -> Tensor:
    # The rows come in their own order, so that batches only need joining.
    return torch.cat([logits.cpu() for _, logits in training.predict(rows)])


def soft_labels(probability: NDArray[np.float64], corrected: NDArray[np.int64]) -> NDArray[np.float32]:
    """`probability` [N, C] with the largest share and the corrected label's exchanged."""
    rows, largest = np.arange(len(probability)), probability.argmax(axis=1)
    soft = probability.copy()
    soft[rows, largest], soft[rows, corrected] = probability[rows, corrected], probability[rows, largest]
    soft[rows, corrected] += 1e-6  # first among equals
    normalised: NDArray[np.float32] = (soft / soft.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised


def _schedule(config: FitConfig, rows: int) -> Schedule:
    settings = registry.settings_of(registry.chosen(config.corrector, config.preset), config.preset)
    return schedule_for(config, settings, rows)


def read_task(config: FitConfig) -> Task:
    """Open and decode SOURCE as `fit` does. Raises RelabelError where a row has no label or no image."""
    source = open_source(config.source, config.labels, config.reading)
    trusted = read_trusted(config.trusted, source) if config.trusted else TrustedSet.empty()
    if source.vectors is None:
        size = source.content.size(config.network.image_size, largest_size(config.network.weights))
        config = changed(config, image_size=size)
    inputs = _inputs(source, config, config.network.augment or DEFAULT_AUGMENTATION)
    if (source.given < 0).any() or trusted.external:
        raise RelabelError("The baselines need a label in every row, and trusted rows of SOURCE.")
    return Task(config, source, trusted, inputs, resolve(config.compute.device, config.compute.amp))


def _inputs(source: Source, config: FitConfig, augmentation: str) -> Inputs:
    """What the network is shown: vectors, or images of `config.network.image_size`."""
    if source.vectors is not None:
        _refuse_broken(source, source.errors)
        return VectorInputs(torch.from_numpy(source.vectors))
    assert config.network.image_size is not None
    images, unreadable = decode_all(
        source.references, config.network.image_size, set(source.errors), lambda count: None
    )
    _refuse_broken(source, {**source.errors, **unreadable})
    return ImageInputs(images, augmentation)


def _refuse_broken(source: Source, errors: Mapping[int, str]) -> None:
    for row, reason in errors.items():
        raise RelabelError(f"{source.file_names[row]}: {reason}.", "The baselines need every row.")


def write_outcome(task: Task, outcome: Outcome, method: str, output: Path) -> None:
    """The labels file, with the trusted rows marked so that `evaluate` leaves them out."""
    given, trusted = task.source.given, task.trusted
    corrected = outcome.corrected.copy()
    corrected[trusted.rows] = trusted.labels
    soft = soft_labels(outcome.probability, corrected)
    soft[trusted.rows] = np.eye(soft.shape[1])[trusted.labels]
    is_trusted = np.zeros(len(given), dtype=bool)
    is_trusted[trusted.rows] = True
    noise_probability = 1 - outcome.probability[np.arange(len(given)), given]
    columns = Columns(
        class_names=task.source.class_names,
        file_names=task.source.file_names,
        given=given,
        soft_label=soft,
        corrected=soft.argmax(axis=1),
        noise_probability=noise_probability.astype(np.float32),
        action=np.where(corrected != given, "fix", "keep"),
        trusted=is_trusted,
        errors={},
    )
    run = Run(
        corrector=method,
        **build_backbone(task.source, task.config.network).described,
        epochs=task.schedule.epochs,
        seed=task.config.run.seed,
        trusted_rows=len(trusted.rows),
    )
    Labels(columns, Metadata(task.source.class_names, run=run)).save(output)


def write_test(task: Task, networks: Iterable[Training], location: str, output: Path) -> None:
    """A labels file of unlabelled rows: the mean of the networks' distributions."""
    source = open_source(location, options=task.config.reading, need_classes=False)
    inputs = _inputs(source, task.config, "none")
    rows = np.arange(len(source))
    found = []
    for network in networks:
        network.inputs = inputs
        found.append(predict(network, rows))
    soft = np.mean(found, axis=0).astype(np.float32)
    columns = Columns(
        class_names=task.source.class_names,
        file_names=source.file_names,
        given=np.full(len(rows), -1),
        soft_label=soft,
        corrected=soft.argmax(axis=1),
        noise_probability=np.full(len(rows), np.nan, dtype=np.float32),
        action=np.full(len(rows), "review"),
        trusted=np.zeros(len(rows), dtype=bool),
        errors={},
    )
    Labels(columns, Metadata(task.source.class_names, run=Run(seed=task.config.run.seed))).save(output)


def parse() -> argparse.Namespace:
    """The command line: the flags of `relabel fit` that mean something without a corrector."""
    parser = _shared.parser(__doc__)
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--trusted", type=Path, required=True)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--test", metavar="SOURCE", help="rows to label with the finished network")
    parser.add_argument("--test-output", type=Path, help="where to, as another labels file")
    parser.add_argument("--features")
    parser.add_argument("--backbone")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--augment", choices=AUGMENTATIONS)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", default="auto")
    arguments = parser.parse_args()
    if (arguments.test is None) != (arguments.test_output is None):
        parser.error("--test and --test-output go together")
    return arguments


def main() -> None:
    """Run one baseline; its figures go to standard output as JSON."""
    arguments = parse()
    config = build(
        FitConfig,
        source=arguments.source,
        trusted=arguments.trusted,
        labels=arguments.labels,
        features=arguments.features,
        corrector="none",
        backbone=arguments.backbone,
        image_size=arguments.image_size,
        augment=arguments.augment,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        seed=arguments.seed,
        device=arguments.device,
        amp=arguments.amp,
    )
    task = read_task(config)
    outcome = METHODS[arguments.method](task)
    write_outcome(task, outcome, arguments.method, arguments.output)
    begin = time.perf_counter()
    if arguments.test:
        write_test(task, outcome.networks, arguments.test, arguments.test_output)
    print(json.dumps({**outcome.figures, "test_seconds": time.perf_counter() - begin}))


if __name__ == "__main__":
    _shared.run(main)
