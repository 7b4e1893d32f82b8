"""Imports point one way: a module imports from layers below its own, or from its own package."""

import ast
from pathlib import Path

import pytest

import relabel

ROOT = Path(relabel.__file__).parent
LAYERS = (
    ("__main__",),
    ("cli",),
    ("api",),
    ("verbs", "pretraining"),
    ("simulate",),
    ("training",),
    ("saved",),
    ("backbones", "correctors"),
    ("labels",),
    ("calibration",),
    ("label_noise",),
    ("data", "sample_memory"),
    ("config", "device", "files", "hub", "interrupts", "metrics", "progress"),
    ("options", "schedule"),
    ("errors", "modality", "types"),
    ("__init__",),
)
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    """First-level names of `relabel` that a module imports, wherever in it: modules, packages, __init__."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    names = {f"{name}.".split(".")[1] for name in found if name.split(".")[0] == "relabel"}
    return {
        name if (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file() else "__init__" for name in names
    }


MODULES = sorted(set(ROOT.rglob("*.py")) - {ROOT / "__init__.py"})  # which imports nothing, but names the API


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in LAYER, f"{own} has no layer yet: place it in LAYERS"
    upwards = {name for name in imports(path) - {own} if LAYER[name] <= LAYER[own]}
    assert not upwards, f"{path.name} may not import {sorted(upwards)}"
