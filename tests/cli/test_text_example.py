"""A user tries real text with examples/text.py; random vectors take the place of sentence vectors."""

import ast
import csv
import itertools
import sys
import tokenize

import numpy as np
import pyarrow.parquet as pq
import pytest

PROGRAM = '''"""About."""
import os.path as p
from re import sub
@wraps
class A(Base):
    """More."""
    size = 1  # note
    async def go(self, n=None):
        for i in range(n):
            self.x = os.path.join(i, key=f)
        raise Oops("no")
try:
    y = A.b
except (E1, m.E2):
    pass
'''
KINDS = {
    '"""About."""': "docstring", "import": "import keyword", "os": "module imported", "as": "import keyword",
    "re": "module imported", "sub": "name imported", "wraps": "decorator", "class": "definition keyword",
    "A": "class defined", "Base": "base class", '"""More."""': "docstring", "size": "variable written",
    "1": "number", "# note": "comment", "async": "definition keyword", "go": "function defined",
    "self": "parameter", "n": "parameter", "None": "constant keyword", "for": "control keyword",
    "i": "loop variable", "in": "operator keyword", "range": "function called", "x": "attribute written",
    "join": "method called", "key": "keyword argument", "f": "variable read", "Oops": "exception",
    '"no"': "string", "b": "attribute read", "E1": "exception", "E2": "exception", "m": "variable read",
}  # fmt: skip


@pytest.fixture
def text(example, monkeypatch):
    """The script, with vectors that are random but equal for equal words."""
    module = example("text")

    def embedded(words, dimension):
        unique, places = np.unique(words, return_inverse=True)
        table = np.random.default_rng(0).normal(size=(len(unique), dimension)).astype(np.float32)
        return table[places].reshape(len(words), -1)

    monkeypatch.setattr(module, "embedded", embedded)
    return module


def test_the_words_of_a_program_are_tagged_by_what_they_are(text):
    kinds = text.syntactic_kinds(ast.parse(PROGRAM))
    tokens = list(tokenize.generate_tokens(iter(PROGRAM.splitlines(True)).__next__))
    found: dict[str, str] = {}
    for before, token in itertools.pairwise(tokens):
        kind = text.kind_of(token, before.string, kinds)
        if kind is not None:
            found.setdefault(token.string, kind)
    assert found | {'"""About."""': "docstring"} == found | KINDS
    assert len(set(KINDS.values())) == 25


@pytest.mark.parametrize(("task", "classes", "dimension"), [("docstrings", 4, 256), ("tokens", 25, 320)])
def test_the_three_files_are_what_the_commands_read(text, run, folder, monkeypatch, task, classes, dimension):
    monkeypatch.setattr(text, "PACKAGES", ("asyncio", "email", "importlib", "logging"))
    monkeypatch.setattr(text, "WORDS_PER_KIND", 12)
    every = sorted(text.LIBRARY.glob("[a-e]*.py")) + sorted(text.LIBRARY.glob("*/*.py"))
    monkeypatch.setattr(type(text.LIBRARY), "rglob", lambda *_: every[::2])
    monkeypatch.setattr(sys, "argv", ["text.py", task, "text", "--rate", "0.25"])
    text.main()
    table = pq.read_table("text/vectors.parquet")
    with open("text/truth.csv", newline="") as file:
        truth = {row["file_name"]: row["label"] for row in csv.DictReader(file)}
    given = dict(zip(table["file_name"].to_pylist(), table["label"].to_pylist(), strict=True))
    assert len(set(truth.values())) == classes
    assert np.mean([given[name] != label for name, label in truth.items()]) == pytest.approx(0.25, abs=0.01)
    flags = "--features embedding --trusted text/trusted.csv --corrector none --epochs 2 --device cpu -q"
    assert run("fit", "text/vectors.parquet", *flags.split(), "-o", "text/l.parquet").code == 0
    assert table["embedding"].type.list_size == dimension
    assert run("evaluate", "text/l.parquet", "--truth", "text/truth.csv").code == 0
