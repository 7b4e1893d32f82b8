"""A folder to work in, small images that a two-epoch fit can learn, and three ways to run the command."""

import csv
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from relabel import cli
from relabel.interrupts import Stopped

EXAMPLES = Path(__file__).parents[2] / "examples"
COLOURS = {"red": (220, 40, 30), "blue": (30, 40, 220)}
TINY = ("--epochs", "2", "--image-size", "8", "--device", "cpu", "--batch-size", "16")


@dataclass
class Done:
    """What a command left behind: its exit code, the bytes it printed and its messages."""

    code: int
    out: bytes
    err: str


def draw(path: Path, colour: str, size: tuple[int, int] = (8, 8), seed: int = 0, **save: object) -> Path:
    """One noisy picture of a colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 25, (size[1], size[0], 3))
    Image.fromarray(np.clip(COLOURS[colour] + noise, 0, 255).astype(np.uint8)).save(path, **save)
    return path


def write_csv(
    path: str, rows: Iterable[Sequence[str]], header: Sequence[str] = ("file_name", "label")
) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="session")
def tools() -> dict[str, Callable]:
    """What the tests make their own images and tables with."""
    return {"draw": draw, "write_csv": write_csv}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A script of examples/ as a module."""
    monkeypatch.syspath_prepend(EXAMPLES)  # where a script finds its neighbours

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for it
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images/{red,blue} of 14 pictures each and four trusted ones a class."""
    for colour in COLOURS:
        for number in range(14):
            draw(tmp_path / f"images/{colour}/{colour}{number}.png", colour, seed=number)
    monkeypatch.chdir(tmp_path)
    write_csv("trusted.csv", [(f"{c}/{c}{n}.png", c) for c in COLOURS for n in range(4)])
    return tmp_path


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Done]:
    """Run a command line in this process, which has torch loaded already."""

    def go(*arguments: str) -> Done:
        capfdbinary.readouterr()
        code = cli.run(arguments)
        out, err = capfdbinary.readouterr()
        return Done(code, out, err.decode())

    return go


@pytest.fixture
def fit(run: Callable[..., Done], folder: Path) -> Callable[..., Done]:
    """`relabel fit images --trusted trusted.csv`, tiny; further flags take precedence."""
    return lambda *flags, source="images": run("fit", source, "--trusted", "trusted.csv", *TINY, *flags)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a real process that leads its own group, so that a signal reaches it as Ctrl-C would."""
    started = []

    def go(
        *arguments: str, program: Sequence[str] = ("-m", "relabel"), **options: object
    ) -> subprocess.Popen:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [sys.executable, *program, *arguments], start_new_session=True, **{**pipes, **options}
        )
        started.append(process)
        return process

    yield go
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def files(folder: Path) -> Callable[[], dict[str, bytes]]:
    """Every file below the current folder with its content, hidden ones too: to show that none changed."""
    return lambda: {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Done]], Done]:
    """Run a command that is stopped after its first epoch, without the cost of a process."""

    def go(command: Callable[[], Done]) -> Done:
        from relabel.training import checkpoint

        plain = checkpoint.save

        def save_and_stop(*arguments: object) -> None:
            plain(*arguments)
            raise Stopped(signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr("relabel.training.checkpoint.save", save_and_stop)
            return command()

    return go
