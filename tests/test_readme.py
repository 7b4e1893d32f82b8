"""Every command line in README is run as it is typed, and every block of Python, in their order."""

import ast
import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from relabel import backbones, cli

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = [
    re.sub("^    ", "", block, flags=re.MULTILINE)
    for block in re.findall(r"(?<=\n\n)(?:    \S.*\n(?:(?:    .*)?\n)*?)(?=\n?\S)", README)
]
COMMAND = re.compile(r"(?:relabel|pip|python) ")
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if COMMAND.match(line)]
ROWS = 16  # of a class


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
            for row in range(ROWS):
                pixels = rng.integers(brightness - 40, brightness + 40, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / name / f"{row}.png")
                if row == 0:
                    (folder / "new_images").mkdir(exist_ok=True)
                    Image.fromarray(pixels).save(folder / "new_images" / f"{name}.png")
                if row % 2:
                    writer.writerow([f"{name}/{row}.png", name])
    names = [f"{name}/{row}.png" for name in ("dark", "light") for row in range(ROWS)]
    columns = {
        "file_name": names,
        "label": [name.split("/")[0] for name in names],
        "embedding": list(rng.normal(np.repeat([[0.0], [2.0]], ROWS, axis=0), 1, (len(names), 4))),
    }
    for name in ("vectors", "image_vectors"):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    shutil.copytree(folder / "images", folder / "more_images")
    return folder


@pytest.fixture
def arrays():
    """The arrays of README's Python: vectors `X`, given labels `y`, 40 trusted `rows` with their `true`
    labels, the out-of-fold `pred_probs` of a network that is right about four rows of five, and all labels.
    """
    rng = np.random.default_rng(0)
    truth = np.arange(120) % 3
    given = np.where(rng.random(120) < 0.2, (truth + 1) % 3, truth)
    rows = rng.permutation(120)[:40]
    guessed = np.where(rng.random(120) < 0.3, rng.integers(3, size=120), truth)
    return {
        "X": rng.normal(3 * np.eye(4)[truth], 1),
        "y": given,
        "rows": rows,
        "true": truth[rows],
        "y_true": truth,
        "pred_probs": 0.7 * np.eye(3)[guessed] + 0.1,
    }


def anchors(text):
    """The names by which a document's headings are linked to."""
    headings = re.findall("^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_python(block):
    try:
        ast.parse(block)
    except SyntaxError:
        return False
    return True


def is_run(command):
    """Whether a command is run here: examples and the demo have tests of their own."""
    return command.startswith("relabel ") and "demo" not in command


def run_command(command, folder):
    if "|" not in command:
        return cli.run(shlex.split(command)[1:])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = ["bash", "-o", "pipefail", "-c", command]
    return subprocess.run(words, check=False, cwd=folder, env={**os.environ, "PATH": path}).returncode


def test_readme_shows_the_install_the_demo_and_the_main_job():
    assert any(command.startswith("pip install") and "relabel demo" in command for command in COMMANDS)
    assert any(command.startswith("pip install") and "pytest" in command for command in COMMANDS)
    assert len([command for command in COMMANDS if is_run(command)]) >= 4


def test_readme_s_blocks_are_commands_or_python_and_one_shows_how_the_demo_ends():
    others = [
        block for block in BLOCKS if not is_python(block) and not all(map(COMMAND.match, block.splitlines()))
    ]
    assert [block.startswith("Keep / fix / review") for block in others] == [True]


@pytest.mark.parametrize("document", ["README.md", "examples/RESULTS.md"])
def test_links_lead_to_a_file_and_to_a_heading_in_it(document):
    text = (REPOSITORY / document).read_text("utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text)
    assert links
    for path, heading in links:
        target = (REPOSITORY / document).parent / path if path else REPOSITORY / document
        assert target.exists(), path
        assert not heading or heading in anchors(target.read_text("utf-8")), heading


def test_readme_s_commands_and_its_python_work_in_order_as_typed(folder, arrays, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    cnn8 = backbones._cnn8  # what a command says and writes does not depend on the width of the network
    monkeypatch.setattr(backbones, "_cnn8", lambda classes: cnn8(classes, width=8))
    names = dict(arrays)
    printed = ""
    for block in BLOCKS:
        if "relabel fit" in block or '.save("labels.parquet")' in block:  # where nothing is in the way
            (folder / "labels.parquet").unlink(missing_ok=True)
        if is_python(block):
            exec(compile(block, "README.md", "exec"), names)
            printed += capfd.readouterr().out
            continue
        for command in filter(is_run, block.splitlines()):
            assert run_command(command, folder) == 0, f"{command}\n{capfd.readouterr().err}"
    assert "noise_probability" in printed
