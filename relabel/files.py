"""Files that are either there in full or not there at all."""

from __future__ import annotations

import errno
import hashlib
import math
import mmap
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relabel import __version__
from relabel.errors import RelabelError, RunError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

METADATA_KEY = b"relabel"
"""Where the schema of a Parquet file that we write has JSON data on it."""


def digest(content: bytes | NDArray[Any]) -> str:
    """The SHA-256 of bytes, or of an array's values, as text."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    import numpy as np  # not at the top: --help has no use for it

    return hashlib.sha256(np.ascontiguousarray(content).data).hexdigest()


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse an output that could not be written at the end; call it before any work.

    Raises `RelabelError` when the path is a folder or a device, exists without `overwrite`, has no folder
    that can be written to, or is none that the system takes.
    """
    check_name(path)
    if path.is_dir():
        raise RelabelError(f"The output {path} is a folder.", "Name a file.")
    if path.exists() and not path.is_file():
        # Renaming over /dev/null or a named pipe would replace it by a plain file.
        raise RelabelError(
            f"The output {path} is not a plain file.", "Name a file, or - for standard output."
        )
    if path.exists() and not overwrite:
        raise RelabelError(f"The output {path} exists.", "Choose another name or add --overwrite.")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise RelabelError(f"The output {path} has no folder {folder}.", "Make the folder first.")
    if not os.access(folder, os.W_OK):
        raise RelabelError(
            f"The output {path} is in a folder you may not write to.", "Choose another folder."
        )


def check_name(path: Path, wanted: Path | None = None) -> None:
    """Refuse a path that no file can have; wanted: the output in a message, where `path` is made from it."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise RelabelError(
            f"The output {wanted or path} cannot be written: {error.strerror}.", "Choose another name."
        ) from error


def make_folder(path: Path, called: str) -> None:
    """Make a folder, and those it lies in, where it is not there; RelabelError, which calls it `called`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RelabelError(
            f"{called} could not be made: {error.strerror}.", "Name another folder."
        ) from error


def scratch_array(shape: tuple[int, ...], dtype: DTypeLike, remedies: str = "") -> NDArray[Any]:
    """An array of zeros in a mapped temporary file: it occupies disk, not memory.

    The file is unlinked at once, and is gone with the process however it ends. Its space is taken at once,
    because a disk that fills up later would end the process with SIGBUS. remedies: what else to do about too
    little space, as words after "Set TMPDIR to a folder on another disk". Raises RunError.
    """
    import numpy as np

    size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    with tempfile.TemporaryFile(prefix="relabel-") as file:
        try:
            if size > free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            _reserve(file.fileno(), size)
        except OSError as error:
            raise RunError(
                f"Temporary data of {_gigabytes(size)} cannot be kept in {folder}, which has "
                f"{_gigabytes(free)} free: {error.strerror}.",
                f"Set TMPDIR to a folder on another disk{remedies}.",
            ) from error
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)


def release(array: NDArray[Any]) -> None:
    """Take a scratch array's pages out of this process's memory; its values stay, and come back when read.

    Otherwise every page that was ever touched counts as the process's own for as long as the system has room.
    Nothing happens to other arrays, nor where the system cannot do it.
    """
    import numpy as np

    shared = isinstance(array, np.memmap) and array.mode in ("r", "r+")
    if shared and isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.base.madvise(mmap.MADV_DONTNEED)


def _reserve(descriptor: int, size: int) -> None:
    """Give an empty file `size` bytes of zeros, and their place on the disk where the system can."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    os.truncate(descriptor, size)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"


@contextmanager
def atomic_path(destination: Path) -> Iterator[Path]:
    """Yield a temporary path beside `destination`; when the body ends well it takes that name at once.

    Whatever stops the body, Ctrl-C included, removes the temporary file and leaves an earlier `destination`
    as it was. The file gets the mode an ordinary `open()` gives: the umask's, or the replaced file's.
    Raises `RunError` when the disk refuses.
    """
    final = destination.resolve()  # a link stays a link: the file it points to is replaced
    temporary = final.with_name(f".relabel-{secrets.token_hex(8)}.tmp")
    try:
        # Not `tempfile`: its 0600 would stay on the finished file.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        if final.exists():
            temporary.chmod(stat.S_IMODE(final.stat().st_mode))
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(final)
    except OSError as error:
        raise RunError(
            f"{destination} could not be written: {error.strerror or error}.",
            "Free some space or choose another place.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: str | Path, kind: str, number: int, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values as a file of that kind (`corrector`, say) and format number."""
    import torch

    header = {"kind": f"relabel {kind}", "format": number, "relabel_version": __version__}
    with atomic_path(Path(path)) as temporary:
        torch.save({**header, **content}, temporary)


def load_tensors(path: Path, kind: str, number: int) -> dict[str, Any]:
    """What `save_tensors` wrote, its header included; never executes code from the file.

    Raises RelabelError for a damaged file, another kind of file and another format.
    """
    import torch

    hint = f"Name a file written with --save-{kind}."
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RelabelError(
            f"{path} is not a {kind} file that can be loaded safely ({type(error).__name__}).", hint
        ) from error
    if not isinstance(content, dict) or content.get("kind") != f"relabel {kind}":
        raise RelabelError(f"{path} is not a {kind} file.", hint)
    if content.get("format") != number:
        raise RelabelError(
            f"{path} has format {content.get('format')}, and this version reads format {number}.",
            "Install the newest relabel, or write the file again.",
        )
    return content


def kind_of(path: Path) -> str | None:
    """The kind of a file that `save_tensors` wrote, else None."""
    import torch

    try:
        # Mapped, not read: the tensors stay on disk.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return str(content["kind"]).removeprefix("relabel ")
    except Exception:
        return None
