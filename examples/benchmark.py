"""Measure `relabel` on real data: one Markdown table, and a Parquet file of every run.

    python examples/benchmark.py trashnet PATH/TO/trashnet --precision 0.9
    python examples/benchmark.py cifar10n PATH/TO/cifar10n_worse_25k.parquet
    python examples/benchmark.py speed

The first two run the command line as a user would type it (`corrupt`, `fit`, `evaluate`); verified rows are
drawn at random and left out of every figure; options that are not this script's go to `fit`. `speed` times
an epoch against a bare training loop in the same process, in turns.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FIGURES = {
    "before": "label_accuracy_before",
    "after": "label_accuracy_after",
    "on wrong rows": "accuracy_on_wrong_rows",
    "on right rows": "accuracy_on_right_rows",
    "AUROC": "noise_auroc",
    "AP": "noise_average_precision",
    "calibration error": "calibration_error",
    "fix rows": "fix_rows",
    "fix precision": "fix_precision",
    "seconds": "seconds",
    "peak GB": "peak_gigabytes",
}


def main() -> None:
    """Read the command line and run the benchmark it names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=["trashnet", "cifar10n", "speed"])
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--correctors", nargs="+", default=["none", "mslc"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--trusted", type=int, help="verified rows (default: 300 for trashnet, 1,000 for cifar10n)"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmark.parquet"))
    arguments, fit_options = parser.parse_known_args()  # what is not ours is relabel fit's
    if arguments.benchmark == "speed":
        return speed()
    if arguments.data is None:
        parser.error(f"{arguments.benchmark} needs the path of its data")
    prepare = {"trashnet": prepare_trashnet, "cifar10n": prepare_cifar10n}[arguments.benchmark]
    trusted = arguments.trusted or {"trashnet": 300, "cifar10n": 1000}[arguments.benchmark]
    runs = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory(prefix="relabel-benchmark-") as folder:
            source, truth, labels = prepare(arguments.data, Path(folder), seed)
            trusted_file = draw_trusted(truth, Path(folder), trusted, seed)
            for corrector in arguments.correctors:
                options = ["--corrector", corrector, "--seed", str(seed), *labels, *fit_options]
                run = measure(source, trusted_file, truth, Path(folder), options)
                runs.append({"benchmark": arguments.benchmark, "corrector": corrector, "seed": seed, **run})
                print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    pq.write_table(pa.Table.from_pylist(runs), arguments.output)
    print(markdown(runs))
    return None


def prepare_trashnet(data: Path, folder: Path, seed: int) -> tuple[Path, Path, list[str]]:
    """30 % symmetric noise over the class folders: source, truth, options of fit."""
    noisy = folder / "noisy.csv"
    relabel("corrupt", data, "--noise", "symmetric", "--rate", "0.3", "--seed", str(seed), "-o", noisy)
    return data, noisy, ["--labels", str(noisy)]


def prepare_cifar10n(data: Path, folder: Path, seed: int) -> tuple[Path, Path, list[str]]:
    """The images as files, and a manifest with the human label and the truth."""
    table = pq.read_table(data)
    manifest = folder / "cifar10n.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label", "clean_label"])
        for row in table.to_pylist():
            (folder / row["image"]["path"]).write_bytes(row["image"]["bytes"])
            writer.writerow([row["image"]["path"], row["label"], row["clean_label"]])
    return manifest, manifest, []


def draw_trusted(truth: Path, folder: Path, count: int, seed: int) -> Path:
    """`count` rows drawn at random, with their true labels."""
    with truth.open(newline="") as file:
        rows = list(csv.DictReader(file))
    drawn = np.sort(np.random.default_rng(1_000 + seed).permutation(len(rows))[:count])
    path = folder / "trusted.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label"])
        writer.writerows([rows[row]["file_name"], rows[row]["clean_label"]] for row in drawn)
    return path


def measure(source: Path, trusted: Path, truth: Path, folder: Path, options: Sequence[str]) -> dict[str, Any]:
    """Run fit and evaluate; the figures, the seconds of fit and its peak memory."""
    output = folder / "labels.parquet"
    command = ["fit", source, "--trusted", trusted, "-o", output, "--overwrite", "--quiet", *options]
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "relabel", *map(str, command)])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise SystemExit(f"relabel {' '.join(map(str, command))} failed")
    evaluation = json.loads(relabel("evaluate", output, "--truth", truth, "--json"))
    evaluation.pop("fix_precision_interval")
    return {**evaluation, "seconds": seconds, "peak_gigabytes": usage.ru_maxrss / 2**20}


def relabel(*arguments: object) -> str:
    """Run the command line and return its standard output."""
    command = [sys.executable, "-m", "relabel", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def markdown(runs: Iterable[dict[str, Any]]) -> str:
    """One row per corrector: mean ± standard deviation over the seeds."""
    runs = list(runs)
    lines = ["| corrector | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    for corrector in dict.fromkeys(run["corrector"] for run in runs):
        cells = []
        for name in FIGURES.values():
            values = [run[name] for run in runs if run["corrector"] == corrector and run[name] is not None]
            cells.append(_spread(values, name))
        lines.append(f"| {corrector} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: list[float], name: str) -> str:
    if not values:
        return "–"
    percent = "accuracy" in name or name == "fix_precision"
    digits = 1 if percent or name == "peak_gigabytes" else 0 if name in ("seconds", "fix_rows") else 3
    scale = 100 if percent else 1
    spread = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * statistics.mean(values):.{digits}f}{spread}"


def speed(images: int = 2560, batch_size: int = 256, rounds: int = 5) -> None:
    """Seconds per epoch of cnn8 on 32 px images: ours (plain and MSLC) against a bare loop, in turns."""
    import torch

    from relabel import backbones, correctors, device
    from relabel.data.loading import ImageInputs
    from relabel.training import Rows, Schedule, Training

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    given = torch.from_numpy(rng.integers(0, 10, images))
    compute = device.resolve()
    schedule = Schedule(
        epochs=1000, warmup_epochs=0, average_from=0, batch_size=batch_size, learning_rate=0.1,
        weight_decay=5e-4, meta_learning_rate=1e-2, meta_batch_size=64,
    )  # fmt: skip
    rows = Rows(torch.arange(images), given, torch.arange(0), torch.arange(images)[:500], given[:500])

    def ours(name: str) -> Callable[[], object]:
        training = Training(
            backbones.build("cnn8", 10, 32), correctors.create(name), ImageInputs(pixels, "flip"), rows,
            schedule, compute, seed=0,
        )  # fmt: skip
        return training.run_epoch

    def bare(amp: bool) -> Callable[[], object]:
        model = backbones.build("cnn8", 10, 32)
        data = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.25).contiguous()
        if amp:
            model = model.to(memory_format=torch.channels_last)
            data = data.contiguous(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        )

        def epoch() -> None:
            model.train()
            for index in torch.randperm(images).tensor_split(images // batch_size):
                with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                    logits, _ = model(data[index])
                loss = torch.nn.functional.cross_entropy(logits, given[index])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

        return epoch

    loops = {
        "bare loop, float32": bare(False),
        "bare loop, bf16 channels-last": bare(True),
        "relabel, none": ours("none"),
        "relabel, mslc": ours("mslc"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(rounds + 1):
        for name, loop in loops.items():
            begin = time.perf_counter()
            loop()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - begin)
    reference = seconds["bare loop, bf16 channels-last"]
    print(
        "| epoch | seconds (median) | ratio to bare bf16, turn by turn: median (min to max) |\n|---|---|---|"
    )
    for name, times in seconds.items():
        ratios = sorted(ours / theirs for ours, theirs in zip(times, reference, strict=True))
        print(
            f"| {name} | {statistics.median(times):.2f} | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )


if __name__ == "__main__":
    main()
