"""Data sets as `datasets` saves them, and on a small Hub on this machine.

huggingface_hub and datasets read their settings when they are imported, so whatever concerns the Hub runs in
processes of its own.
"""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from relabel.config import SourceOptions
from relabel.data.sources import Source, open_source
from relabel.data.trusted import trusted_of
from relabel.errors import RelabelError

Picture = Callable[..., bytes]
Greys = Callable[[Source], list[int | str]]

COMMIT = "0123456789" * 4
OPEN = """
import json, sys
from relabel.config import SourceOptions
from relabel.data.batches import decode_all
from relabel.data.sources import open_source
from relabel.errors import RelabelError
for words in sys.argv[1:]:
    location, options, largest = json.loads(words)
    try:
        source = open_source(location, options=SourceOptions(**options), largest=largest)
        images, errors = decode_all(source.references, 8, set(source.errors), lambda _: None)
        errors = sorted((row, text) for row, text in {**source.errors, **errors}.items())
        answer = [source.file_names, source.given.tolist(), source.class_names]
        answer += [images[:, 4, 4, 0].tolist(), errors]
    except RelabelError as error:
        answer = [type(error).__name__, str(error)]
    print(json.dumps(answer))
"""


@pytest.fixture
def saved(tmp_path: Path, picture: Picture) -> Callable[..., Path]:
    """A folder written by `save_to_disk`: five images of grey 10, 20, ..., the third row without one."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def make(*splits: str, labels: object = (0, 1, 0, -1, 1)) -> Path:
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "label": datasets.ClassLabel(names=["wolf", "cat"]),
                "true": datasets.Value("int64"),
            }
        )
        cells = [{"bytes": picture(10 * (row + 1)), "path": f"{row}.png"} for row in range(5)]
        columns = {
            "image": [*cells[:2], None, *cells[3:]],
            "label": list(labels),
            "true": [None, 0, None, 1, 1],
        }
        data = datasets.Dataset.from_dict(columns, features=features)
        path = tmp_path / "saved"
        (datasets.DatasetDict(dict.fromkeys(splits, data)) if splits else data).save_to_disk(path)
        return path

    return make


def refusal(location: Path, **options: object) -> str:
    with pytest.raises(RelabelError) as caught:
        open_source(str(location), options=SourceOptions(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_saved_data_set(saved: Callable[..., Path], greys: Greys) -> None:
    source = open_source(str(saved()), options=SourceOptions(trusted_column="true"))
    assert (source.kind, source.class_names) == ("saved", ["wolf", "cat"])
    assert source.given.tolist() == [0, 1, 0, -1, 1]
    assert source.file_names == ["0", "1", "2", "3", "4"]  # one row has no name of its own
    assert greys(source) == [10, 20, "the row has no image", 40, 50]
    trusted = trusted_of(source, None)
    assert (trusted.rows.tolist(), trusted.labels.tolist()) == ([1, 3, 4], [0, 1, 1])


def test_a_split_is_named_where_there_are_several(saved: Callable[..., Path], greys: Greys) -> None:
    path = saved("train", "test")
    assert refusal(path) == f"{path} has the splits train, test. Name one with --split."
    assert "has the split(s) train, test. Name one of them." in refusal(path, split="val")
    source = open_source(str(path), options=SourceOptions(split="test"))
    assert greys(source)[0] == 10


def test_one_split_needs_no_name(saved: Callable[..., Path]) -> None:
    assert len(open_source(str(saved("train")))) == 5


def test_a_folder_of_saved_data_sets_is_none_itself(saved: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("fine", "coarse"):
        saved().rename(tmp_path / name)
    assert refusal(tmp_path) == f"{tmp_path} holds the saved data sets coarse, fine. Name one of them."


def test_images_that_were_files(tmp_path: Path, picture: Picture, greys: Greys) -> None:
    datasets = pytest.importorskip("datasets")
    paths = [str(tmp_path / f"{grey}.png") for grey in (10, 20)]
    for path in paths:
        Path(path).write_bytes(picture(int(Path(path).stem)))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    data = datasets.Dataset.from_dict({"image": [*paths], "label": ["a", "b"]}, features=features)
    data.save_to_disk(tmp_path / "saved")
    source = open_source(str(tmp_path / "saved"))
    assert source.file_names == ["10.png", "20.png"]
    assert greys(source) == [10, 20]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"split": "train"}, "--split train: {path} has no splits."),
        ({"image_column": "label"}, "--image-column label: in {path} that column holds int64, not images."),
        ({"label_column": "kind"}, "{path} has no column 'kind'; it has image, label, true."),
        ({"config": "x"}, "--config has no meaning for {path}, which is a saved data set."),
        ({"streaming": True}, "--streaming has no meaning for {path}, which is a saved data set."),
    ],
)
def test_mistakes(saved: Callable[..., Path], options: dict[str, object], expected: str) -> None:
    path = saved()
    assert expected.format(path=path) in refusal(path, **options)


def test_a_damaged_saved_data_set_is_told_in_one_sentence(saved: Callable[..., Path]) -> None:
    path = saved()
    (arrow,) = path.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    assert refusal(path).startswith(f"The saved data set {path} cannot be read: ")
    (path / "state.json").write_text("{")
    assert refusal(path).startswith(f"The saved data set {path} cannot be read: ")


@dataclass
class Hub:
    """Repositories of data sets by name, files by path; the requests it got."""

    repositories: dict[str, dict[str, bytes]]
    url: str = ""
    requests: list[str] = field(default_factory=list)

    def answer(
        self, method: str, address: str, headers: Mapping[str, str], sent: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        path = address.partition("?")[0].replace("%2F", "/")
        self.requests.append(path)
        found = re.fullmatch(r"(/api)?/datasets/user/([^/]+)(?:/([^/]+)/([^/]+)(?:/(.*))?)?", path)
        if found is None or found[2] not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        files, kind, revision, name = self.repositories[found[2]], found[3], found[4], found[5] or ""
        if revision not in (None, "main", "v1", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if kind == "resolve":
            return self.file(files.get(name), headers.get("Range"))
        answer: object = {"id": f"user/{found[2]}", "sha": COMMIT, "tags": [], "siblings": []}
        if kind == "tree":
            answer = self.tree(files, name, "recursive=true" in address.lower())
        elif kind == "paths-info":
            answer = [entry for path in json.loads(sent)["paths"] for entry in self.tree(files, path)]
        return 200, {}, json.dumps(answer).encode()

    def file(self, content: bytes | None, wanted: str | None) -> tuple[int, dict[str, str], bytes]:
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha1(content).hexdigest()}"'}
        if wanted is None:
            return 200, headers, content
        first, last = wanted.removeprefix("bytes=").split("-")
        part = content[int(first) : int(last or len(content)) + 1]
        end = int(first) + len(part) - 1
        return 206, headers | {"Content-Range": f"bytes {first}-{end}/{len(content)}"}, part

    def tree(self, files: dict[str, bytes], folder: str, recursive: bool = False) -> list[dict[str, object]]:
        if folder in files:
            return [{"type": "file", "path": folder, "size": len(files[folder]), "oid": "0" * 40}]
        prefix = f"{folder}/" if folder else ""
        below = [name for name in files if name.startswith(prefix)]
        folders = {prefix + name[len(prefix) :].split("/")[0] for name in below} - set(files)
        entries: list[dict[str, object]] = [
            {"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)
        ]
        here = [name for name in below if recursive or "/" not in name[len(prefix) :]]
        return entries + [entry for name in here for entry in self.tree(files, name)]


@pytest.fixture
def hub(serve: Callable[..., str], picture: Picture) -> Hub:
    """Repositories: `pics`, Parquet of two splits; `folders`, image files; `bad`, Parquet cut short;
    `Several`, the configurations fine (two splits) and coarse, and `usual`, of which one is the default."""
    cells = [{"bytes": picture(10 * (row + 1)), "path": f"{row}.png"} for row in range(5)]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["wolf", "cat"]}}
    table = pa.table({"image": [*cells[:4], {"bytes": b"?", "path": "x"}], "label": [0, 1, 0, -1, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    parquet = buffer.getvalue()
    played = Hub(
        {
            "pics": {f"data/{split}-00000-of-00001.parquet": parquet for split in ("train", "test")},
            "folders": {
                f"train/{name}/{grey}.png": picture(grey) for name, grey in (("cat", 10), ("dog", 20))
            },
            "bad": {"data/train.parquet": parquet[:-300]},
            "Several": {
                "README.md": b"---\nconfigs:\n- config_name: fine\n  data_dir: fine\n"
                b"- config_name: coarse\n  data_dir: coarse\n---\n",
                **{f"fine/{split}.parquet": parquet for split in ("train", "test")},
                "coarse/train.parquet": parquet,
            },
            "usual": {
                "README.md": b"---\nconfigs:\n- config_name: odd\n  data_files: odd.parquet\n"
                b"- config_name: default\n  data_files: data.parquet\n---\n",
                "odd.parquet": parquet[:-300],
                "data.parquet": parquet,
            },
        }
    )
    played.url = serve(played.answer)
    return played


def ask(home: Path, url: str, *questions: tuple[str, dict[str, object], int | None], **settings: str) -> list:
    """What `open_source` makes of each location, options and largest size in a process of its own."""
    own = ("HF_", "HUGGING", "TRANSFORMERS_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(own) and "proxy" not in k.lower()}
    env |= {"HF_HOME": str(home), "HF_ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": "1", **settings}
    words = [json.dumps(question) for question in questions]
    done = subprocess.run(
        [sys.executable, "-c", OPEN, *words],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


NAMES = ["0.png", "1.png", "2.png", "3.png", "x"]
ROWS = [NAMES, [0, 1, 0, -1, 1], ["wolf", "cat"], [10, 20, 30, 40, 0], [[4, "not an image Pillow can read"]]]


def test_a_hub_data_set_streamed_prepared_and_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    train: dict[str, object] = {"split": "train"}
    stream = train | {"streaming": True}
    small, large, folders = ask(
        tmp_path,
        hub.url,
        ("user/pics", stream, 4),  # smaller than the images, which are then kept decoded
        ("hf://datasets/user/pics@v1", stream, None),
        ("user/folders", {"streaming": True}, None),
    )
    assert large == ROWS
    assert small[:4] == ROWS[:4]
    assert not list(tmp_path.rglob("*.arrow"))
    assert not list(tmp_path.rglob("*.parquet"))
    assert folders[1:] == [[0, 1], ["cat", "dog"], [10, 20], []]
    assert [name.rpartition("/")[2] for name in folders[0]] == ["10.png", "20.png"]

    prepared, other, folders = ask(
        tmp_path,
        hub.url,
        ("user/pics", train | {"revision": "v1"}, None),
        ("hf://datasets/user/pics", {"split": "test"}, None),
        ("user/folders", {}, None),
    )
    assert prepared == other == ROWS
    assert folders[1:] == [[0, 1], ["cat", "dog"], [10, 20], []]

    hub.requests.clear()
    cached, missing = ask(
        tmp_path, hub.url, ("user/pics", train, None), ("user/other", {}, None), HF_HUB_OFFLINE="1"
    )
    assert cached == ROWS
    assert missing == [
        "RelabelError",
        "user/other (no file or folder here) is not in the Hub cache, and offline mode (HF_HUB_OFFLINE) "
        "forbids the download. Run the command once without it, or name a local file.",
    ]
    assert hub.requests == []


def test_what_the_hub_does_not_have_is_told_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    splits, split, repository, revision, twice, bad, streamed = ask(
        tmp_path,
        hub.url,
        ("user/pics", {}, None),
        ("user/pics", {"split": "val"}, None),
        ("user/imgaes", {}, None),
        ("user/pics", {"revision": "v9"}, None),
        ("hf://datasets/user/pics@v1", {"revision": "v9"}, None),
        ("user/bad", {}, None),
        ("user/bad", {"streaming": True}, None),
    )
    assert splits == ["RelabelError", "user/pics has the splits train, test. Name one with --split."]
    assert "--split val: user/pics has the split(s) train, test." in split[1]
    assert "user/imgaes (no file or folder here): the Hub has no repository user/imgaes" in repository[1]
    assert "user/pics has no revision v9." in revision[1]
    assert "--revision v9: hf://datasets/user/pics@v1 names a revision itself." in twice[1]
    for answer in (bad, streamed):
        assert answer[0] == "RunError"
        assert "user/bad: datasets cannot read it (" in answer[1]


def test_a_configuration_is_named_where_there_are_several(hub: Hub, tmp_path: Path) -> None:
    coarse: dict[str, object] = {"config": "coarse"}
    none, wrong, splits, prepared, other, streamed, default, only = ask(
        tmp_path,
        hub.url,
        ("user/Several", {}, None),
        ("user/Several", {"config": "fien"}, None),
        ("user/Several", {"config": "fine"}, None),
        ("user/Several", coarse, None),
        ("user/Several", {"config": "fine", "split": "train"}, None),
        ("hf://datasets/user/Several@v1", {"config": "fine", "split": "test", "streaming": True}, None),
        ("user/usual", {}, None),
        ("user/pics", {"config": "fine", "split": "train"}, None),
    )
    message = "user/Several has the configurations fine, coarse. Name one with --config."
    assert none == ["RelabelError", message]
    assert wrong[1] == (
        "--config fien: user/Several has the configuration(s) fine, coarse. Name one of them."
    )
    assert splits[1] == "user/Several has the splits train, test. Name one with --split."
    assert prepared == other == streamed == default == ROWS
    assert only[1] == "--config fine: user/pics has the configuration(s) default. Name one of them."

    named, unnamed, missing = ask(
        tmp_path,
        hub.url,
        ("user/Several", coarse, None),
        ("user/Several", {}, None),
        ("user/Several", {"config": "fien"}, None),
        HF_HUB_OFFLINE="1",
    )
    assert named == ROWS
    message = "user/Several, in the cache, has the configurations coarse, fine. Name one with --config."
    assert unnamed[1] == message
    assert missing[1].startswith("--config fien: user/Several, in the cache, has the configuration(s) coarse")


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    (answer,) = ask(tmp_path, "http://127.0.0.1:9", ("user/pics", {}, None))
    assert answer[0] == "RunError"
    assert "user/pics (no file or folder here): the download failed (" in answer[1]
