"""Does a TMLC-Net that learned on one data set correct another? Tables IV and V of its paper, on real images.

    python examples/transfer.py DIGITS TRASHNET CIFAR10 --recordings recordings

Every source has true labels. Episodes of all of them are recorded as `relabel pretrain` records its first
generation, or taken from its `--recordings`: short training runs under many kinds of noise, on the given
labels. A corrector learns from two thirds of a source's episodes and is then tried, as it is, at the end of
the others, its own source's and every other's.

The transfer table has a line for each source that was learned from, and for all of them but the target
(`others`). Below stand the given labels, the argmax of the last epoch (`CE`) and of the late average, and
`own rows`: a corrector that learned on 100 verified rows of the very run it corrects, the meta-training that
transfer spares its user. With `--cleanlab` three networks more are trained on each of the tried episodes, as
long as its own, and the labels that cleanlab flags by their out-of-sample predictions take the argmax. The
ablation table has the paper's variants, learned from and tried on all sources.
Figures are the share of right labels over the rows of the episodes, mean over episodes, in %.

`--figure states.svg` draws the paper's figure 3: a t-SNE of the LSTM's states, of up to 1,000 given labels of
one tried episode, before and after learning, and says how many of a state's ten nearest neighbours are alike
in being of a right or of a wrong label. (The paper colours by class; here all classes share one network.)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from baselines import without_issues
from numpy.typing import NDArray
from torch import Tensor

from relabel.correctors.tmlc_net import TMLCNet
from relabel.errors import RelabelError
from relabel.progress import Silent
from relabel.training import Training
from relabel.transfer.episodes import Episode, Pool, Recording, stage, training_of
from relabel.transfer.pretraining import Dynamics, PretrainConfig, first_generation, learn

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


def main() -> None:
    """Record, learn, try, and print two tables."""
    arguments = parse()
    arguments.recordings.mkdir(parents=True, exist_ok=True)
    config = PretrainConfig(
        tuple(arguments.sources),
        arguments.recordings,
        episodes=arguments.episodes,
        steps=arguments.steps,
        seed=arguments.seed,
    )
    pools, recorded = first_generation(config, Silent())
    episodes: dict[str, list[Recording]] = {}
    for episode, recording in recorded:
        episodes.setdefault(episode.pool, []).append(recording)
    print(", ".join(f"{name}: {len(own)} episodes" for name, own in episodes.items()), flush=True)
    taught = {name: [r for place, r in enumerate(own) if place % 3] for name, own in episodes.items()}
    tried = {name: own[::3] for name, own in episodes.items()}

    def learned(recordings: Sequence[Recording], options: Mapping[str, str] | None = None) -> TMLCNet:
        return learn(recordings, arguments.steps, arguments.seed, Silent(), options)

    rows = {name: across(tried, corrected(learned(own))) for name, own in taught.items()}
    others: dict[str, float] = {}
    for target in episodes:
        elsewhere = [recording for name, own in taught.items() if name != target for recording in own]
        others |= across({target: tried[target]}, corrected(learned(elsewhere)))
    rows["others"] = others
    rows["own rows"] = across(tried, own_rows)
    rows["late average"] = across(tried, lambda recording: recording.late.argmax(dim=1))
    if arguments.cleanlab:
        episode_of = {id(recording): episode for episode, recording in recorded}

        def cleaned(recording: Recording) -> Tensor:
            episode = episode_of[id(recording)]
            return by_cleanlab(episode, pools[episode.pool])

        rows["cleanlab"] = across(tried, cleaned)
    rows["CE"] = across(tried, lambda recording: recording.probability[:, -1].argmax(dim=1))
    rows["given"] = across(tried, lambda recording: recording.given)
    print("\n" + table("learned from \\ tried on", rows))

    everything = [recording for own in taught.values() for recording in own]
    variants = {
        name: across(tried, corrected(learned(everything, options))) for name, options in VARIANTS.items()
    }
    print("\n" + table("variant \\ tried on", variants))
    if arguments.figure:
        shown = max((one for own in tried.values() for one in own), key=_half_wrong)
        untaught = learn(everything, 0, arguments.seed, Silent())
        print("\n" + draw_states(shown, untaught, learned(everything), arguments.figure))


Labels = Callable[[Recording], Tensor]
"""The labels [n] of a recording's rows, −1 for those to be left out."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="at least two, as for relabel pretrain")
    parser.add_argument("--recordings", type=Path, required=True, help="a folder; what is there is reused")
    parser.add_argument("--episodes", type=int, default=24, help="of all sources, by turns")
    parser.add_argument("--steps", type=int, default=1_500, help="of each corrector's training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cleanlab", action="store_true", help="add a line for it")
    parser.add_argument("--figure", type=Path, help="an SVG file for the t-SNE of the LSTM's states")
    arguments = parser.parse_args()
    if len({Path(source).name for source in arguments.sources}) < 2:
        parser.error("name at least two sources")
    if arguments.cleanlab and find_spec("cleanlab") is None:
        parser.error("--cleanlab: install it first, pip install -e '.[benchmark]'")
    return arguments


def corrected(corrector: TMLCNet) -> Labels:
    """The corrected labels [n] of a recording's rows at its end."""

    def labels(recording: Recording) -> Tensor:
        memory = Dynamics.of(recording, corrector.without).memory(
            torch.arange(len(recording.given)), recording.probability.shape[1]
        )
        with torch.no_grad():
            soft_label = corrector.soft_label(torch.empty(0), recording.given, memory)
        return soft_label.argmax(dim=1)

    return labels


def own_rows(recording: Recording) -> Tensor:
    """The labels by a corrector that learned on verified rows of this very recording."""
    torch.manual_seed(0)
    rows = torch.randperm(len(recording.given))[: min(OWN_ROWS, len(recording.given) // 2)]
    dynamics = Dynamics.of(recording)
    corrector = TMLCNet(2, 1, start="random")
    corrector.kept_share.fill_(10 / (len(rows) + 10))
    optimizer = torch.optim.Adam(corrector.parameters(), lr=3e-3)
    memory = dynamics.memory(rows, recording.probability.shape[1])
    for _ in range(OWN_STEPS):
        optimizer.zero_grad()
        loss = corrector.trusted_loss(recording.given[rows], recording.true[rows], memory)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    labels = corrected(corrector)(recording)
    labels[rows] = -1
    return labels


def by_cleanlab(episode: Episode, pool: Pool) -> Tensor:
    """The given labels of an episode, those that cleanlab flags replaced by the out-of-sample argmax."""
    scene = stage(episode, pool)

    def train(rows: NDArray[np.int64]) -> Training:
        training = training_of(episode, scene, None, pool.compute, rows)
        training.run(lambda report: None, lambda: None)
        return training

    return torch.from_numpy(without_issues(scene.given, len(episode.classes), episode.seed, train)[1])


def _half_wrong(recording: Recording) -> float:
    """High where rows are many, and as many labels wrong as right."""
    wrong = (recording.given != recording.true).float().mean().item()
    return min(len(recording.given), FIGURE_ROWS) * wrong * (1 - wrong)


def draw_states(recording: Recording, before: TMLCNet, after: TMLCNet, path: Path) -> str:
    """Write the SVG, a panel for each corrector; returns a sentence on the neighbours."""
    from sklearn.manifold import TSNE
    from sklearn.neighbors import NearestNeighbors

    rows = torch.randperm(len(recording.given), generator=torch.Generator().manual_seed(0))[:FIGURE_ROWS]
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


def across(tried: Mapping[str, Sequence[Recording]], labels: Labels) -> dict[str, float]:
    """Mean share of right labels over a target's episodes, by target."""

    def share(recording: Recording) -> float:
        found = labels(recording)
        counted = found >= 0
        return (found[counted] == recording.true[counted]).float().mean().item()

    return {name: sum(map(share, recordings)) / len(recordings) for name, recordings in tried.items()}


def table(corner: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table."""
    names = list(next(iter(rows.values())))
    lines = [f"| {corner} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for name, cells in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{cells[target] * 100:.1f}' for target in names)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except RelabelError as error:
        sys.exit(f"Error: {error}")
