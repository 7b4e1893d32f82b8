"""Maps of classes for asymmetric noise, read from CSV or JSON: which class is mistaken for which."""

import csv
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from relabel.errors import RelabelError

_NAMED = 10  # class names in a message, which has to stay readable


def read_mapping(path: Path, class_names: Sequence[str]) -> dict[int, int]:
    """Read which class is mistaken for which: CSV columns `from,to`, or JSON like {"truck": "automobile"}.

    Returns class id -> class id. Raises `RelabelError` naming the row for an unknown or repeated class.
    """
    ids = {name: index for index, name in enumerate(class_names)}
    mapping: dict[int, int] = {}
    for where, source, target in _pairs(path, ("from", "to")):
        for name in (source, target):
            _check_class(path, where, name, class_names)
        if ids[source] in mapping:
            raise RelabelError(f"{path}, {where}: {source!r} is mapped twice.", "Keep one of the rows.")
        mapping[ids[source]] = ids[target]
    return mapping


def read_superclasses(path: Path, class_names: Sequence[str]) -> dict[int, int]:
    """Read superclasses, CSV columns `class,superclass` or JSON {superclass: [class, ...]}, as a map.

    Each class is mistaken for the next of its superclass, the last for the first, in the order of
    `class_names`: the usual asymmetric noise on CIFAR-100 (Patrini et al. 2017). A class that is alone in its
    superclass is in no pair: its labels stay clean. Raises `RelabelError` naming the row for an unknown or
    repeated class, and for classes that are missing or all alone.
    """
    ids = {name: index for index, name in enumerate(class_names)}
    members: dict[str, list[int]] = {}
    placed: set[str] = set()
    for where, name, superclass in _pairs(path, ("class", "superclass")):
        _check_class(path, where, name, class_names)
        if not superclass:
            raise RelabelError(f"{path}, {where}: {name!r} has no superclass.", "Name one there.")
        if name in placed:
            raise RelabelError(f"{path}, {where}: {name!r} is listed twice.", "Keep one of the two.")
        placed.add(name)
        members.setdefault(superclass, []).append(ids[name])
    missing = [name for name in class_names if name not in placed]
    if missing:
        raise RelabelError(f"{path} has no superclass for {_some(missing)}.", "List every class.")
    mapping = {
        source: target
        for group in map(sorted, members.values())
        for source, target in zip(group, [*group[1:], group[0]], strict=True)
        if source != target
    }
    if not mapping:
        raise RelabelError(f"{path} puts every class alone in its superclass.", "Group the similar ones.")
    return mapping


def _pairs(path: Path, columns: tuple[str, str]) -> list[tuple[str, str, str]]:
    """(where it stands, left, right) for every line of a map; never empty."""
    try:
        text = unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig"))  # as classes are
    except OSError as error:
        raise RelabelError(
            f"The map {path} could not be read: {error.strerror}.", "Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise RelabelError(f"The map {path} is not UTF-8 text.", "Save it as UTF-8.") from error
    read = _json_pairs if path.suffix.lower() == ".json" else _csv_pairs
    pairs = read(path, text, columns)
    if not pairs:
        raise RelabelError(f"The map {path} is empty.", f"Give at least one {' and '.join(columns)}.")
    return pairs


def _check_class(path: Path, where: str, name: str, class_names: Sequence[str]) -> None:
    if name not in class_names:
        raise RelabelError(
            f"{path}, {where}: {name!r} is not a class.", f"The classes are {_some(class_names)}."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _csv_pairs(path: Path, text: str, columns: tuple[str, str]) -> list[tuple[str, str, str]]:
    lines = text.splitlines()
    mark = ";" if lines and ";" in lines[0] and "," not in lines[0] else ","
    reader = csv.reader(lines, delimiter=mark)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if not {*columns} <= {*header}:
            raise RelabelError(
                f"The map {path} has no header with the columns {columns[0]} and {columns[1]}.",
                f"Begin it with {columns[0]},{columns[1]}.",
            )
        pairs = []
        for row in filter(None, reader):
            # A short row gives an empty name, which the caller reports by its row.
            cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
            left, right = (cells.get(name, "") for name in columns)
            pairs.append((f"row {reader.line_num}", left, right))
    except csv.Error as error:
        raise RelabelError(
            f"The map {path}, row {reader.line_num}: not valid CSV ({error}).",
            "Check the quotes in that row.",
        ) from error
    return pairs


def _json_pairs(path: Path, text: str, columns: tuple[str, str]) -> list[tuple[str, str, str]]:
    """Pairs of {"from": "to"}, or for superclasses of {"superclass": ["class", ...]}, turned around."""
    try:
        # As a list of pairs, because a dict would silently drop a repeated class.
        entries = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise RelabelError(f"The map {path} is not JSON: {error}.", "Check its commas and quotes.") from error
    grouped = columns[1] == "superclass"
    if not isinstance(entries, list) or not all(_is_entry(entry, grouped) for entry in entries):
        example = '{"fish": ["ray", "shark"]}' if grouped else '{"truck": "automobile"}'
        raise RelabelError(
            f"The map {path} is not an object of {'lists of ' if grouped else ''}class names.",
            f"Write it like {example}.",
        )
    numbered = [(f"entry {number}", *entry) for number, entry in enumerate(entries, start=1)]
    if grouped:
        return [(where, name, superclass) for where, superclass, names in numbered for name in names]
    return numbered


def _is_entry(entry: object, grouped: bool) -> bool:
    match entry:
        case (str(), list(names)) if grouped:
            return all(isinstance(name, str) for name in names)
        case (str(), str()):
            return not grouped
    return False
