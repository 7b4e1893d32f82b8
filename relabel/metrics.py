"""How accurate labels are: against the truth (`relabel evaluate`), and the intervals a finite sample allows.

Everything takes numpy arrays and gives Python numbers. A figure the rows do not define is None, never NaN.
"""

from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What corrected labels are worth against the truth; shares are 0..1, None where no row defines them.

    "Wrong" and "right" rows are those whose GIVEN label differs from or equals the truth. `rows` are the
    labelled rows behind every figure except `unlabelled_accuracy`; the four counts after it are the others.
    It prints as its main figures; `to_dict()` has them all.
    """

    rows: int
    unlabelled_rows: int
    trusted_rows_excluded: int
    error_rows_excluded: int
    rows_without_truth: int
    noise_rate: float | None
    label_accuracy_before: float | None
    label_accuracy_after: float | None
    accuracy_on_wrong_rows: float | None
    accuracy_on_right_rows: float | None
    unlabelled_accuracy: float | None
    noise_auroc: float | None
    noise_average_precision: float | None
    calibration_error: float | None
    """Expected calibration error of `noise_probability` against "the given label is wrong"."""
    confidence_calibration_error: float | None
    """Expected calibration error of the soft label's maximum against "the corrected label is right"."""
    keep_rows: int
    keep_precision: float | None
    """Share of `keep` rows whose given label is right."""
    fix_rows: int
    fix_precision: float | None
    """Share of `fix` rows whose corrected label is right: what `--precision` bounds from below."""
    fix_precision_interval: tuple[float, float] | None
    """Wilson 95 % interval of `fix_precision`."""
    fix_coverage: float | None
    """Share of all mislabelled rows whose fix is right."""
    review_rows: int
    review_precision: float | None
    """Share of `review` rows whose given label is wrong: how seldom a reviewer looks in vain."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name, ready for JSON."""
        return asdict(self)

    def __repr__(self) -> str:
        before, after = self.label_accuracy_before, self.label_accuracy_after
        figures = [
            f"accuracy {_shown(before, '.1%')} → {_shown(after, '.1%')}",
            f"AUROC {_shown(self.noise_auroc, '.3f')}",
            f"calibration error {_shown(self.calibration_error, '.3f')}",
            f"fixes {self.fix_rows:,}"
            + ("" if self.fix_precision is None else f", {self.fix_precision:.1%} right"),
        ]
        return f"<Evaluation: {self.rows:,} rows; {'; '.join(figures)}>"


def evaluate(
    *,
    given: NDArray[np.int64],
    corrected: NDArray[np.int64],
    truth: NDArray[np.int64],
    noise_probability: NDArray[np.floating],
    confidence: NDArray[np.floating],
    action: NDArray[np.str_],
    trusted: NDArray[np.bool_],
    failed: NDArray[np.bool_],
) -> Evaluation:
    """Compare given and corrected labels with the truth; all arrays are [N] and in the same row order.

    `given` is -1 for an unlabelled row, `truth` -1 where it is not known; a true class outside the label set
    may have any id from C on. `confidence` is the maximum of the soft label. Rows that `failed` are left out,
    and so are `trusted` rows: they are right by construction and would flatter.
    """
    excluded = trusted & ~failed
    known = ~failed & ~excluded & (truth >= 0)
    rows = known & (given >= 0)
    unlabelled = known & (given < 0)

    right_after = corrected == truth
    wrong = (given != truth)[rows]
    after = right_after[rows]
    probability = noise_probability[rows]
    chosen = action[rows]
    keep, fix, review = chosen == "keep", chosen == "fix", chosen == "review"
    fixed = int(np.count_nonzero(fix & after))
    auroc, average_precision = _ranking(wrong, probability)
    return Evaluation(
        rows=len(wrong),
        unlabelled_rows=int(np.count_nonzero(unlabelled)),
        trusted_rows_excluded=int(np.count_nonzero(excluded)),
        error_rows_excluded=int(np.count_nonzero(failed)),
        rows_without_truth=int(np.count_nonzero(~failed & ~excluded & (truth < 0))),
        noise_rate=_share(wrong),
        label_accuracy_before=_share(~wrong),
        label_accuracy_after=_share(after),
        accuracy_on_wrong_rows=_share(after[wrong]),
        accuracy_on_right_rows=_share(after[~wrong]),
        unlabelled_accuracy=_share(right_after[unlabelled]),
        noise_auroc=auroc,
        noise_average_precision=average_precision,
        calibration_error=expected_calibration_error(probability, wrong),
        confidence_calibration_error=expected_calibration_error(confidence[rows], after),
        keep_rows=int(np.count_nonzero(keep)),
        keep_precision=_share(~wrong[keep]),
        fix_rows=int(np.count_nonzero(fix)),
        fix_precision=_share(after[fix]),
        fix_precision_interval=wilson_interval(fixed, int(np.count_nonzero(fix))) if fix.any() else None,
        fix_coverage=_share((fix & after)[wrong]),
        review_rows=int(np.count_nonzero(review)),
        review_precision=_share(wrong[review]),
    )


def expected_calibration_error(probability: ArrayLike, outcome: ArrayLike, bins: int = 15) -> float | None:
    """Return the mean over rows of |mean probability - share of outcomes| in a row's equal-width bin.

    `probability` [N] is in 0..1, `outcome` [N] is bool. Bins are closed on the left, the last on both sides.
    None without rows. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.
    """
    probabilities = np.asarray(probability, dtype=np.float64)
    if len(probabilities) == 0:
        return None
    assert (np.abs(probabilities - 0.5) <= 0.5 + 1e-6).all(), (
        "probabilities must be between 0 and 1, up to rounding"
    )
    bin_of_row = np.minimum((probabilities * bins).astype(np.intp), bins - 1)
    # A bin's weight times its gap is |sum of (probability - outcome)| / N: no division by an empty bin.
    gaps = np.bincount(bin_of_row, weights=probabilities - np.asarray(outcome, dtype=np.float64))
    return float(np.abs(gaps).sum() / len(probabilities))


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided Wilson score interval of a share; (0, 1) without trials (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    # Rounding must not leave 2.8e-17 where the interval ends at none or all.
    return (centre - half if successes else 0.0), (centre + half if successes < n else 1.0)


def noise_matrix(given: NDArray[np.int64], true: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Count rows by [true class, given class], int64 [C, C]; rows where either is -1 are left out."""
    known = (given >= 0) & (true >= 0)
    cells = true[known] * num_classes + given[known]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def row_shares(counts: NDArray[np.integer] | NDArray[np.float64]) -> NDArray[np.float64]:
    """p(given | true) [C, C] from rows by (true, given) [C, C]; a class without rows has zeros."""
    rows = counts.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = counts / np.where(rows > 0, rows, 1)
    return shares


def _shown(figure: float | None, form: str) -> str:
    return "undefined" if figure is None else format(figure, form)


def _share(outcome: NDArray[np.bool_]) -> float | None:
    return float(outcome.mean()) if len(outcome) else None


def _ranking(
    wrong: NDArray[np.bool_], probability: NDArray[np.floating]
) -> tuple[float | None, float | None]:
    """Return AUROC and average precision of `probability` as a detector of mislabelled rows."""
    if not wrong.any():
        return None, None
    from sklearn.metrics import average_precision_score, roc_auc_score

    average_precision = float(average_precision_score(wrong, probability))
    return (None if wrong.all() else float(roc_auc_score(wrong, probability))), average_precision
