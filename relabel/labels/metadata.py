"""What a labels file says of itself: the run, the noise, the calibration. JSON under the key `relabel`.

Files of other versions may lack a field or have more: what is missing is None, what is unknown is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relabel.calibration.selection import Selection
from relabel.data.tables import printable

_WHOLE_MATRIX_CLASSES = 256  # whole, 1,000 classes would be 20 MB of JSON
_CELLS_KEPT = 1_000
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Confusion:
    """The share of a true class that is given another class's label."""

    true: str
    given: str
    share: float


@dataclass(frozen=True, eq=False)
class MatrixRecord:
    """A matrix [C, C] of p(given | true), its shares to six digits.

    Readers of Parquet give up on metadata of 100 MB. So it is `whole` for up to 256 classes. Of more it
    has the `diagonal` [C] and the `largest` other cells above 0, at most 1,000 of them.
    """

    whole: NDArray[np.float64] | None = None
    diagonal: NDArray[np.float64] | None = None
    largest: tuple[Confusion, ...] = ()

    @classmethod
    def of(
        cls, matrix: NDArray[np.float64], class_names: Sequence[str], known: NDArray[np.bool_] | None = None
    ) -> MatrixRecord:
        """known: [C], the true classes whose cells may be among the `largest`; default: all."""
        rounded = matrix.round(6)
        if len(class_names) <= _WHOLE_MATRIX_CLASSES:
            return cls(whole=rounded)
        largest = largest_confusions(
            rounded if known is None else rounded * known[:, None], class_names, _CELLS_KEPT
        )
        return cls(diagonal=rounded.diagonal(), largest=tuple(largest))

    def confusions(
        self, class_names: Sequence[str], entries: int, known: NDArray[np.bool_] | None = None
    ) -> list[Confusion]:
        """The largest cells off the diagonal; known: as in `of`."""
        if self.whole is None:
            return list(self.largest[:entries])
        shares = self.whole if known is None else self.whole * known[:, None]
        return largest_confusions(shares, class_names, entries)

    def to_dict(self, name: str) -> dict[str, Any]:
        """JSON data: `NAME`, or `NAME_diagonal` and `NAME_largest`."""
        if self.whole is not None:
            return {name: self.whole.tolist()}
        assert self.diagonal is not None
        return {
            f"{name}_diagonal": self.diagonal.tolist(),
            f"{name}_largest": [asdict(cell) for cell in self.largest],
        }

    @classmethod
    def taken(cls, values: dict[str, Any], name: str) -> MatrixRecord | None:
        """What `to_dict` made, removed from `values`; None where there is none."""
        whole, diagonal = values.pop(name, None), values.pop(f"{name}_diagonal", None)
        largest = values.pop(f"{name}_largest", ())
        if whole is not None:
            return cls(whole=np.array(whole, dtype=np.float64))
        if diagonal is None:
            return None
        return cls(diagonal=np.array(diagonal), largest=tuple(Confusion(**cell) for cell in largest))


def matrix_metadata(name: str, matrix: NDArray[np.float64], class_names: Sequence[str]) -> dict[str, Any]:
    """A matrix [C, C] of p(given | true) as JSON data, see `MatrixRecord`."""
    return MatrixRecord.of(matrix, class_names).to_dict(name)


def largest_confusions(
    matrix: NDArray[np.float64], class_names: Sequence[str], entries: int
) -> list[Confusion]:
    """The largest cells above 0 off the diagonal of p(given | true) [C, C], the largest first."""
    shares = matrix.copy()
    np.fill_diagonal(shares, 0)
    cells = shares.ravel()
    shown = np.flatnonzero(cells > 0)
    if len(shown) > entries:  # of thousands of classes, millions, which would take long to sort
        shown = shown[cells[shown] >= np.partition(cells[shown], -entries)[-entries]]
    shown = shown[np.argsort(-cells[shown], kind="stable")][:entries]
    pairs = [divmod(int(cell), len(class_names)) for cell in shown]
    return [
        Confusion(class_names[true], class_names[given], float(shares[true, given])) for true, given in pairs
    ]


@dataclass(frozen=True)
class NoiseReport:
    """How many given labels are wrong.

    estimated_noise_rate: the mean noise probability of the labelled rows; trusted_noise_rate: the share of
    wrong given labels among the trusted rows, with its Wilson 95 % interval. None without such rows.
    """

    estimated_noise_rate: float | None = None
    trusted_noise_rate: float | None = None
    trusted_noise_rate_interval: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        interval = self.trusted_noise_rate_interval
        return {**vars(self), "trusted_noise_rate_interval": None if interval is None else list(interval)}

    @classmethod
    def taken(cls, values: dict[str, Any]) -> NoiseReport:
        """What `to_dict` made, removed from `values`."""
        found = {each.name: values.pop(each.name, None) for each in fields(cls)}
        interval = found["trusted_noise_rate_interval"]
        return cls(**{**found, "trusted_noise_rate_interval": interval and (interval[0], interval[1])})


@dataclass(frozen=True)
class Run:
    """What made the labels. None: it has no meaning for that run.

    trusted_rows: given to the run, in SOURCE or outside it; began_at: the corrector file whose parameters the
    corrector began with; pretrained: the corrector file of `apply` and how it was trained; held_out_rows:
    whose label the training of `apply` did not see; model: the model file of `predict`, whose run the other
    fields describe; described: what the corrector says of itself.
    """

    corrector: str | None = None
    preset: str | None = None
    options: Mapping[str, str] | None = None
    backbone: str | None = None
    weights: str | None = None
    image_size: int | None = None
    features: str | None = None
    dimension: int | None = None
    epochs: int | None = None
    seed: int | None = None
    trusted_rows: int | None = None
    freeze: bool | None = None
    averaged: bool | None = None
    began_at: str | None = None
    pretrained: Mapping[str, Any] | None = None
    held_out_rows: int | None = None
    model: Mapping[str, Any] | None = None
    described: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON data: one flat object, without what is None, except the preset."""
        known = {name: value for name, value in vars(self).items() if name != "described"}
        present = {name: value for name, value in known.items() if value is not None or name == "preset"}
        return {**present, **self.described}

    @classmethod
    def taken(cls, values: dict[str, Any]) -> Run:
        """What `to_dict` made; nothing is left in `values`."""
        known = {each.name: values.pop(each.name, None) for each in fields(cls) if each.name != "described"}
        described = dict(values)
        values.clear()
        return cls(**known, described=described)


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """How the probabilities were calibrated, and what the calibration set says of them.

    calibration_rows: of the run itself, 0 where the calibration is transferred; accuracies and calibration
    error are cross-validated; right_scores, wrong_scores: the confidences of the rows of the calibration set
    that were relabelled, rightly and wrongly: what `Labels.decide` needs. None in a file that lacks them.
    """

    calibration_rows: int
    weights: Mapping[str, float]
    abstains: bool
    decision_threshold: float | None
    accuracy_before: float | None
    accuracy_after: float | None
    calibration_error: float | None
    transferred: bool = False
    selection: Selection | None = None
    right_scores: NDArray[np.float64] | None = None
    wrong_scores: NDArray[np.float64] | None = None

    def figures(self) -> dict[str, Any]:
        """JSON data for a reader: all but the selection and its scores."""
        left_out = ("selection", "right_scores", "wrong_scores")
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        values = self.figures()
        if self.selection is not None:
            values["selection"] = asdict(self.selection)
        for name in ("right_scores", "wrong_scores"):
            scores = getattr(self, name)
            if scores is not None:
                values[name] = scores.tolist()
        return values

    @classmethod
    def of_dict(cls, values: object) -> CalibrationReport | None:
        """What `to_dict` made; None for anything else, as another version may have written."""
        if not isinstance(values, Mapping):
            return None
        known = dict(values)
        try:
            if known.get("selection") is not None:
                known["selection"] = Selection(**known["selection"])
            for name in known.keys() & {"right_scores", "wrong_scores"}:
                known[name] = np.array(known[name], dtype=np.float64)
            return cls(**known)
        except (TypeError, ValueError):
            return None


@dataclass(frozen=True, eq=False)
class Metadata:
    """All that the labels file's JSON says.

    numbered_labels: whether labels were numbers and the class names belong to these in order; source: where
    the rows came from; ignored_files: of SOURCE, neither images nor anything else that relabel reads;
    noise_matrix: p(given | true) by the soft labels; transition_matrix: as a corrector learned it.
    """

    class_names: list[str]
    numbered_labels: bool = False
    source: str | None = None
    ignored_files: int = 0
    run: Run = field(default_factory=Run)
    versions: Mapping[str, str] = field(default_factory=dict)
    noise: NoiseReport = field(default_factory=NoiseReport)
    noise_matrix: MatrixRecord | None = None
    transition_matrix: MatrixRecord | None = None
    calibration: CalibrationReport | None = None
    command: str | None = None

    def decided(self, selection: Selection) -> Metadata:
        """With another selection."""
        assert self.calibration is not None
        return replace(self, calibration=replace(self.calibration, selection=selection))

    def to_dict(self) -> dict[str, Any]:
        """JSON data: one object with the fields of the run and of the noise among its own."""
        matrix = (
            {"noise_matrix": None} if self.noise_matrix is None else self.noise_matrix.to_dict("noise_matrix")
        )
        values = {
            **self.run.to_dict(),
            "class_names": self.class_names,
            "numbered_labels": self.numbered_labels,
            "ignored_files": self.ignored_files,
            "versions": dict(self.versions),
            **self.noise.to_dict(),
            **matrix,
        }
        if self.transition_matrix is not None:
            values |= self.transition_matrix.to_dict("transition_matrix")
        if self.calibration is not None:
            values["calibration"] = self.calibration.to_dict()
        plain = {"source": self.source, "command": self.command}
        return values | {name: text for name, text in plain.items() if text is not None}

    def to_json(self) -> bytes:
        """The bytes in the file; equal data give equal bytes."""
        return metadata_json(self.to_dict())

    @classmethod
    def of_json(cls, text: bytes | None) -> Metadata | None:
        """The metadata in the bytes of a file; None when relabel did not write them."""
        try:
            values = json.loads(text or b"null")
            return cls._of_dict(values) if _has_class_names(values) else None
        except (ValueError, TypeError, KeyError, IndexError):
            return None

    @classmethod
    def _of_dict(cls, values: dict[str, Any]) -> Metadata:
        return cls(
            class_names=values.pop("class_names"),
            numbered_labels=bool(values.pop("numbered_labels", False)),
            source=values.pop("source", None),
            ignored_files=values.pop("ignored_files", 0),
            versions=values.pop("versions", {}),
            noise=NoiseReport.taken(values),
            noise_matrix=MatrixRecord.taken(values, "noise_matrix"),
            transition_matrix=MatrixRecord.taken(values, "transition_matrix"),
            calibration=CalibrationReport.of_dict(values.pop("calibration", None)),
            command=values.pop("command", None),
            run=Run.taken(values),  # the last: it takes what is left
        )


def _has_class_names(values: object) -> bool:
    names = values.get("class_names") if isinstance(values, dict) else None
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def metadata_json(metadata: Mapping[str, Any]) -> bytes:
    """JSON data as the metadata of a file of ours; equal data give equal bytes.

    What is not valid Unicode, as in the path of a file, is escaped as `printable` does.
    """
    text = json.dumps(metadata, sort_keys=True, allow_nan=False, ensure_ascii=False)
    # With a second backslash, for to JSON one would be half of a character, which strict readers refuse.
    return _HALF_CHARACTER.sub(lambda half: "\\" + printable(half[0]), text).encode()
