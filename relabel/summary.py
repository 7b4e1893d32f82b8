"""The results as a person reads them; the same figures come as JSON under `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from relabel.metrics import Evaluation
from relabel.output.parquet import LabelsFile


def show_fit(console: Console, summary: Mapping[str, Any], output: str) -> None:
    """The end of `relabel fit`."""
    table = _table("What was found")
    rows = f"{summary['rows']:,}"
    extras = [
        f"{summary[key]:,} {word}"
        for key, word in (
            ("unlabelled_rows", "without a label"),
            ("unusable_rows", "unusable"),
            ("trusted_rows", "verified"),
        )
        if summary[key]
    ]
    table.add_row("Rows", f"{rows} ({', '.join(extras)})" if extras else rows)
    if summary["ignored_files"]:
        table.add_row("Other files left alone", f"{summary['ignored_files']:,}")
    table.add_row("Wrong labels, as calibrated", _percent(summary["estimated_noise_rate"]))
    if summary["verified_noise_rate"] is not None:
        low, high = summary["verified_noise_rate_interval"]
        table.add_row(
            "Wrong labels among the verified rows",
            f"{_percent(summary['verified_noise_rate'])} (95 % interval {_percent(low)} to {_percent(high)})",
        )
    confusions = [
        f"{entry['share']:.1%} of {entry['true']} is labelled {entry['given']}"
        for entry in summary["largest_confusions"]
    ]
    table.add_row("Largest confusions", "\n".join(confusions))
    actions = summary["actions"]
    table.add_row("Keep / fix / review", " / ".join(f"{actions[key]:,}" for key in ("keep", "fix", "review")))
    calibration = summary["calibration"]
    if calibration["probe_accuracy_before"] is not None:
        table.add_row(
            "Label accuracy on the probe rows",
            f"{_percent(calibration['probe_accuracy_before'])} before, "
            f"{_percent(calibration['probe_accuracy_after'])} after "
            f"(cross-validated, {calibration['probes']} rows)",
        )
    table.add_row("Promise", summary["promise"])
    console.print(table)
    console.print(f"Wrote {output}", markup=False, highlight=False, soft_wrap=True)


def show_evaluation(console: Console, evaluation: Evaluation) -> None:
    """The table of `relabel evaluate`."""
    table = _table("Against the truth")
    table.add_row(
        "Rows", f"{evaluation.rows:,} ({evaluation.trusted_rows_excluded:,} verified ones left out)"
    )
    for name, value in (
        ("Label accuracy before", evaluation.label_accuracy_before),
        ("Label accuracy after", evaluation.label_accuracy_after),
        ("  on rows that were wrong", evaluation.accuracy_on_wrong_rows),
        ("  on rows that were right", evaluation.accuracy_on_right_rows),
        ("Accuracy on unlabelled rows", evaluation.unlabelled_accuracy),
    ):
        if value is not None:
            table.add_row(name, _percent(value, 2))
    for name, value in (
        ("Noise AUROC", evaluation.noise_auroc),
        ("Noise average precision", evaluation.noise_average_precision),
        ("Calibration error", evaluation.calibration_error),
    ):
        table.add_row(name, "undefined" if value is None else f"{value:.3f}")
    fixes = f"{evaluation.fix_rows:,} rows"
    if evaluation.fix_precision is not None:
        fixes += f", {_percent(evaluation.fix_precision)} right"
    table.add_row("Fix", fixes)
    table.add_row("Keep", _with_share(evaluation.keep_rows, evaluation.keep_precision, "right"))
    table.add_row(
        "Review", _with_share(evaluation.review_rows, evaluation.review_precision, "wrong as given")
    )
    console.print(table)


def show_labels_file(console: Console, file: LabelsFile) -> None:
    """What `relabel inspect` says of a labels file."""
    metadata = file.metadata
    table = _table("Labels file")
    table.add_row("Rows", f"{file.table.num_rows:,}")
    table.add_row("Classes", f"{len(file.class_names)}: {', '.join(file.class_names)}")
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(file.table["action"]).to_pylist()}
    table.add_row(
        "Keep / fix / review", " / ".join(f"{counts.get(key, 0):,}" for key in ("keep", "fix", "review"))
    )
    table.add_row("Rows with an error", f"{file.table.num_rows - file.table['error'].null_count:,}")
    for key in (
        "corrector",
        "backbone",
        "weights",
        "image_size",
        "epochs",
        "seed",
        "trusted_rows",
        "command",
    ):
        if key in metadata:
            table.add_row(key.replace("_", " ").capitalize(), str(metadata[key]))
    if "estimated_noise_rate" in metadata:
        table.add_row("Wrong labels, as calibrated", _percent(metadata["estimated_noise_rate"]))
    versions = metadata.get("versions", {})
    table.add_row("Versions", ", ".join(f"{name} {number}" for name, number in versions.items()))
    console.print(table)


def show_corrector(console: Console, described: Mapping[str, Any]) -> None:
    """What `relabel inspect` says of a corrector file."""
    table = _table("Corrector file")
    for key, value in described.items():
        text = ", ".join(value) if isinstance(value, list) else f"{value}"
        table.add_row(key.replace("_", " ").capitalize(), text)
    console.print(table)


def _table(title: str) -> Table:
    table = Table(title=title, show_header=False, title_justify="left", box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _percent(share: float, digits: int = 1) -> str:
    return f"{share * 100:.{digits}f} %"


def _with_share(rows: int, share: float | None, word: str) -> str:
    return f"{rows:,} rows" + ("" if share is None else f", {_percent(share)} {word}")
