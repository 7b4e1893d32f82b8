"""Every command line in README is run as it is typed."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^    (import pandas\n(?:    .+\n)+)", README, flags=re.MULTILINE)
COMMANDS = re.findall(r"^    ((?:relabel|pip|python) .+)$", README, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with README's names: `images/`, `more_images/` (the same), `new_images/`, `trusted.csv`, and
    `vectors.parquet` and `image_vectors.parquet` with a vector for each image.
    """
    folder = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    with (folder / "trusted.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label"])
        for name, brightness in (("dark", 60), ("light", 190)):
            (folder / "images" / name).mkdir(parents=True)
            for row in range(30):
                pixels = rng.integers(brightness - 40, brightness + 40, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / name / f"{row}.png")
                if row == 0:
                    (folder / "new_images").mkdir(exist_ok=True)
                    Image.fromarray(pixels).save(folder / "new_images" / f"{name}.png")
                if row % 2:
                    writer.writerow([f"{name}/{row}.png", name])
    names = [f"{name}/{row}.png" for name in ("dark", "light") for row in range(30)]
    vectors = rng.normal(np.repeat([[0.0], [2.0]], 30, axis=0), 1, (60, 4))
    columns = {
        "file_name": names,
        "label": [name.split("/")[0] for name in names],
        "embedding": list(vectors),
    }
    for name in ("vectors", "image_vectors"):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    shutil.copytree(folder / "images", folder / "more_images")
    return folder


def _quick(command):
    return command.startswith("relabel") and "demo" not in command


def test_readme_shows_the_install_the_demo_and_the_main_job():
    assert any(command.startswith("pip install") and "relabel demo" in command for command in COMMANDS)
    assert any(command.startswith("pip install") and "pytest" in command for command in COMMANDS)
    assert len([command for command in COMMANDS if _quick(command)]) >= 4


def test_readme_commands_work_in_order_as_typed(folder):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in filter(_quick, COMMANDS):
        if command.startswith("relabel fit"):  # each of README's sections starts without a result
            (folder / "labels.parquet").unlink(missing_ok=True)
        script = ["bash", "-o", "pipefail", "-c", command]
        result = subprocess.run(
            script, check=False, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    (lines,) = PYTHON
    script = [sys.executable, "-c", lines.replace("\n    ", "\n")]
    result = subprocess.run(script, check=False, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "noise_probability" in result.stdout
