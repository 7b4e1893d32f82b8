"""The results as a person reads them; the same figures come as JSON under `--json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from relabel.labels.table import Labels
from relabel.metrics import Evaluation

_ACTIONS = ("keep", "fix", "review")
_NARROWEST = 30  # a column of values thinner than this goes below the names instead

Lines = list[tuple[str, str]]


def show_result(console: Console, summary: Mapping[str, Any], output: str) -> None:
    """The end of `relabel fit` and `relabel predict`."""
    extras = [
        f"{summary[key]:,} {word}"
        for key, word in (
            ("trusted_rows", "verified"),
            ("unlabelled_rows", "without a label"),
            ("unusable_rows", "unusable"),
        )
        if summary[key]
    ]
    lines = [("Rows", f"{summary['rows']:,}{_in_brackets(extras)}")]
    if summary["trusted_outside_source"]:
        lines.append(("Verified images outside SOURCE", f"{summary['trusted_outside_source']:,}"))
    if summary["ignored_files"]:
        lines.append(("Other files left alone", f"{summary['ignored_files']:,}"))
    if summary["estimated_noise_rate"] is not None:
        lines.append(("Wrong labels, as calibrated", _percent(summary["estimated_noise_rate"])))
    if summary["trusted_noise_rate"] is not None:
        low, high = summary["trusted_noise_rate_interval"]
        lines.append(
            (
                "Wrong labels among the verified",
                f"{_percent(summary['trusted_noise_rate'])} "
                f"(95 % interval {_percent(low)} to {_percent(high)})",
            )
        )
    for title, key in (
        ("Largest confusions", "largest_confusions"),
        ("Learned by MLC", "learned_transitions"),
    ):
        confusions = [
            f"{_percent(entry['share'])} of {entry['true']} is labelled {entry['given']}"
            for entry in summary.get(key) or ()
            if entry["true"] != entry["given"] and entry["share"] >= 0.0005
        ]
        if confusions:
            lines.append((title, "\n".join(confusions)))
    lines.append(_actions(summary["actions"], summary["trusted_rows"]))
    calibration = summary["calibration"]
    of_the_fit = " of the fit" if summary["calibrated_before"] else ""
    if calibration["accuracy_before"] is not None:
        lines.append(
            (
                "Label accuracy, measured",
                f"{_percent(calibration['accuracy_before'])} before, "
                f"{_percent(calibration['accuracy_after'])} after "
                f"(on {calibration['calibration_rows']:,} verified rows{of_the_fit}, cross-validated)",
            )
        )
    if calibration["decision_threshold"]:
        reason = (
            "the verified rows do not show that they do good"
            if calibration["calibration_rows"]
            else "few of the labels in doubt have a likelier one"
        )
        odds = math.exp(calibration["decision_threshold"])
        times = f"{odds:.2g}" if odds < 9.5 else f"{odds:.0f}"
        lines.append(("Corrections", f"only where {times} times as likely as the given label, for {reason}"))
    lines.append(("Promise", summary["selection"]))
    _show(console, "What was found", lines)
    console.print(f"Wrote {_printable(output)}", markup=False, highlight=False, soft_wrap=True)


def show_evaluation(console: Console, evaluation: Evaluation) -> None:
    """The table of `relabel evaluate`."""
    left_out = [
        f"{count:,} {word}"
        for count, word in (
            (evaluation.trusted_rows_excluded, "verified"),
            (evaluation.rows_without_truth, "without a truth"),
            (evaluation.error_rows_excluded, "unusable"),
        )
        if count
    ]
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
    extras = [
        f"{count:,} {word}"
        for count, word in (
            (summary.trusted_rows, "verified"),
            (summary.unlabelled_rows, "without a label"),
            (summary.unusable_rows, "with an error"),
        )
        if count
    ]
    lines = [
        ("Rows", f"{summary.rows:,}{_in_brackets(extras)}"),
        ("Classes", f"{len(labels.class_names)}: {', '.join(labels.class_names)}"),
        _actions(summary.actions, summary.trusted_rows),
    ]
    if labels.noise_rate is not None:
        lines.append(("Wrong labels, as calibrated", _percent(labels.noise_rate)))
    told = (
        "corrector", "backbone", "weights", "image_size", "features", "dimension", "epochs", "seed",
        "trusted_rows", "command",
    )  # fmt: skip
    lines += [(_title(key), str(metadata[key])) for key in told if key in metadata]
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


def _actions(counts: Mapping[str, int], verified: int) -> tuple[str, str]:
    shown = " / ".join(f"{counts.get(key, 0):,}" for key in _ACTIONS)
    return "Keep / fix / review", f"{shown} (verified rows not counted)" if verified else shown


def _title(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _percent(share: float, digits: int = 1) -> str:
    return f"{share * 100:.{digits}f} %"


def _with_share(rows: int, share: float | None, word: str) -> str:
    return f"{rows:,} row{'' if rows == 1 else 's'}" + (
        "" if share is None else f", {_percent(share)} {word}"
    )
