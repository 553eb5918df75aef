"""The doctor's examinations: each looks at one thing and says what it found and what to do.

Reads; works on a store that cannot be opened, and must never raise because of what it finds.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

from paramstore.errors import ParamStoreError
from paramstore.listing import format_bytes

Level = Literal["ok", "note", "wrong"]

# What a file system's kind, as the kernel names it, means for a store.
NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.s3fs",
     "fuse.gcsfuse", "fuse.glusterfs", "glusterfs", "lustre", "gpfs", "beegfs", "fuse.rclone"}
)  # fmt: skip
IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "rootfs"})
_ROOM: Final = 256 << 20
"""Bytes below which the disk is called nearly full."""
_PACKAGES: Final = ("torch", "pyro-ppl", "sqlalchemy", "alembic", "safetensors", "numpy")
_WANTED: Final = {"page_size": 65536, "auto_vacuum": 2, "synchronous": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one examination found."""

    level: Level
    """``ok``; ``note``: worth knowing; ``wrong``: the store or its place is not in order."""
    what: str
    """What was looked at."""
    found: str
    """What was seen."""
    advice: str = ""
    """What to do, where something is to be done."""


def ok(what: str, found: str) -> Finding:
    """What is in order."""
    return Finding(level="ok", what=what, found=found)


def note(what: str, found: str, advice: str) -> Finding:
    """What is worth knowing."""
    return Finding(level="note", what=what, found=found, advice=advice)


def wrong(what: str, found: str, advice: str) -> Finding:
    """What is not in order."""
    return Finding(level="wrong", what=what, found=found, advice=advice)


def examine(path: Path, *, deep: bool) -> Iterator[Finding]:
    """Yield findings, the ground before what stands on it.

    Args:
        path: The database file, absolute; it need not exist.
        deep: Whether to read every page and the newest snapshot of every scope.
    """
    yield from _programs()
    yield from _file(path)
    yield _file_system(path)
    yield from _space(path)
    if not path.is_file():
        return
    opened = True
    for what, look in (("settings", _settings), ("schema", _schema)):
        found = _calmly(what, look, path)
        opened = opened and all(finding.level != "wrong" for finding in found)
        yield from found
    if opened and deep:
        yield from _calmly("pages", _pages, path)
        yield from _calmly("newest snapshots", _newest, path)


def _calmly(what: str, look: Callable[[Path], Iterator[Finding]], path: Path) -> list[Finding]:
    try:
        return list(look(path))
    except (ParamStoreError, OSError) as error:
        return [wrong(what, str(error), _remedy(error))]


def _remedy(error: Exception) -> str:
    kind = getattr(error, "kind", "")
    return {
        "busy": "another process holds the lock; look for it with fuser or lsof",
        "corrupt": "paramstore salvage FILE INTO saves what is whole; or take the last backup",
        "not-a-database": "give another path, or take the last backup",
        "schema-too-old": "paramstore db upgrade",
        "schema-too-new": "upgrade paramstore",
        "foreign-database": "give another path",
        "not-found": "give another path, or take the last backup",
    }.get(kind, "paramstore salvage FILE INTO saves what is whole; or take the last backup")


# -- programs ----------------------------------------------------------------------


def _programs() -> Iterator[Finding]:
    from paramstore.db.facts import version as sqlite_version

    packages = [f"{name} {_version(name)}" for name in _PACKAGES]
    yield ok("paramstore", f"{_version('paramstore')}, Python {platform.python_version()}")
    yield ok("packages", ", ".join(packages))
    yield ok("SQLite", sqlite_version())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


# -- the file and its place --------------------------------------------------------


def _file(path: Path) -> Iterator[Finding]:
    if not path.exists():
        yield wrong("file", f"there is none at {path}", "name it with --db FILE or PARAMSTORE_URL")
        return
    if not path.is_file():
        yield wrong("file", f"{path} is a directory", "give the path of a file in it")
        return
    yield ok("file", f"{path}, {format_bytes(path.stat().st_size)}")
    if not os.access(path, os.R_OK):
        yield wrong("permission", "this user may not read the file", f"chmod u+r {path}")
    elif not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        yield note(
            "permission",
            "this user may read and not write",
            "reading works; a run needs to write the file and its folder (for the journal)",
        )
    yield from _journals(path)


def _journals(path: Path) -> Iterator[Finding]:
    journal = path.with_name(f"{path.name}-journal")
    size = journal.stat().st_size if journal.exists() else 0
    if size:
        yield note(
            "journal",
            f"{format_bytes(size)} of a transaction that is being written, or whose writer died",
            "nothing to do: whoever opens the store next undoes it if its writer is dead",
        )
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size > _ROOM:
        yield note(
            "WAL",
            f"{format_bytes(log.stat().st_size)} not yet in the file",
            "a reader that never ends keeps it from shrinking; close the programs that read",
        )


def file_system(path: Path) -> str:
    """Return the kernel's name of the file system of a path; ``unknown`` off Linux."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return "unknown"
    best, kind = "", "unknown"
    for line in mounts.read_text(errors="replace").splitlines():
        _, place, name = line.split()[:3]
        place = place.encode().decode("unicode_escape")  # a space is \040
        if len(place) >= len(best) and path.is_relative_to(place):
            best, kind = place, name
    return kind


def _file_system(path: Path) -> Finding:
    kind = file_system(path)
    if kind in NETWORK:
        return wrong(
            "file system",
            f"{kind}, over the network: locks may not hold, and a power cut may lose commits",
            "keep the store on a local disk, and copy it with 'paramstore backup'",
        )
    if kind in IN_MEMORY:
        return note("file system", f"{kind}, in memory", "gone when the machine ends; use a disk")
    if kind == "overlay":
        return note(
            "file system", "overlay, inside a container", "gone with the container; use a volume"
        )
    return ok("file system", kind)


def _space(path: Path) -> Iterator[Finding]:
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        yield wrong("free space", str(error), "the folder has to exist")
        return
    if free < _ROOM:
        advice = "'paramstore expire' and 'paramstore gc --compact' give space back"
        yield wrong("free space", format_bytes(free), advice)
    else:
        yield ok("free space", format_bytes(free))


# -- the database ------------------------------------------------------------------


def _settings(path: Path) -> Iterator[Finding]:
    from paramstore.db import facts

    found = facts.pragmas(path)
    mode = str(found["journal_mode"])
    told = (
        f"journal {mode}, synchronous {facts.SYNCHRONOUS.get(int(found['synchronous']), '?')}, "
        f"pages of {format_bytes(int(found['page_size']))}, auto_vacuum "
        f"{facts.AUTO_VACUUM.get(int(found['auto_vacuum']), '?')}"
    )
    off = [name for name, wanted in _WANTED.items() if found[name] != wanted]
    if off:
        advice = "slower, or space is not given back: 'paramstore backup' makes a file as it should"
        yield note("settings", f"{told}; not as new stores have it: {', '.join(off)}", advice)
    else:
        yield ok("settings", told)
    if bug := facts.known_bug(mode):
        yield wrong("SQLite", bug, "open the store once with journal='truncate', or update SQLite")
    free = int(found["freelist_count"]) * int(found["page_size"])
    if free > _ROOM:
        yield note("free pages", format_bytes(free), "'paramstore gc --compact' gives them back")


def _schema(path: Path) -> Iterator[Finding]:
    from paramstore.cli.opening import reading
    from paramstore.db import migrate

    with reading(str(path)) as repository:
        scopes = repository.scopes()
    differing = migrate.check(path)
    told = f"{migrate.current(path)}; {len(scopes)} scopes"
    if differing:
        advice = "'paramstore salvage FILE INTO' writes a store as it should be"
        yield wrong("schema", f"{told}; {'; '.join(differing)}", advice)
    else:
        yield ok("schema", told)


def _pages(path: Path) -> Iterator[Finding]:
    from paramstore.db.facts import broken_pages

    broken = broken_pages(path)
    if broken:
        advice = "paramstore salvage FILE INTO saves what is whole; or take the last backup"
        yield wrong("pages", "; ".join(broken), advice)
    else:
        yield ok("pages", "SQLite's quick check finds nothing")


def _newest(path: Path) -> Iterator[Finding]:
    from paramstore.cli.opening import reading

    with reading(str(path)) as repository:
        heads = [head for scope in repository.scopes() if (head := repository.head(scope.name))]
        for head in heads:
            repository.manifest(head)
    yield ok("newest snapshots", f"{len(heads)} match their digests ('paramstore verify' does all)")
