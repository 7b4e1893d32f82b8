"""Maps of classes and superclasses as people write them, and the messages on their mistakes."""

from pathlib import Path

import pytest

from relabel.errors import RelabelError
from relabel.simulate.class_maps import read_mapping, read_superclasses

CLASSES = ["airplane", "bird", "cat", "dog", "truck"]
MAPPING = {4: 0, 2: 3}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.csv", "from,to\ntruck,airplane\ncat,dog\n"),
        ("map.csv", "\ufeffto,from,note\r\nairplane,truck,x\r\ndog,cat,y\r\n"),
        ("map.json", '{"truck": "airplane", "cat": "dog"}'),
    ],
)
def test_read_mapping(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_mapping(tmp_path / name, CLASSES) == MAPPING


def test_a_map_with_semicolons_and_white_space(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("from ; to\n cafe; bar \n")
    assert read_mapping(tmp_path / "map.csv", ["bar", "cafe"]) == {1: 0}


def test_a_map_in_another_unicode_form(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("from,to\ncafe\u0301,bar\n", "utf-8")
    assert read_mapping(tmp_path / "map.csv", ["bar", "caf\u00e9"]) == {1: 0}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("map.csv", "from,to\ntruck,airplane\ncat,lion\n", "row 3: 'lion' is not a class.*airplane, bird"),
        ("map.csv", "from,to\ntruck\n", "row 2: '' is not a class"),
        ("map.csv", "from,to\ncat,dog\ncat,bird\n", "row 3: 'cat' is mapped twice"),
        ("map.csv", "truck,airplane\n", "no header"),
        ("map.csv", "", "no header"),
        ("map.csv", "from,to\n", "is empty"),
        ("map.json", '{"cat": "dog", "lion": "dog"}', "entry 2: 'lion' is not a class"),
        ("map.json", '{"cat": "dog", "cat": "bird"}', "entry 2: 'cat' is mapped twice"),
        ("map.json", '{"cat": "dog"', "is not JSON"),
        ("map.json", '{"cat": {"dog": "bird"}}', "not an object of class names"),
        ("map.json", '["cat", "dog"]', "not an object of class names"),
        ("map.json", "7", "not an object of class names"),
        ("map.json", "[" * 100_000, "is not JSON"),
        ("map.json", '{"cat": ' + "9" * 5000 + "}", "is not JSON"),
        ("map.csv", "from,to\ncat," + "x" * 200_000 + "\n", "row 2: not valid CSV"),
    ],
)
def test_bad_maps(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RelabelError, match=message):
        read_mapping(tmp_path / name, CLASSES)


def test_maps_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RelabelError, match="could not be read"):
        read_mapping(tmp_path / "none.csv", CLASSES)
    (tmp_path / "latin.csv").write_bytes("from,to\ncafé,cat\n".encode("latin-1"))
    with pytest.raises(RelabelError, match="not UTF-8"):
        read_mapping(tmp_path / "latin.csv", CLASSES)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("super.csv", "class,superclass\ntruck,vehicle\ncat,pet\nbird,pet\nairplane,vehicle\ndog,pet\n"),
        ("super.csv", "superclass,class\npet,bird\npet,dog\npet,cat\nvehicle,airplane\nvehicle,truck\n"),
        ("super.json", '{"pet": ["dog", "cat", "bird"], "vehicle": ["airplane", "truck"]}'),
    ],
)
def test_superclasses_flip_to_the_next_class_in_a_circle(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    mapping = read_superclasses(tmp_path / name, CLASSES)
    assert mapping == {0: 4, 4: 0, 1: 2, 2: 3, 3: 1}


def test_a_class_alone_in_its_superclass_is_in_no_pair(tmp_path: Path) -> None:
    (tmp_path / "super.json").write_text('{"pet": ["dog", "cat"], "a": ["bird"], "b": ["airplane", "truck"]}')
    assert read_superclasses(tmp_path / "super.json", CLASSES) == {2: 3, 3: 2, 0: 4, 4: 0}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.csv", "class,superclass\ncat,pet\nlion,pet\n", "row 3: 'lion' is not a class.*airplane, bird"),
        ("s.csv", "class,superclass\ncat,pet\ncat,feline\n", "row 3: 'cat' is listed twice"),
        ("s.csv", "class,superclass\ncat\n", "row 2: 'cat' has no superclass"),
        ("s.csv", "class,superclass\ncat,pet\ndog,pet\n", "no superclass for airplane, bird, truck"),
        ("s.csv", "from,to\ncat,dog\n", "no header with the columns class and superclass"),
        ("s.csv", "class,superclass\n", "is empty"),
        ("s.json", '{"pet": "cat"}', "not an object of lists of class names"),
        ("s.json", '{"pet": [1]}', "not an object of lists of class names"),
        ("s.json", '{"pet": []}', "is empty"),
        ("s.json", '{"pet": ["lion"]}', "entry 1: 'lion' is not a class"),
        (
            "s.json",
            '{"a": ["airplane"], "b": ["bird"], "c": ["cat"], "d": ["dog"], "e": ["truck"]}',
            "every class alone",
        ),
    ],
)
def test_bad_superclasses(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RelabelError, match=message):
        read_superclasses(tmp_path / name, CLASSES)
