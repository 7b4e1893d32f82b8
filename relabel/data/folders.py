"""Folders whose images are files: the folder above an image is its class, or `metadata.*` files list them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from relabel.data.decode import IMAGE_SUFFIXES
from relabel.data.draft_source import METADATA_NAMES, DraftSource, Request, natural_key
from relabel.data.manifests import FileRows, Listing, root_prefixes, unlisted_warnings
from relabel.data.shards import is_junk
from relabel.errors import RelabelError


@dataclass
class Scan:
    """What a walk through a folder found; paths are POSIX and relative to it."""

    images: list[str] = field(default_factory=list)
    broken_links: set[str] = field(default_factory=set)  # among `images`
    others: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)  # leaf folders with no content


def scan_folder(root: Path) -> Scan:
    """Walk through a folder, in natural order. Raises RelabelError for one inside that cannot be read."""
    scan = Scan()
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        folder, above = pending.pop()
        try:
            status = os.stat(root / folder)
            with os.scandir(root / folder) as listing:
                entries = sorted(listing, key=lambda entry: natural_key(entry.name))
        except OSError as error:
            raise RelabelError(
                f"The folder {root / folder} cannot be read: {error.strerror}.", "Check its permissions."
            ) from None
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue  # a link back to a folder that holds it
        prefix = f"{folder}/" if folder else ""
        subfolders = []
        leaf_is_empty = bool(folder)
        for entry in entries:
            name, path = entry.name, prefix + entry.name
            if entry.is_dir():
                if not is_junk(name):
                    subfolders.append(path)
                continue
            if not entry.is_file() and os.path.exists(entry.path):
                continue  # reading a pipe would wait for ever
            junk = is_junk(name)
            leaf_is_empty = leaf_is_empty and junk
            if not junk and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                if entry.is_symlink() and not os.path.exists(entry.path):
                    scan.broken_links.add(path)
                scan.images.append(path)
            elif name in METADATA_NAMES:
                scan.metadata.append(path)
            else:
                scan.others.append(path)
        if leaf_is_empty and not subfolders:
            scan.empty.append(folder)
        pending += [(path, above | {identity}) for path in reversed(subfolders)]
    return scan


def open_class_folders(root: Path, scan: Scan, request: Request) -> DraftSource:
    """The images of a folder, each of the class that the folder above it names."""
    rows = FileRows(root, "folder")
    rows.ignore(len(scan.others))
    for path in scan.images:
        rows.add(path, None, found=path not in scan.broken_links)
    rows.classify_by_folder(scan.empty, request)
    return rows


def open_listed(root: Path, scan: Scan, request: Request) -> DraftSource:
    """The images that the metadata files of a folder list, and after them those that none lists."""
    rows = FileRows(root, "metadata")
    listing = Listing(root_prefixes(root), request, lambda name: os.path.isfile(root / name))
    for path in scan.metadata:
        listing.add_table(root / path, path.rpartition("/")[0])
    rows.warn(*unlisted_warnings(listing.add_others(scan.images, scan.broken_links), request))
    rows.add_all(listing)
    rows.ignore(sum(path not in listing for path in scan.others))
    return rows
