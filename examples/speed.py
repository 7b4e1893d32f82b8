"""Time `relabel`: the training with a corrector, and the reading of images.

    python examples/speed.py training
    python examples/speed.py input PATH/TO/trashnet

`training` times an epoch of the meta phase against bare training loops and against `none`, in the same
process and in turns, on random images.

`input` counts the images a second that reach the training from a folder of class folders, with relabel and
with torchvision's ImageFolder and a DataLoader, in turns and on two cores. The first epoch opens the folder,
after the system was told to drop the files from its cache; the second does not. Both ways resize the shorter
side to `--image-size`, crop the centre, shift by up to an eighth, mirror and normalise.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import _shared
import numpy as np
import torch
from _shared import table
from benchmark import METHODS
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from relabel import backbones
from relabel import device as devices
from relabel.config import SHIPPED_CORRECTOR
from relabel.correctors import registry
from relabel.correctors.base import TrustedRows
from relabel.data.batches import ImageInputs, open_images
from relabel.data.sources import open_source
from relabel.device import Compute
from relabel.progress import Silent
from relabel.saved.corrector_file import read_corrector, shipped_state
from relabel.schedule import Schedule
from relabel.training.loop import Training
from relabel.training.rows import Rows

Epoch = Callable[[], Iterator[Tensor]]

META, TRUSTED = 500, 670  # rows: for the meta-gradient, and with the in-training ones


def main() -> None:
    """Print one of the two tables."""
    parser = _shared.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    of_training = commands.add_parser("training", allow_abbrev=False)
    of_training.add_argument("--rows", type=int, default=2560, help="images, default: %(default)s")
    of_training.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    of_input = commands.add_parser("input", allow_abbrev=False)
    of_input.add_argument("folder", type=Path)
    of_input.add_argument("--image-size", type=int, default=64, help="default: %(default)s")
    of_input.add_argument("--batch-size", type=int, default=256, help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.command == "training":
        if arguments.rows < TRUSTED:
            of_training.error(f"--rows {arguments.rows}: the first {TRUSTED} are the trusted ones")
        print(training(arguments.rows, arguments.device))
        return
    if not arguments.folder.is_dir():
        of_input.error(f"{arguments.folder}: not a folder")
    keep_to_two_cores()
    print(input_rates(arguments.folder, arguments.image_size, arguments.batch_size))


def training(images: int, device: str, batch_size: int = 256, rounds: int = 5) -> str:
    """Seconds per epoch of cnn8 on 32 px images: ours in the meta phase and bare loops, in turns.

    The bare loops take no augmentation. TMLC-Net has a history of ten epochs and more, of which it replays
    eight. "auto" is bf16 where the hardware has it.
    """
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, images)
    auto, full = devices.resolve(device), devices.resolve(device, "off")
    half = devices.resolve(device, "bf16")
    loops = {
        "bare, float32": bare_epoch(pixels, labels, full, batch_size),
        "bare, bf16 channels-last": bare_epoch(pixels, labels, half, batch_size),
    }
    for compute, suffix in ((auto, ""), (full, ", float32")):
        for name in METHODS[:6] if compute is auto else ("none", "mslc"):
            loops[name + suffix] = our_epoch(name, "last-layer", pixels, labels, compute, batch_size)
        loops[f"mslc, exact{suffix}"] = our_epoch("mslc", "exact", pixels, labels, compute, batch_size)
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(rounds + 1):
        for name, loop in loops.items():
            begin = time.perf_counter()
            loop()
            if turn:  # the first turn warms up, and begins the meta phase
                seconds[name].append(time.perf_counter() - begin)
    rows = []
    for name, times in seconds.items():
        none = seconds["none, float32" if name.endswith("float32") else "none"]
        bare = seconds["bare, bf16 channels-last"]
        rows.append([name, f"{statistics.median(times):.2f}", _ratio(times, none), _ratio(times, bare)])
    header = ["epoch", "seconds (median)", "ratio to `none` in that format", "ratio to bare bf16"]
    return (
        f"cnn8, {images:,} images of 32 px, batches of {batch_size}, {auto.describe()} where nothing else is "
        f"said; ratios turn by turn: median (min to max) of {rounds}.\n\n{table(header, rows)}"
    )


def _ratio(times: Sequence[float], reference: Sequence[float]) -> str:
    ratios = sorted(ours / theirs for ours, theirs in zip(times, reference, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def our_epoch(
    name: str,
    meta_gradient: str,
    pixels: np.ndarray[Any, np.dtype[np.uint8]],
    labels: np.ndarray[Any, np.dtype[np.int64]],
    compute: Compute,
    batch_size: int,
) -> Callable[[], object]:
    """An epoch of `relabel`'s training with a corrector that has begun its meta phase."""
    backbone = backbones.build("cnn8", 10, 32)
    if name == "apply":
        corrector = read_corrector(SHIPPED_CORRECTOR).transferred(10, backbone.head.in_features)
    else:
        corrector = registry.create(name, 10, backbone.head.in_features, pretrained=shipped_state())
    warmup = 10 if corrector.needs.transfers else 1  # a history of the length that a real run has
    schedule = Schedule(
        epochs=1000, warmup_epochs=warmup, batch_size=batch_size, learning_rate=0.1,
        weight_decay=5e-4, meta_learning_rate=1e-3, meta_batch_size=64, meta_gradient=meta_gradient,
    )  # fmt: skip
    given, order = torch.from_numpy(labels), torch.arange(len(labels))
    meta, in_training = (
        TrustedRows(order[part], given[part], given[part]) for part in (slice(META), slice(META, TRUSTED))
    )
    rows = Rows(order, given, meta=meta, in_training=in_training)
    ours = Training(
        backbone,
        corrector,
        ImageInputs(pixels, "flip"),
        rows,
        schedule,
        compute,
        seed=0,
        frozen=name == "apply",
    )
    for _ in range(warmup):
        ours.run_epoch()
    return ours.run_epoch


def bare_epoch(
    pixels: np.ndarray[Any, np.dtype[np.uint8]],
    labels: np.ndarray[Any, np.dtype[np.int64]],
    compute: Compute,
    batch_size: int,
) -> Callable[[], object]:
    """An epoch of a training loop with nothing in it that training can do without."""
    model = backbones.build("cnn8", 10, 32).to(compute.device)
    data = torch.from_numpy(pixels).to(compute.device).permute(0, 3, 1, 2)
    data = data.float().div(255).sub(0.5).div(0.25).contiguous()
    given = torch.from_numpy(labels).to(compute.device)
    if compute.autocast_dtype is not None:
        model = model.to(memory_format=torch.channels_last)
        data = data.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def epoch() -> float:
        model.train()
        for index in torch.randperm(len(data)).tensor_split(max(1, len(data) // batch_size)):
            with compute.autocast():
                logits, _ = model(data[index])
            loss = torch.nn.functional.cross_entropy(logits, given[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return loss.item()  # waits for an accelerator to finish

    return epoch


def keep_to_two_cores() -> None:
    """As many as the DataLoader has workers; the workers inherit it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    torch.set_num_threads(2)


def input_rates(folder: Path, size: int, batch_size: int, turns: int = 5) -> str:
    """Images a second through each of `ways`, and how many times those of the DataLoader with workers."""
    rates: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(turns):
        for name, opened in ways(folder, size, batch_size).items():
            forget_files(folder)
            begin = time.perf_counter()
            epoch = opened()
            for epochs in rates.setdefault(name, ([], [])):
                images = sum(len(batch) for batch in epoch())
                epochs.append(images / (time.perf_counter() - begin))
                begin = time.perf_counter()
            del epoch  # ends the workers
    reference = rates["DataLoader, 2 workers"]
    rows = [
        [name, *(cell for rate, other in zip(both, reference, strict=True) for cell in _rate(rate, other))]
        for name, both in rates.items()
    ]
    header = ["input path", "first epoch, images/s", "ratio", "later epoch, images/s", "ratio"]
    return (
        f"{images:,} images at {size} px, batches of {batch_size}, two cores; times the rate of the "
        f"DataLoader with 2 workers, turn by turn: median (min to max) of {turns}.\n\n{table(header, rows)}"
    )


def _rate(rates: Sequence[float], reference: Sequence[float]) -> tuple[str, str]:
    return f"{statistics.median(rates):,.0f}", _ratio(rates, reference)


def ways(folder: Path, size: int, batch_size: int) -> dict[str, Callable[[], Epoch]]:
    """By name, what opens a folder and gives its epochs: batches float32 [B, 3, size, size]."""
    return {
        "relabel": partial(our_batches, folder, size, batch_size, cache=True),
        "relabel --no-cache": partial(our_batches, folder, size, batch_size, cache=False),
        "DataLoader, 2 workers": partial(loader_batches, folder, size, batch_size, workers=2),
        "DataLoader, no worker": partial(loader_batches, folder, size, batch_size, workers=0),
    }


def our_batches(folder: Path, size: int, batch_size: int, *, cache: bool) -> Epoch:
    """What `fit` shows its backbone; `cache=False` is `--no-cache`."""
    source = open_source(str(folder))
    inputs, _ = open_images(source.references, size, "flip", set(), Silent(), cache=cache, remedies="")
    generator = torch.Generator().manual_seed(0)

    def epoch() -> Iterator[Tensor]:
        for index in torch.split(torch.randperm(len(inputs), generator=generator), batch_size):
            yield inputs.batch(index, torch.device("cpu"), generator)

    return epoch


def loader_batches(folder: Path, size: int, batch_size: int, workers: int) -> Epoch:
    """The same from torchvision's ImageFolder."""
    shown = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.Pad(size // 8, padding_mode="reflect"),
            transforms.RandomCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    loader = DataLoader(
        datasets.ImageFolder(folder, shown),
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )

    def epoch() -> Iterator[Tensor]:
        for images, _ in loader:
            yield images

    return epoch


def forget_files(folder: Path) -> None:
    """Drop the files from the system's cache, where it offers that, so that opening them reads the disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    _shared.run(main)
