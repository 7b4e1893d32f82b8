"""The results as a person reads them; the same figures come as JSON under `--json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from relabel.labels.metadata import CalibrationReport, Confusion, NoiseReport
    from relabel.labels.summary import Summary
    from relabel.labels.table import Labels
    from relabel.metrics import Evaluation

_ACTIONS = ("keep", "fix", "review")
_NOISE = "Wrong labels, as calibrated"
_LEAST_SHARE = 0.0005  # of a confusion that is shown: less would read 0.0 %
_WHOLE_FROM = 9.5  # odds from here on are shown without decimals
_NARROWEST = 30  # a column of values thinner than this goes below the names instead

Lines = list[tuple[str, str]]


def show_result(console: Console, summary: Summary, output: str) -> None:
    """The end of `relabel fit`, `apply` and `predict`."""
    counts = (
        (summary.trusted_rows, "trusted"),
        (summary.unlabelled_rows, "without a label"),
        (summary.unusable_rows, "unusable"),
    )
    lines = [("Rows", f"{summary.rows:,}{_in_brackets(_counted(counts))}")]
    if summary.trusted_outside_source:
        lines.append(("Trusted images outside SOURCE", f"{summary.trusted_outside_source:,}"))
    if summary.ignored_files:
        lines.append(("Other files left alone", f"{summary.ignored_files:,}"))
    lines += _noise(summary.noise)
    lines += _confusions("Largest confusions", summary.largest_confusions)
    lines += _confusions("Learned by MLC", summary.learned_transitions or ())
    lines.append(_actions(summary.actions, summary.trusted_rows))
    if summary.calibration:
        lines += _calibrated(summary.calibration, summary.calibrated_before)
    if summary.selection:
        lines.append(("Fixes", summary.selection))
    _show(console, "What was found", lines)
    console.print(f"Wrote {_printable(output)}", markup=False, highlight=False, soft_wrap=True)


def _noise(noise: NoiseReport) -> Lines:
    lines = []
    if noise.estimated_noise_rate is not None:
        lines.append((_NOISE, _percent(noise.estimated_noise_rate)))
    if noise.trusted_noise_rate is not None and noise.trusted_noise_rate_interval is not None:
        low, high = map(_percent, noise.trusted_noise_rate_interval)
        share = _percent(noise.trusted_noise_rate)
        lines.append(("Wrong labels among the trusted rows", f"{share} (95 % interval {low} to {high})"))
    return lines


def _confusions(title: str, confusions: Sequence[Confusion]) -> Lines:
    shown = [
        f"{_percent(entry.share)} of {entry.true} is labelled {entry.given}"
        for entry in confusions
        if entry.true != entry.given and entry.share >= _LEAST_SHARE
    ]
    return [(title, "\n".join(shown))] if shown else []


def _calibrated(calibration: CalibrationReport, of_a_fit: bool) -> Lines:
    """What the calibration set measured, and where it holds corrections back."""
    lines = []
    before, after = calibration.accuracy_before, calibration.accuracy_after
    if before is not None and after is not None:
        rows = f"{calibration.calibration_rows:,} trusted rows{' of the fit' if of_a_fit else ''}"
        measured = f"{_percent(before)} before, {_percent(after)} after (on {rows}, cross-validated)"
        lines.append(("Label accuracy, measured", measured))
    if calibration.decision_threshold:
        odds = math.exp(calibration.decision_threshold)
        times = f"{odds:.2g}" if odds < _WHOLE_FROM else f"{odds:.0f}"
        reason = (
            "the trusted rows do not show that changing more labels helps; more trusted rows can show it"
            if calibration.calibration_rows
            else "few of the doubtful labels have a likelier class; trusted rows (--trusted) can show where "
            "corrections help"
        )
        rule = f"a label is changed only where another class is {times} times as likely: {reason}"
        lines.append(("Corrections", rule))
    return lines


def show_evaluation(console: Console, evaluation: Evaluation) -> None:
    """The table of `relabel evaluate`."""
    counts = (
        (evaluation.trusted_rows_excluded, "trusted"),
        (evaluation.rows_without_truth, "without a truth"),
        (evaluation.error_rows_excluded, "unusable"),
    )
    left_out = _counted(counts)
    lines = [("Rows", f"{evaluation.rows:,}" + (f" (left out: {', '.join(left_out)})" if left_out else ""))]
    if evaluation.unlabelled_rows:
        lines.append(("Unlabelled rows", f"{evaluation.unlabelled_rows:,}"))
    for name, value in (
        ("Label accuracy before", evaluation.label_accuracy_before),
        ("Label accuracy after", evaluation.label_accuracy_after),
        ("  on rows that were wrong", evaluation.accuracy_on_wrong_rows),
        ("  on rows that were right", evaluation.accuracy_on_right_rows),
        ("Accuracy on unlabelled rows", evaluation.unlabelled_accuracy),
    ):
        if value is not None:
            lines.append((name, _percent(value, 2)))
    for name, value in (
        ("Noise AUROC", evaluation.noise_auroc),
        ("Noise average precision", evaluation.noise_average_precision),
        ("Calibration error", evaluation.calibration_error),
    ):
        lines.append((name, "undefined" if value is None else f"{value:.3f}"))
    lines += [
        ("Fix", _with_share(evaluation.fix_rows, evaluation.fix_precision, "right")),
        ("Keep", _with_share(evaluation.keep_rows, evaluation.keep_precision, "right")),
        ("Review", _with_share(evaluation.review_rows, evaluation.review_precision, "wrong as given")),
    ]
    _show(console, "Against the truth", lines)


def show_labels_file(console: Console, labels: Labels) -> None:
    """What `relabel inspect` says of a labels file."""
    summary, metadata = labels.summary, labels.metadata.to_dict()
    counts = (
        (summary.trusted_rows, "trusted"),
        (summary.unlabelled_rows, "without a label"),
        (summary.unusable_rows, "with an error"),
    )
    lines = [
        ("Rows", f"{summary.rows:,}{_in_brackets(_counted(counts))}"),
        ("Classes", f"{len(labels.class_names)}: {', '.join(labels.class_names)}"),
        _actions(summary.actions, summary.trusted_rows),
    ]
    if labels.noise_rate is not None:
        lines.append((_NOISE, _percent(labels.noise_rate)))
    keys = (
        "corrector", "backbone", "weights", "image_size", "features", "dimension", "epochs", "seed",
        "trusted_rows", "command",
    )  # fmt: skip
    lines += [(_title(key), str(metadata[key])) for key in keys if key in metadata]
    versions = metadata.get("versions", {})
    lines.append(("Versions", ", ".join(f"{name} {number}" for name, number in versions.items())))
    _show(console, "Labels file", lines)


def show_trained(console: Console, described: Mapping[str, Any]) -> None:
    """What `relabel inspect` says of a corrector file or a model file."""
    _show(
        console,
        f"{described['kind'].removeprefix('relabel ').capitalize()} file",
        [(_title(key), _plain(value)) for key, value in described.items() if value is not None],
    )


def show_noisy_labels(console: Console, lines: Lines) -> None:
    """What `relabel inspect` says of the labels `relabel corrupt` wrote."""
    _show(console, "Noisy labels", lines)


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        inner = [
            f"{name} ({_plain(each)})" if isinstance(each, Mapping) else f"{name} {_plain(each)}"
            for name, each in value.items()
        ]
        return ", ".join(inner) or "none"
    if isinstance(value, Sequence) and any(isinstance(each, Mapping) for each in value):
        return "\n".join(map(_plain, value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_plain(inner) for inner in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _show(console: Console, title: str, lines: Lines) -> None:
    """A title and two columns as plain text, folded to the terminal; one line a value anywhere else."""
    indent = max(cell_len(name) for name, _ in lines) + 2
    room = console.width - indent
    below = console.is_terminal and room < _NARROWEST
    if below:
        indent, room = 2, console.width - 2
    console.print(Text(title, style="bold"), soft_wrap=True)
    for name, value in lines:
        pieces = [
            piece.plain.rstrip()
            for part in value.split("\n")
            for piece in (
                Text(_printable(part)).wrap(console, max(room, 8))
                if console.is_terminal
                else [Text(_printable(part))]
            )
        ]
        if below:
            pieces.insert(0, "")
        for number, piece in enumerate(pieces):
            start = name if number == 0 else ""
            padding = " " * (indent - cell_len(start)) if piece else ""
            console.print(Text(start + padding + piece), soft_wrap=True)


def _printable(text: str) -> str:
    """Names come from the data: an escape sequence or line feed in one must not reach the terminal."""
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text)


def _in_brackets(words: Sequence[str]) -> str:
    return f" ({', '.join(words)})" if words else ""


def _counted(counts: Sequence[tuple[int, str]]) -> list[str]:
    return [f"{count:,} {word}" for count, word in counts if count]


def _actions(counts: Mapping[str, int], trusted: int) -> tuple[str, str]:
    shown = " / ".join(f"{counts.get(key, 0):,}" for key in _ACTIONS)
    return "Keep / fix / review", f"{shown} (trusted rows not counted)" if trusted else shown


def _title(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _percent(share: float, digits: int = 1) -> str:
    return f"{share * 100:.{digits}f} %"


def _with_share(rows: int, share: float | None, word: str) -> str:
    return f"{rows:,} row{'' if rows == 1 else 's'}" + (
        "" if share is None else f", {_percent(share)} {word}"
    )
