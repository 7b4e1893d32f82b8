"""Every name goes through the real huggingface_hub to a small Hub on this machine.

huggingface_hub reads its settings when it is imported, so each test asks in a process of its own.
"""

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from importlib.util import find_spec
from pathlib import Path

import pytest

from relabel.errors import RelabelError, RunError
from relabel.hub import explained, parse_dataset, resolve

TOKEN = "hf_secret"
COMMIT = "0123456789" * 4
FILES = {
    "/user/repo/resolve/main/tmlc.pt": b"of main" * 1000,
    "/user/repo/resolve/main/runs/best%20one.pt": b"in a folder",
    "/user/repo/resolve/v1/tmlc.pt": b"of v1",
    "/user/repo/resolve/a%2Fb/tmlc.pt": b"of the branch a/b",
    "/user/repo/resolve/refs%2Fpr%2F3/tmlc.pt": b"of a pull request",
    "/datasets/user/repo/resolve/main/tmlc.pt": b"of a data set",
}
NAMES = {
    "hf://user/repo": b"of main" * 1000,
    "hf://user/repo/tmlc.pt": b"of main" * 1000,
    "hf://user/repo/runs/best one.pt": b"in a folder",
    "hf://user/repo@v1": b"of v1",
    "hf://user/repo@v1/tmlc.pt": b"of v1",
    "hf://user/repo@a%2Fb/tmlc.pt": b"of the branch a/b",
    "hf://user/repo@refs/pr/3/tmlc.pt": b"of a pull request",
    "hf://models/user/repo/tmlc.pt": b"of main" * 1000,
    "hf://datasets/user/repo": b"of a data set",
}
REFUSALS: dict[str, tuple[int, dict[str, str]]] = {
    "missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "private": (401, {"X-Error-Code": "RepoNotFound"}),
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "disabled": (403, {"X-Error-Message": "Access to this resource is disabled."}),
    "expired": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "forbidden": (403, {}),
    "other": (404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}),
    "old": (404, {"X-Error-Code": "RevisionNotFound"}),
    "broken": (500, {}),
    "page": (200, {"Content-Type": "text/html"}),
}
LOG_IN = "log in with hf auth login or set HF_TOKEN."
FAILED = "Check the connection, the proxy, HF_ENDPOINT and the free space, and run the command again."
SENTENCES = {
    "hf://user/missing": (
        "RelabelError",
        "the Hub has no repository user/missing that you may read. "
        f"Check the name; for a private repository {LOG_IN}",
    ),
    "hf://user/private": (
        "RelabelError",
        "the Hub has no repository user/private that you may read. "
        f"Check the name; for a private repository {LOG_IN}",
    ),
    "hf://user/gated": (
        "RelabelError",
        f"user/gated is gated. Ask for access on its Hub page, then {LOG_IN}",
    ),
    "hf://user/disabled": ("RelabelError", "the Hub has disabled user/disabled. Name another repository."),
    "hf://user/expired": (
        "RelabelError",
        "the Hub did not let you read user/expired (HTTP 401). "
        "Check HF_TOKEN, or log in again with hf auth login.",
    ),
    "hf://user/forbidden": (
        "RelabelError",
        "the Hub did not let you read user/forbidden (HTTP 403). "
        "Check HF_TOKEN, or log in again with hf auth login.",
    ),
    "hf://user/other/a/b.pt": (
        "RelabelError",
        "user/other has no file a/b.pt at revision main. Name one of its files, as in hf://user/repo/file.",
    ),
    "hf://user/old@v9": (
        "RelabelError",
        "user/old has no revision v9. Name one of its branches, tags or commits.",
    ),
    "hf://user/broken": (
        "RunError",
        "the Hub answered with HTTP 500. Run the command again later, and check HF_ENDPOINT if it is set.",
    ),
    "hf://user/page": (
        "RunError",
        "what answered is not a Hub. "
        "Check HF_ENDPOINT and the proxy, and that the network asks for no log-in of its own.",
    ),
}
ASK = """
import json, sys, time
from relabel.errors import RelabelError, RunError
from relabel.hub import resolve
resolve("tmlc.pt", "--corrector", "tmlc.pt")
assert "huggingface_hub" not in sys.modules
time.sleep = lambda seconds: None  # between its tries huggingface_hub would wait for half a minute
for name in sys.argv[1:]:
    try:
        answer = "", str(resolve(name, "--corrector", "tmlc.pt"))
    except RelabelError as error:
        answer = type(error).__name__, str(error)
    print(json.dumps(answer))
"""


@dataclass
class Hub:
    """A running Hub: its address and the requests it got, as method, path and token."""

    url: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a path."""
        repo = path.split("/")[2]
        if repo in REFUSALS:
            return *REFUSALS[repo], b""
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha256(path.encode()).hexdigest()}"'}
        if path in FILES:
            revision = path.partition("/resolve/")[2].split("/")[0]
            headers["X-Repo-Commit"] = sha1(revision.encode()).hexdigest()
            return 200, headers, FILES[path]
        if repo == "cut":
            return 200, headers | {"Content-Length": "9"}, b"half"
        if repo == "xet":
            token = {"X-Xet-Cas-Url": self.url, "X-Xet-Access-Token": "x", "X-Xet-Token-Expiration": "9" * 10}
            xet = {"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": f"{self.url}/user/xet"}
            return 200, headers | xet | token | {"Content-Length": "9"}, b""
        return 404, {}, b""


@pytest.fixture
def hub(serve: Callable[..., str]) -> Hub:
    played = Hub()

    def answer(
        method: str, path: str, headers: Mapping[str, str], _: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        played.requests.append((method, path, headers["Authorization"]))
        return played.answer(path)

    played.url = serve(answer)
    return played


def ask(names: list[str], home: Path, url: str, **settings: str) -> list[tuple[str, str]]:
    """What `resolve` makes of each name in a process with these settings: "" and a path, or an error.

    An error's text comes without its beginning, the flag and the name, which it must have.
    """
    own = ("HF_", "HUGGING", "TRANSFORMERS_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(own) and "proxy" not in k.lower()}
    env |= {"HF_HOME": str(home), "HF_ENDPOINT": url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1"}
    env |= settings
    done = subprocess.run(
        [sys.executable, "-c", ASK, *names], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert env["HF_TOKEN"] not in done.stdout + done.stderr
    answers: list[tuple[str, str]] = []
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        kind, text = json.loads(line)
        if kind:
            beginning = f"--corrector {name}"
            assert text.startswith(beginning)
            assert "\n" not in text
            text = text.removeprefix(beginning).removeprefix(":").lstrip()
        answers.append((kind, text))
    return answers


@pytest.mark.parametrize("name", ["tmlc.pt", "/a/folder/x@y.pt", "hf/user/repo", "./hf://user"])
def test_a_plain_path_is_returned_as_it_is(name: str) -> None:
    assert resolve(name, "--corrector", "tmlc.pt") == Path(name)


@pytest.mark.parametrize(
    "name",
    [
        "hf://",
        "hf:///",
        "hf://user",
        "hf://user/",
        "hf://datasets/repo",
        "hf://user@v1/repo",
        "hf://user//tmlc.pt",
        "hf://user/repo/",
        "hf://user/repo//tmlc.pt",
        "hf://user/repo/a//tmlc.pt",
        "hf://user/repo/a/",
        "hf://user/repo@",
        "hf://user/repo@/tmlc.pt",
        "hf://user/repo/../tmlc.pt",
        "hf://user/repo@../tmlc.pt",
        "hf://user/repo/a\nb.pt",
        "hf://us er/repo",
        "hf://user/-repo",
    ],
)
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(RelabelError) as caught:
        resolve(name, "--corrector", "tmlc.pt")
    assert caught.value.message == f"--corrector {name} is not the name of a file on the Hub."
    assert (
        caught.value.hint
        == "Write hf://user/repo, hf://user/repo/tmlc.pt or hf://user/repo@revision/tmlc.pt."
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("user/name", ("user/name", None)),
        ("hf://datasets/user/na.me-1", ("user/na.me-1", None)),
        ("hf://datasets/user/name@v1", ("user/name", "v1")),
        ("hf://datasets/user/name@a%2Fb", ("user/name", "a/b")),
        ("hf://user/name", None),
        ("hf://datasets/name", None),
        ("hf://datasets/user/name/file.zip", None),
        ("user/name@v1", None),
        ("./user", None),
        ("../name", None),
        ("user/name/", None),
        ("name", None),
    ],
)
def test_names_of_data_sets(name: str, expected: tuple[str, str | None] | None) -> None:
    assert parse_dataset(name) == expected


def test_a_file_is_downloaded_once_and_then_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    names = [*NAMES, *NAMES]
    first = ask(names, tmp_path, hub.url)
    assert [kind for kind, _ in first] == [""] * len(names)
    assert [Path(path).read_bytes() for _, path in first] == [*NAMES.values(), *NAMES.values()]
    assert all(Path(path).is_relative_to(tmp_path) for _, path in first)
    assert sorted(path for method, path, _ in hub.requests if method == "GET") == sorted(FILES)
    assert {token for _, _, token in hub.requests} == {f"Bearer {TOKEN}"}

    hub.requests.clear()
    *cached, missing = ask([*names, "hf://user/repo/other.pt"], tmp_path, hub.url, HF_HUB_OFFLINE="1")
    assert cached == first
    assert missing == (
        "RelabelError",
        "is not in the Hub cache, and offline mode (HF_HUB_OFFLINE) forbids the download. "
        "Run the command once without it, or name a local file.",
    )
    assert hub.requests == []

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        cached_one, failed = ask(["hf://user/repo", "hf://user/repo/other.pt"], tmp_path, url)
    assert cached_one == first[0]
    assert failed == ("RunError", f"the download failed ({os.strerror(errno.ECONNREFUSED)}). {FAILED}")


def test_what_the_hub_refuses_is_told_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    answers = ask([*SENTENCES, "hf://user/cut"], tmp_path, hub.url)
    assert dict(zip(SENTENCES, answers, strict=False)) == SENTENCES
    kind, text = answers[-1]
    assert kind == "RunError"
    assert text.startswith("the download failed (")
    assert text.endswith(f"Error). {FAILED}")
    assert not list(tmp_path.rglob("snapshots/*/*.pt"))


@pytest.mark.skipif(not find_spec("hf_xet"), reason="huggingface_hub has no Xet client here")
def test_a_failure_of_the_xet_client_is_told_in_its_words(hub: Hub, tmp_path: Path) -> None:
    ((kind, text),) = ask(["hf://user/xet"], tmp_path, hub.url)
    assert kind == "RunError"
    assert text.startswith("the download failed (")
    assert text.endswith(f"). {FAILED}")


def test_a_cache_that_cannot_be_written_to(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert ask(["hf://user/repo"], tmp_path / "file", hub.url) == [
        (
            "RunError",
            f"the Hub cache could not be written to: {os.strerror(errno.ENOTDIR)}. "
            "Free some space, or set HF_HOME to another folder.",
        )
    ]


def test_a_hub_whose_name_no_server_knows_is_no_cache_that_cannot_be_written_to() -> None:
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    refusal = explained(error, "hf://user/repo", "user/repo", "main", "tmlc.pt")
    assert isinstance(refusal, RunError)
    assert refusal.message == "hf://user/repo: the download failed (Name or service not known)."


def test_a_token_that_no_header_can_carry_is_not_told(hub: Hub, tmp_path: Path) -> None:
    assert ask(["hf://user/repo"], tmp_path, hub.url, HF_TOKEN="hf_sécret…") == [
        (
            "RelabelError",
            "the Hugging Face token has a character that no token has. "
            "Set HF_TOKEN again, or log in with hf auth login.",
        )
    ]


def test_what_nobody_foresaw_keeps_its_own_name() -> None:
    with pytest.raises(AttributeError):
        resolve("hf://user/repo", "--corrector", None)
