"""What is known of the weights before any calibration row: defaults, and what other data sets teach."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relabel.calibration.selection import Corrections, Floats

PRIOR_WEIGHTS = {"early": 1.0, "late": 1.0, "prediction": 1.0, "transition": 0.25, "keep": 0.0}
"""Prior mean of the weights; any other evidence starts at 0.

The two temporal ensembles sum to 2, for an average over epochs is flatter than its accuracy deserves; a
finished backbone's prediction of an unseen image is not. The others are near what hundreds of calibration
rows gave on photographs and on CIFAR-10N (examples/RESULTS.md, "Choices").
"""


def prior_of(evidence: Iterable[str]) -> dict[str, float]:
    """The prior mean of the weights by name, those of the transition matrix and the given label last."""
    return {name: PRIOR_WEIGHTS.get(name, 0.0) for name in (*evidence, "transition", "keep")}


@dataclass(frozen=True)
class CalibrationPrior:
    """What the calibrations of other data sets leave to one without a trusted row.

    weights: by evidence name, transition and keep last; relabelled, right, confidence: [P], the `Corrections`
    of rows of those data sets; abstains: whether corrections did them more harm than good.
    """

    weights: dict[str, float]
    relabelled: NDArray[np.bool_]
    right: NDArray[np.bool_]
    confidence: Floats
    abstains: bool = False

    @property
    def evidence(self) -> list[str]:
        """The names of the distributions it weighs, in order."""
        return list(self.weights)[:-2]

    @classmethod
    def restored(cls, values: Mapping[str, Any]) -> CalibrationPrior:
        """The prior whose `vars` are `values`; ValueError, TypeError or KeyError when they are not."""
        made = cls(**values)
        if not (
            list(made.weights)[-2:] == ["transition", "keep"]
            and all(isinstance(weight, float) and math.isfinite(weight) for weight in made.weights.values())
            and Corrections(made.relabelled, made.right, made.confidence).valid
            and isinstance(made.abstains, bool)
        ):
            raise ValueError("these are not the values of a calibration prior")
        return made
