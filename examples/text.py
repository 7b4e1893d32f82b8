"""Vectors from real text, for `relabel fit --features`: no download, and the truth is known.

    pip install -e '.[examples]'
    python examples/text.py docstrings text --rate 0.4
    relabel fit text/vectors.parquet --features embedding --trusted text/trusted.csv -o text/labels.parquet
    relabel evaluate text/labels.parquet --truth text/truth.csv

`docstrings` says which package of Python's standard library a docstring comes from, by its sentence vector.
`tokens` has the form of MLC's part-of-speech tagging (Wang et al. 2020): what a word of a program is, of 25
kinds, by the vectors of the word and its two neighbours on each side, with 8 trusted words a class. It is
not their data: no tagged tweets come with Python, but its own source does, and its parser tags that without
a mistake. Vectors are those of WordLlama (MIT licence), whose smallest model lies inside its wheel.

Both read the library of the Python that runs them, so figures move a little with its version.
"""

from __future__ import annotations

import argparse
import ast
import keyword
import sysconfig
import token
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import _shared
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from relabel.simulate import noise

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
PACKAGES = (
    "asyncio", "email", "http", "importlib", "logging", "mailbox", "multiprocessing", "tkinter", "turtle",
    "unittest", "urllib", "xml",
)  # fmt: skip
WORDS_PER_KIND = 400
REACH = 2  # neighbours on each side
KEYWORDS = {
    "definition": "async class def lambda",
    "import": "as from import",
    "operator": "and in is not or",
    "constant": "False None True",
}
KIND_OF_KEYWORD = {word: f"{kind} keyword" for kind, words in KEYWORDS.items() for word in words.split()}
Position = tuple[int, int]  # line from 1, column from 0


@dataclass(frozen=True)
class Text:
    """Rows to classify: names, what is embedded, [N] strings or [N, 5] for windows, and true classes."""

    names: list[str]
    words: NDArray[np.str_]
    labels: list[str]


def main() -> None:
    """Write vectors.parquet with noisy labels, trusted.csv and truth.csv."""
    arguments = parse()
    rng = np.random.default_rng(arguments.seed)
    tokens = arguments.task == "tokens"
    text = program_words(rng) if tokens else docstrings()
    class_names = sorted(set(text.labels))
    truth = np.array([class_names.index(label) for label in text.labels])
    corrupted = noise.corrupt(
        truth, class_names, noise=arguments.noise, rate=arguments.rate, seed=arguments.seed
    )
    if tokens:
        trusted = np.concatenate(
            [rng.choice(np.flatnonzero(truth == c), 8, replace=False) for c in set(truth)]
        )
    else:
        trusted = rng.choice(len(truth), 300, replace=False)

    arguments.folder.mkdir(parents=True, exist_ok=True)
    vectors = embedded(text.words, 64 if tokens else 256)
    flat = pa.array(vectors.ravel(), pa.float32())
    table = {
        "file_name": text.names,
        "text": [" ".join(words) for words in text.words] if tokens else text.words,
        "label": [class_names[label] for label in corrupted.labels],
        "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
    pq.write_table(pa.table(table), arguments.folder / "vectors.parquet")
    write_labels(arguments.folder / "trusted.csv", text, sorted(trusted))
    write_labels(arguments.folder / "truth.csv", text, range(len(truth)))
    print(
        f"{len(truth):,} rows of {vectors.shape[1]} values, {len(class_names)} classes, {len(trusted)} "
        f"trusted, {corrupted.actual_rate * 100:.1f} % of the labels wrong; in {arguments.folder}."
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = _shared.parser(__doc__)
    parser.add_argument("task", choices=["docstrings", "tokens"])
    parser.add_argument("folder", type=Path, help="where the three files go")
    parser.add_argument("--noise", default="symmetric", help="as in relabel corrupt; default: %(default)s")
    parser.add_argument("--rate", type=float, default=0.4, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the noise and of the trusted rows")
    return parser.parse_args()


def embedded(words: NDArray[np.str_], dimension: int) -> NDArray[np.float32]:
    """Vectors [N, dimension] of strings [N], or those of [N, 5] side by side."""
    import wordllama

    # The wheel keeps the tokenizer where only a cache is searched, so the package is named as the cache.
    here = Path(wordllama.__file__).parent
    model = wordllama.WordLlama.load(trunc_dim=dimension, cache_dir=here, disable_download=True)
    unique, places = np.unique(words, return_inverse=True)
    vectors: NDArray[np.float32] = model.embed(unique.tolist())
    return vectors[places].reshape(len(words), -1)


def write_labels(path: Path, text: Text, rows: Iterable[int]) -> None:
    """A table of true labels."""
    _shared.write_csv(path, ("file_name", "label"), ((text.names[row], text.labels[row]) for row in rows))


def modules(packages: Sequence[str] = ()) -> Iterator[tuple[str, str, ast.Module]]:
    """(path, source, syntax tree) of the library's own modules, tests left out."""
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        if (packages and parts[0] not in packages) or {"test", "tests", "site-packages"} & set(parts):
            continue
        try:
            source = path.read_text("utf-8")
            with warnings.catch_warnings(action="ignore"):
                yield "/".join(parts), source, ast.parse(source)
        except (UnicodeDecodeError, SyntaxError):
            continue  # a few files are broken on purpose


def docstrings() -> Text:
    """The first paragraph of every docstring of twelve packages, each once."""
    found: dict[str, tuple[str, str]] = {}
    for path, _, tree in modules(PACKAGES):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                first = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if len(first) >= 20:
                    found.setdefault(first, (f"{path}:{node.lineno}", path.split("/")[0]))
    names, labels = zip(*found.values(), strict=True)
    return Text(list(names), np.array(list(found)), list(labels))


def program_words(rng: np.random.Generator) -> Text:
    """At most 400 words of each kind, drawn from the whole library, each with its neighbours."""
    windows: dict[str, list[tuple[str, list[str]]]] = {}
    seen: Counter[str] = Counter()
    for path, source, tree in modules():
        if not source.isascii():
            continue  # ast counts columns in bytes, tokenize in characters
        kinds = syntactic_kinds(tree)
        tokens = [
            found
            for found in tokenize.generate_tokens(iter(source.splitlines(True)).__next__)
            if found.string.strip()
        ]
        words = [" "] * REACH + [found.string[:80] for found in tokens] + [" "] * REACH
        for place, found in enumerate(tokens):
            kind = kind_of(found, tokens[place - 1].string if place else "", kinds)
            if kind is None:
                continue
            kept = windows.setdefault(kind, [])
            seen[kind] += 1
            window = (f"{path}:{found.start[0]}:{found.start[1]}", words[place : place + 2 * REACH + 1])
            if len(kept) < WORDS_PER_KIND:
                kept.append(window)
            elif (slot := rng.integers(seen[kind])) < WORDS_PER_KIND:  # reservoir sampling
                kept[slot] = window
    rows = sorted((name, words, kind) for kind, kept in windows.items() for name, words in kept)
    names, drawn, labels = zip(*rows, strict=True)
    return Text(list(names), np.array(drawn), list(labels))


def kind_of(found: tokenize.TokenInfo, before: str, kinds: dict[Position, str]) -> str | None:
    """What a word is, or None for what is none: brackets and operators."""
    word = found.string
    if found.type == token.NAME and keyword.iskeyword(word):
        return KIND_OF_KEYWORD.get(word, "control keyword")
    if found.type == token.NAME and before in ("def", "class"):
        return "function defined" if before == "def" else "class defined"
    if found.type == token.NAME and before == "from":
        return "module imported"
    plain = {token.NUMBER: "number", token.STRING: "string", tokenize.COMMENT: "comment"}
    return kinds.get(found.start, plain.get(found.type))


def syntactic_kinds(tree: ast.Module) -> dict[Position, str]:
    """The kinds that take a parser to know, by where the word begins."""
    kinds: dict[Position, str] = {}
    for node in ast.walk(tree):  # from the root down: the use of a name is noted before the name itself
        match node:
            case ast.Module() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                mark_definition(kinds, node)
            case ast.Call(func=ast.Attribute() as called):
                mark(kinds, [called], "method called")
            case ast.Call(func=called):
                mark(kinds, [called], "function called")
            case ast.Raise(exc=ast.Call(func=exception)) | ast.Raise(exc=ast.expr() as exception):
                mark(kinds, [exception], "exception")
            case ast.ExceptHandler(type=ast.expr() as exception):
                mark(kinds, parts(exception), "exception")
            case ast.For(target=target) | ast.comprehension(target=target):
                mark(kinds, parts(target), "loop variable")
            case ast.arg():
                kinds[start(node)] = "parameter"
            case ast.keyword(arg=str()):
                kinds[start(node)] = "keyword argument"
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                kind = "module imported" if isinstance(node, ast.Import) else "name imported"
                kinds.update((start(name), kind) for name in names)
            case ast.Name() | ast.Attribute():
                kind = "variable" if isinstance(node, ast.Name) else "attribute"
                mark(kinds, [node], f"{kind} {'read' if isinstance(node.ctx, ast.Load) else 'written'}")
    return kinds


def mark_definition(
    kinds: dict[Position, str], node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
) -> None:
    """Note the docstring, decorators and base classes of a definition, but not its name."""
    if ast.get_docstring(node) is not None:
        kinds[start(node.body[0])] = "docstring"
    if not isinstance(node, ast.Module):
        mark(kinds, node.decorator_list, "decorator")
    if isinstance(node, ast.ClassDef):
        mark(kinds, node.bases, "base class")


def parts(node: ast.expr) -> list[ast.expr]:
    """The names of `a, b`, or the one name."""
    return node.elts if isinstance(node, ast.Tuple) else [node]


def start(node: ast.stmt | ast.expr | ast.arg | ast.keyword | ast.alias) -> Position:
    """Where a node begins."""
    return node.lineno, node.col_offset


def mark(kinds: dict[Position, str], nodes: Iterable[ast.expr], kind: str) -> None:
    """Note the kind of names and of the last part of dotted names, unless a nearer one is known."""
    for node in nodes:
        if isinstance(node, ast.Name):
            kinds.setdefault(start(node), kind)
        elif isinstance(node, ast.Attribute) and node.end_lineno and node.end_col_offset:
            kinds.setdefault((node.end_lineno, node.end_col_offset - len(node.attr)), kind)


if __name__ == "__main__":
    _shared.run(main)
