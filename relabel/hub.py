"""The Hugging Face Hub: `hf://user/repo@revision/file` becomes a file in the local Hub cache.

Names of data sets are recognised here too, and what goes wrong with either is put into a sentence.
"""

from __future__ import annotations

import re
from pathlib import Path
from socket import gaierror
from typing import TYPE_CHECKING
from urllib.parse import unquote

from relabel.errors import RelabelError, RunError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

# As huggingface_hub writes it: a leading datasets/ is a kind of repository, never a user, and a revision has
# no slash (%2F stands for one) except in refs/pr/1 and refs/convert/parquet.
_HUB_FILE = re.compile(
    r"hf://(?:(?P<kind>model|dataset|space)s/)?"
    r"(?P<repo>(?!(?:model|dataset|space)s/)[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:pr/\d+|convert/[\w.-]+)|[^/]+))?"
    r"(?:/(?P<file>[^/]+(?:/[^/]+)*))?"
)
_DATASET = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def parse_dataset(name: str) -> tuple[str, str | None] | None:
    """Repository and revision of `user/name` or `hf://datasets/user/name@revision`, else None."""
    if not name.startswith("hf://"):
        return (name, None) if _DATASET.fullmatch(name) else None
    parts = _HUB_FILE.fullmatch(name)
    if parts is None or parts["kind"] != "dataset" or parts["file"] or not _DATASET.fullmatch(parts["repo"]):
        return None
    return parts["repo"], parts["revision"] and unquote(parts["revision"])


def resolve(name: str, flag: str, default_file: str) -> Path:
    """The local path of what a user typed for a file flag such as `--corrector`.

    A plain path comes back as it is, there or not: whoever opens it knows best what to say. `hf://user/repo`
    (that repository's `default_file`), `hf://user/repo/path/in/repo.pt` and `hf://user/repo@revision/file`,
    with `datasets/` or `spaces/` before the user for those repositories, go through huggingface_hub. It
    downloads what its cache does not have, its own settings apply (`HF_HOME`, `HF_TOKEN` or a log-in,
    `HF_ENDPOINT`, `HF_HUB_OFFLINE`), and the cache serves when the Hub cannot be reached.

    Raises RelabelError for a malformed name, for a repository, revision or file that the Hub does not have or
    does not show this user, and for a file that is not in the cache in offline mode; RunError when the
    download fails: no connection, a failing server, a cache that cannot be written to.
    """
    if not name.startswith("hf://"):
        return Path(name)
    malformed = RelabelError(
        f"{flag} {name} is not the name of a file on the Hub.",
        f"Write hf://user/repo, hf://user/repo/{default_file} or hf://user/repo@revision/{default_file}.",
    )
    parts = _HUB_FILE.fullmatch(name)
    if parts is None or not name.isprintable() or not {".", ".."}.isdisjoint(re.split("[/@]", name)):
        raise malformed

    # Not at the top: --help and plain paths have no use for it.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    repo, file = parts["repo"], parts["file"] or default_file
    revision = unquote(parts["revision"] or "main")
    try:
        return Path(hf_hub_download(repo, file, revision=revision, repo_type=parts["kind"]))
    except HFValidationError as error:
        raise malformed from error
    except Exception as error:
        refusal = explained(error, f"{flag} {name}", repo, revision, file)
        if refusal is None:
            raise
        raise refusal from error


def explained(error: Exception, what: str, repo: str, revision: str, file: str) -> RelabelError | None:
    """The sentence for what huggingface_hub raised for a file or, where that is empty, for a repository.

    what: begins the sentence; None for an error of another kind.
    """
    from huggingface_hub import errors

    # Says only that the cache, the last resort, has no such file; its cause says why the Hub was no help.
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    # The HTTP library is requests, httpx or httpx2, by the version of huggingface_hub: the bases of its own
    # error, and OSError, cover all three. The Xet client raises built-in errors, for a full disk too.
    foreseen = (OSError, RuntimeError, ValueError, *errors.HfHubHTTPError.__bases__)
    refusal: RelabelError | None = None
    match error:
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            refusal = RelabelError(
                f"{what} is not in the Hub cache, and offline mode (HF_HUB_OFFLINE) forbids the download.",
                "Run the command once without it, or name a local file.",
            )
        case errors.HfHubHTTPError():
            refusal = _refusal(error, what, repo, revision, file)
        case errors.FileMetadataError():
            refusal = RunError(
                f"{what}: what answered is not a Hub.",
                "Check HF_ENDPOINT and the proxy, and that the network asks for no log-in of its own.",
            )
        case UnicodeEncodeError():  # of a header, and there only the token is the user's
            refusal = RelabelError(
                f"{what}: the Hugging Face token has a character that no token has.",
                "Set HF_TOKEN again, or log in with hf auth login.",
            )
        case OSError(errno=int()) if not isinstance(error, (ConnectionError, TimeoutError, gaierror)):
            refusal = RunError(
                f"{what}: the Hub cache could not be written to: {error.strerror}.",
                "Free some space, or set HF_HOME to another folder.",
            )
        case _ if isinstance(error, foreseen):
            refusal = RunError(
                f"{what}: the download failed ({reason(error)}).",
                "Check the connection, the proxy, HF_ENDPOINT and the free space, and run the command again.",
            )
    return refusal


def _refusal(error: HfHubHTTPError, what: str, repo: str, revision: str, file: str) -> RelabelError:
    """The sentence for a Hub that answered with an error."""
    from huggingface_hub import errors

    log_in = "log in with hf auth login or set HF_TOKEN"
    status = error.response.status_code
    match error:
        case errors.GatedRepoError():
            message, hint = f"{repo} is gated.", f"Ask for access on its Hub page, then {log_in}."
        case errors.RepositoryNotFoundError():
            message = f"the Hub has no repository {repo} that you may read."
            hint = f"Check the name; for a private repository {log_in}."
        case errors.DisabledRepoError():
            message, hint = f"the Hub has disabled {repo}.", "Name another repository."
        case errors.RevisionNotFoundError():
            message = f"{repo} has no revision {revision}."
            hint = "Name one of its branches, tags or commits."
        case errors.EntryNotFoundError():
            message = f"{repo} has no file {file} at revision {revision}."
            hint = "Name one of its files, as in hf://user/repo/file."
        case _ if status in (401, 403):
            message = f"the Hub did not let you read {repo} (HTTP {status})."
            hint = "Check HF_TOKEN, or log in again with hf auth login."
        case _:
            return RunError(
                f"{what}: the Hub answered with HTTP {status}.",
                "Run the command again later, and check HF_ENDPOINT if it is set.",
            )
    return RelabelError(f"{what}: {message}", hint)


def reason(error: Exception) -> str:
    """What the system said, else what a built-in error says, else the error's kind.

    An HTTP library's own words can quote the request, and the token in it.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__cause__ or link.__context__
    if type(error).__module__ == "builtins":
        return str(error).partition("\n")[0].rstrip(".")
    return type(error).__name__
