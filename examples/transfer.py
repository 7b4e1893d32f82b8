"""Does a TMLC-Net that learned on one data set correct another? Tables IV and V of its paper, on real images.

    python examples/transfer.py DIGITS TRASHNET CIFAR10 --recordings recordings

Every source has true labels. Episodes of all of them are recorded as `relabel pretrain` records its first
generation, or taken from its `--recordings`: short training runs under many kinds of noise, on the given
labels. A corrector learns from two thirds of a source's episodes and is then tried, as it is, at the end of
the others, its own source's and every other's.

The transfer table has a line for each source that was learned from, and for all of them but the target
(`others`): the argmax of the corrector's soft label, as in the paper. Below (`calibrated`) is the argmax of
the temporal ensemble, calibrated as by `relabel apply`, with weights learned from the same episodes and with
the target's own held-out labels and anchor points. Then come the baselines. `own rows` is a corrector that
learned on 100 trusted rows of the very run it corrects, the meta-training that transfer saves; calibrated, it
is the log-linear pool fitted on these rows. `late window`, `CE` and `given` are the argmax of the late window
of the temporal ensemble, that of the last epoch, and the given labels. With `--cleanlab` three more networks
are trained on each of the tried episodes, as long as its own, and the labels that cleanlab flags by their
out-of-sample predictions take the argmax. `--by noise rate classes backbone` makes tables of what episodes of
one noise model, rate, number of classes or backbone teach about those of another. The ablation table has the
paper's variants, learned from and tried on all sources. Figures are the label accuracy on the rows whose
label training saw, mean over the episodes, in %.

`--figure states.svg` draws the paper's figure 3: a t-SNE of the LSTM's states, of up to 1,000 given labels of
one tried episode, before and after learning, and gives the share of a state's ten nearest neighbours that are
correctly labelled or mislabelled alike. (The paper colours by class; here all classes share one network.)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

import _shared
import numpy as np
import torch
from baselines import without_issues
from numpy.typing import NDArray
from torch import Tensor

from relabel.calibration import calibrate, labelled_runs
from relabel.calibration.prior import CalibrationPrior
from relabel.config import PretrainConfig
from relabel.correctors.tmlc_net import TMLCNet
from relabel.label_noise.transition_matrix import TransitionEstimate
from relabel.metrics import noise_matrix
from relabel.pretraining.episodes import Episode, Pool, Recording, stage, training_of
from relabel.pretraining.meta_train import (
    Dynamics,
    first_generation,
    labelled_run,
    learn,
    prior_of,
)
from relabel.progress import Silent
from relabel.training.loop import Training

VARIANTS = {
    "TMLC-Net": {},
    "w/o NNP": {"without": "nnp"},
    "w/o TSE": {"without": "tse"},
    "w/o SD": {"without": "sd"},
    "eq. 10's target": {"target": "given"},
}
FIGURE_ROWS = 1_000
OWN_ROWS = 100
OWN_STEPS = 300  # as `fit` takes before its first soft label


Run = tuple[Episode, Recording]
Labels = Callable[[Run], Tensor]
"""The labels [n] of a run's rows, −1 for those to be left out."""


def _wrong_share(recording: Recording) -> float:
    return (recording.given != recording.true).float().mean().item()


def _rate(run: Run) -> str:
    share = _wrong_share(run[1])
    return "to 20 %" if share <= 0.2 else "20 to 40 %" if share <= 0.4 else "from 40 %"


GROUPINGS: dict[str, Callable[[Run], str]] = {
    "source": lambda run: run[0].pool,
    "noise": lambda run: run[0].noises[0][0] if len(run[0].noises) == 1 else "two kinds",
    "rate": _rate,
    "classes": lambda run: "2 to 4 classes" if len(run[0].classes) <= 4 else "5 classes and more",
    "backbone": lambda run: run[0].backbone,
}


def main() -> None:
    """Record, learn, try, and print the tables."""
    arguments = parse()
    arguments.recordings.mkdir(parents=True, exist_ok=True)
    config = PretrainConfig(
        sources=tuple(arguments.sources),
        recordings=arguments.recordings,
        episodes=arguments.episodes,
        steps=arguments.steps,
        seed=arguments.seed,
    )
    pools, recorded = first_generation(config, Silent())
    by_source = grouped(recorded, GROUPINGS["source"])
    taught = [run for own in by_source.values() for place, run in enumerate(own) if place % 3]
    tried = [run for own in by_source.values() for run in own[::3]]

    def taught_by(runs: Sequence[Run]) -> Teacher:
        corrector = learn([recording for _, recording in runs], arguments.steps, arguments.seed, Silent())
        return Teacher.of(corrector, runs, arguments.seed)

    def cleaned(run: Run) -> Tensor:
        return by_cleanlab(run[0], pools[run[0].pool])

    baselines: dict[str, Labels] = {
        "own rows": own_rows,
        "own rows, calibrated": own_rows_calibrated,
        "late window": lambda run: run[1].late.argmax(dim=1),
        **({"cleanlab": cleaned} if arguments.cleanlab else {}),
        "CE": lambda run: run[1].probability[:, -1].argmax(dim=1),
        "given": lambda run: run[1].given,
    }
    lines = {name: [accuracy(run, labels(run)) for run in tried] for name, labels in baselines.items()}
    for name in arguments.by:
        print(f"\n{transfer_table(GROUPINGS[name], taught, tried, taught_by, lines)}", flush=True)

    lessons = [recording for _, recording in taught]
    variants = {
        name: learn(lessons, arguments.steps, arguments.seed, Silent(), options)
        for name, options in VARIANTS.items()
    }
    found = {
        name: [accuracy(run, corrected(corrector)(run)) for run in tried]
        for name, corrector in variants.items()
    }
    print(f"\n{table('variant', by_group(tried, GROUPINGS['source'], found))}")
    if arguments.figure:
        shown = max((recording for _, recording in tried), key=_half_wrong)
        untaught = learn(lessons, 0, arguments.seed, Silent())
        print(f"\n{draw_states(shown, untaught, variants['TMLC-Net'], arguments.figure)}")


@dataclass(frozen=True)
class Teacher:
    """What some episodes taught: a corrector, and the weights of the log-linear pool."""

    corrector: TMLCNet
    calibration_prior: CalibrationPrior

    @classmethod
    def of(cls, corrector: TMLCNet, runs: Sequence[Run], seed: int) -> Teacher:
        """The teacher that a corrector and the runs it learned from make."""
        return cls(corrector, prior_of([recording for _, recording in runs], seed))

    def calibrated(self, run: Run) -> Tensor:
        """The labels [n] of a run's rows as `relabel apply` corrects them."""
        return torch.from_numpy(
            labelled_runs.soft_labels(self.calibration_prior, labelled_run(run[1])).argmax(axis=1)
        )


def transfer_table(
    group_of: Callable[[Run], str],
    taught: Sequence[Run],
    tried: Sequence[Run],
    taught_by: Callable[[Sequence[Run]], Teacher],
    baselines: Mapping[str, Sequence[float]],
) -> str:
    """The transfer table by the groups of `group_of`, and a line that counts the episodes of each."""
    lessons, trials = grouped(taught, group_of), grouped(tried, group_of)
    teachers = {name: dict.fromkeys(trials, taught_by(own)) for name, own in lessons.items()}
    if len(lessons) > 1:
        teachers["others"] = {
            name: taught_by([run for run in taught if group_of(run) != name]) for name in trials
        }
    alone: dict[str, list[float]] = {}
    calibrated: dict[str, list[float]] = {}
    for name, of_group in teachers.items():
        pairs = [(run, of_group[group_of(run)]) for run in tried]
        alone[name] = [accuracy(run, corrected(teacher.corrector)(run)) for run, teacher in pairs]
        calibrated[f"{name}, calibrated"] = [accuracy(run, teacher.calibrated(run)) for run, teacher in pairs]
    counts = ", ".join(
        f"{name} {len(lessons.get(name, ()))} and {len(trials.get(name, ()))}"
        for name in sorted(lessons.keys() | trials.keys())
    )
    cells = by_group(tried, group_of, {**alone, **calibrated, **baselines})
    return f"Episodes learned from and tried on: {counts}\n\n{table('learned from', cells)}"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = _shared.parser(__doc__)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="at least two, as for relabel pretrain")
    parser.add_argument("--recordings", type=Path, required=True, help="a folder; what is there is reused")
    parser.add_argument("--episodes", type=int, default=24, help="of all sources, by turns")
    parser.add_argument("--steps", type=int, default=1_500, help="of each corrector's training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--by", nargs="+", choices=GROUPINGS, default=["source"], help="a transfer table for each of these"
    )
    parser.add_argument("--cleanlab", action="store_true", help="add a line for it")
    parser.add_argument("--figure", type=Path, help="an SVG file for the t-SNE of the LSTM's states")
    arguments = parser.parse_args()
    if len({Path(source).name for source in arguments.sources}) < 2:
        parser.error("name at least two sources")
    if arguments.cleanlab and find_spec("cleanlab") is None:
        parser.error("--cleanlab: install it first, pip install -e '.[benchmark]'")
    return arguments


def corrected(corrector: TMLCNet) -> Labels:
    """The argmax of a corrector's soft label, [n] of a run's rows at its end."""

    def labels(run: Run) -> Tensor:
        recording = run[1]
        rows, epochs, _ = recording.probability.shape
        memory = Dynamics.of(recording, corrector.without).memory(torch.arange(rows), epochs)
        with torch.no_grad():
            return corrector.soft_label(torch.empty(0), recording.seen, memory).argmax(dim=1)

    return labels


def own_rows(run: Run) -> Tensor:
    """The labels by a corrector that learned on trusted rows of this very run."""
    recording, rows = run[1], trusted_rows(run)
    dynamics = Dynamics.of(recording)
    torch.manual_seed(0)
    corrector = TMLCNet(2, 1, start="random")
    corrector.kept_share.fill_(10 / (len(rows) + 10))
    optimizer = torch.optim.Adam(corrector.parameters(), lr=3e-3)
    memory = dynamics.memory(rows, recording.probability.shape[1])
    for _ in range(OWN_STEPS):
        optimizer.zero_grad()
        loss = corrector.trusted_loss(recording.given[rows], recording.true[rows], memory)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return corrected(corrector)(run).index_fill(0, rows, -1)


def own_rows_calibrated(run: Run) -> Tensor:
    """The labels by the log-linear pool, fitted on trusted rows of this very run as by `fit`."""
    end, rows = labelled_run(run[1]), trusted_rows(run)
    given, true = end.given[rows], end.true[rows]
    of_rows = {name: values[rows] for name, values in end.evidence.items()}
    transition = TransitionEstimate.of(noise_matrix(given, true, run[1].probability.shape[2]))
    fitted = calibrate.fit(of_rows, given, true, transition, seed=0)
    labels = torch.from_numpy(fitted.soft_labels(end.evidence, end.given).argmax(axis=1))
    return labels.index_fill(0, rows, -1)


def trusted_rows(run: Run) -> Tensor:
    """The rows of a run that own_rows may read the true labels of."""
    trained = (~run[1].held_out).nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(0)
    return trained[torch.randperm(len(trained), generator=generator)[: min(OWN_ROWS, len(trained) // 2)]]


def by_cleanlab(episode: Episode, pool: Pool) -> Tensor:
    """The given labels of an episode, those that cleanlab flags replaced by the out-of-sample argmax."""
    scene = stage(episode, pool)

    def train(rows: NDArray[np.int64]) -> Training:
        training = training_of(episode, scene, None, pool.compute, rows)
        training.run(lambda report: None, lambda: None)
        return training

    return torch.from_numpy(without_issues(scene.given, len(episode.classes), episode.seed, train)[1])


def _half_wrong(recording: Recording) -> float:
    """High where there are many rows, half of them mislabelled."""
    wrong = _wrong_share(recording)
    return min(len(recording.given), FIGURE_ROWS) * wrong * (1 - wrong)


def draw_states(recording: Recording, before: TMLCNet, after: TMLCNet, path: Path) -> str:
    """Write the SVG, a panel for each corrector; returns a sentence on the neighbours."""
    from sklearn.manifold import TSNE
    from sklearn.neighbors import NearestNeighbors

    trained = (~recording.held_out).nonzero().squeeze(1)
    order = torch.randperm(len(trained), generator=torch.Generator().manual_seed(0))
    rows = trained[order[:FIGURE_ROWS]]
    given = recording.given[rows]
    wrong = (given != recording.true[rows]).numpy()
    memory = Dynamics.of(recording).memory(rows, recording.probability.shape[1])
    dots, alike = [], []
    for panel, corrector in enumerate((before, after)):
        with torch.no_grad():
            states = corrector.states(given, memory)[torch.arange(len(rows)), given].numpy()
        neighbours = NearestNeighbors(n_neighbors=11).fit(states).kneighbors(states)[1][:, 1:]
        alike.append((wrong[neighbours] == wrong[:, None]).mean())
        places = TSNE(perplexity=min(30, len(rows) / 4), random_state=0).fit_transform(states)
        places = (places - places.min(axis=0)) / (places.max(axis=0) - places.min(axis=0))
        for (x, y), is_wrong in zip(places, wrong, strict=True):
            colour = "#d62728" if is_wrong else "#1f77b4"
            dots.append(
                f'<circle cx="{20 + 440 * panel + 400 * x:.1f}" cy="{40 + 400 * y:.1f}" r="2.5" '
                f'fill="{colour}" fill-opacity="0.7"/>'
            )
    titles = "".join(
        f'<text x="{20 + 440 * panel}" y="25">{title} learning: {share * 100:.0f} % of the neighbours alike'
        "</text>"
        for panel, (title, share) in enumerate(zip(("Before", "After"), alike, strict=True))
    )
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="880" height="460" font-family="sans-serif" '
        f'font-size="14"><rect width="880" height="460" fill="white"/>{titles}{"".join(dots)}</svg>\n'
    )
    return (
        f"{path}: of {len(rows):,} given labels, {wrong.mean() * 100:.0f} % of them wrong (red), "
        f"{alike[0] * 100:.0f} % of the nearest neighbours are alike before and {alike[1] * 100:.0f} % after."
    )


def grouped(runs: Iterable[Run], group_of: Callable[[Run], str]) -> dict[str, list[Run]]:
    """The runs by group, groups and runs in the order in which they come."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(group_of(run), []).append(run)
    return groups


def accuracy(run: Run, labels: Tensor) -> float:
    """The share of correct ones among the labels [n] of a run's rows whose given label training saw."""
    counted = (labels >= 0) & ~run[1].held_out
    return (labels[counted] == run[1].true[counted]).float().mean().item()


def by_group(
    runs: Sequence[Run], group_of: Callable[[Run], str], lines: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, float]]:
    """The means of a table: of the runs of each group, by line and group."""
    groups = [group_of(run) for run in runs]
    return {
        line: {
            group: fmean(share for share, own in zip(found, groups, strict=True) if own == group)
            for group in sorted(set(groups))
        }
        for line, found in lines.items()
    }


def table(corner: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Shares by line and target as a Markdown table, in %."""
    names = list(next(iter(rows.values())))
    lines = [[name, *(f"{cells[target] * 100:.1f}" for target in names)] for name, cells in rows.items()]
    return _shared.table([f"{corner} \\ tried on", *names], lines)


if __name__ == "__main__":
    _shared.run(main)
