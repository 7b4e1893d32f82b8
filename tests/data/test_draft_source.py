from pathlib import Path

import pytest

from relabel.data.draft_source import DraftSource, class_ids, natural_key, parent_folder, read_classes
from relabel.errors import RelabelError


def test_natural_order() -> None:
    ordered = ["", "02", "2", "9", "10", "9" * 5000, "a.b", "a0", "a2c", "a10b", "ab"]
    assert sorted(set(ordered), key=natural_key) == ordered


def test_classes_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes("\ufeff dog \r\ncat, big\r\n\r\n".encode())
    assert read_classes(str(tmp_path / "classes.txt")) == ["dog", "cat, big"]
    assert read_classes("dog, cat") == ["dog", "cat"]
    names = [f"class {number}" for number in range(100)]
    assert read_classes(",".join(names)) == names  # longer than the name of a file can be


def test_classes_are_read_in_one_unicode_form(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cafe\u0301\nbar\n", "utf-8")
    assert read_classes(str(tmp_path / "classes.txt")) == ["caf\u00e9", "bar"]
    assert read_classes("cafe\u0301,bar") == ["caf\u00e9", "bar"]
    assert parent_folder("cafe\u0301/1.png") == "caf\u00e9"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("nosuch.txt", "there is no such file"),
        ("a,,b", "class 2 has no name"),
        ("a,b,a", "'a' twice"),
        ("{folder}/gap.txt", "gap.txt: class 2 has no name"),
        ("{folder}/latin.txt", "latin.txt cannot be read: the text is not UTF-8"),
    ],
)
def test_bad_classes(tmp_path: Path, given: str, expected: str) -> None:
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(RelabelError, match=expected) as caught:
        read_classes(given.format(folder=tmp_path))
    assert caught.value.hint


def rows(*labels: str | None, trusted: list[str | None] | None = None) -> DraftSource:
    names = [f"{row}.png" for row in range(len(labels))]
    return DraftSource(Path("x"), "manifest", names, labels=list(labels), trusted=trusted)


def test_fixed_classes_give_the_order_and_take_numbers_as_indices() -> None:
    found = rows("0", "dog", None, "2", trusted=[None, "1", None, "cat"])
    found.fix_classes(["dog", "2", "cat"], "x", "--classes")
    assert found.labels == ["dog", "dog", None, "2"]  # the class 2, not the third class
    assert found.trusted == [None, "2", None, "cat"]
    assert found.class_names() == ["dog", "2", "cat"]


@pytest.mark.parametrize("label", ["emu", "3", "-1"])
def test_a_label_outside_the_classes_is_refused_by_row(label: str) -> None:
    found = rows("dog", label)
    with pytest.raises(RelabelError) as caught:
        found.fix_classes(["dog", "cat", "cow"], "x.csv", "--classes")
    message = f"x.csv, row 2 ('1.png'): the label '{label}' is none of the classes of --classes."
    assert caught.value.message == message
    assert found.labels == ["dog", label]


def test_other_classes_follow_those_whose_order_is_fixed() -> None:
    found = rows("10", "2", "dog")
    found.order = ["dog", "cat"]
    found.classes = {"emu"}
    assert found.class_names() == ["dog", "cat", "2", "10", "emu"]


def test_numbers_are_ids_only_where_they_are_asked_for() -> None:
    assert class_ids(["1", "b"], numbered=True) == {
        "0": 0, "0.0": 0, "1": 0, "1.0": 1, "b": 1,
    }  # fmt: skip
    assert class_ids(["1", "b"], numbered=False) == {"1": 0, "b": 1}


def test_a_class_is_one_text_whatever_the_number_of_its_images() -> None:
    assert parent_folder("a/some class/1.png") is parent_folder("b/some class/2.png")
