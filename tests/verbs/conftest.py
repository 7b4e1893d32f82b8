"""The digits of `relabel demo`, as image files and as vectors in memory, and runs of them."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from relabel.config import ApplyConfig, FitConfig
from relabel.data.in_memory import Frame, trusted_frame, vectors_frame
from relabel.labels.table import Labels
from relabel.options import build
from relabel.simulate import noise
from relabel.simulate.demo import write_dataset
from relabel.training.loop import Training
from relabel.verbs import apply as apply_verb
from relabel.verbs import fit as fit_verb

ON_CPU = {"device": "cpu", "amp": "off"}
IMAGES = {**ON_CPU, "augment": "none", "image_size": 8}
COLOURS = {"blue": (30, 40, 220), "green": (30, 200, 40), "red": (220, 40, 30)}


@dataclass(frozen=True)
class Vectors:
    """1,797 digits as vectors [N, 64], three in ten given labels wrong, 150 rows trusted; true: [N]."""

    source: Frame
    trusted: Frame
    true: np.ndarray
    rows: np.ndarray

    @property
    def keywords(self) -> dict[str, Any]:
        """What makes a fit one of these rows."""
        return {"source": self.source, "features": "embedding", **ON_CPU}


@pytest.fixture(scope="session")
def vectors() -> Vectors:
    from sklearn.datasets import load_digits

    digits = load_digits()
    values, true = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    given = noise.corrupt(
        true, [str(digit) for digit in range(10)], noise="symmetric", rate=0.3, seed=0
    ).labels
    # Not the seed of the runs, which deals held-out labels in the same way.
    rows = np.sort(np.random.default_rng(5).permutation(len(true))[:150])
    return Vectors(vectors_frame(values, given), trusted_frame((rows, true[rows])), true, rows)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The image files of the demo."""
    return write_dataset(tmp_path_factory.mktemp("demo"), overwrite=False)


@pytest.fixture(scope="session")
def truth(digits: Any) -> Callable[[Any], np.ndarray]:
    """The true class ids of rows with `file_names`."""
    with digits.truth.open(newline="") as file:
        true = {row["file_name"]: int(row["label"]) for row in csv.DictReader(file)}
    return lambda rows: np.array([true[name] for name in rows.file_names])


Observed = Callable[..., tuple[Labels, Training]]


def _watched(verb: Any, run: Callable[..., Labels], config: type) -> Observed:
    def observed(**keywords: Any) -> tuple[Labels, Training]:
        kept = []

        class Kept(Training):
            def __init__(self, *arguments: Any, **more: Any) -> None:
                super().__init__(*arguments, **more)
                kept.append(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(verb, "Training", Kept)
            return run(build(config, **keywords)), kept[0]

    return observed


@pytest.fixture(scope="session")
def fit() -> Observed:
    """A fit by keywords: its labels, and the training behind them."""
    return _watched(fit_verb, fit_verb.fit, FitConfig)


@pytest.fixture(scope="session")
def apply() -> Observed:
    """An apply by keywords: its labels, and the training behind them."""
    return _watched(apply_verb, apply_verb.apply, ApplyConfig)


@pytest.fixture(scope="session")
def draw() -> Callable[[Path, str, int], None]:
    """One noisy picture of a colour."""

    def draw(path: Path, colour: str, seed: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        grain = np.random.default_rng(seed).normal(0, 60, (10, 10, 3))
        Image.fromarray(np.clip(COLOURS[colour] + grain, 0, 255).astype(np.uint8)).save(path)

    return draw


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, draw: Callable[[Path, str, int], None]) -> Path:
    """images/{blue,green,red} of 16 each with every fourth in a wrong folder, 8 of each trusted."""
    import torch

    from relabel import backbones

    folder = tmp_path_factory.mktemp("colours")
    trusted = ["file_name,label"]
    for place, colour in enumerate(COLOURS):
        for number in range(16):
            given = list(COLOURS)[(place + (number % 4 == 0)) % 3]
            draw(folder / f"images/{given}/{colour}{number}.png", colour, 100 * place + number)
            if number < 8:
                trusted.append(f"{given}/{colour}{number}.png,{colour}")
    (folder / "trusted.csv").write_text("\n".join(trusted))
    torch.manual_seed(1)
    torch.save(backbones.build("cnn8", 3, 10).state_dict(), folder / "cnn8.pt")
    return folder


@pytest.fixture(scope="session")
def small_fit(folder: Path, fit: Observed) -> Observed:
    """A fit of the coloured pictures whose model is kept."""
    settings = {
        **ON_CPU, "source": str(folder / "images"), "trusted": folder / "trusted.csv", "epochs": 3,
        "batch_size": 16, "augment": "none", "keep_model": True,
    }  # fmt: skip
    return lambda **options: fit(**{**settings, **options})
