"""The user's cache: its folders, which are their owner's alone, one process at a time in them, and files known by sha256."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelError

if TYPE_CHECKING:
    from filelock import BaseFileLock

ELSEWHERE = "set CLIPSIGHT_CACHE to a folder of your own"  # what to do about a cache that cannot be used


def cache_folder(name: str) -> Path:
    """The folder `name` in the user's cache, $CLIPSIGHT_CACHE or else the system's folder for caches; it is not made here."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("CLIPSIGHT_CACHE")
    return (Path(chosen) if chosen else user_cache_path("clipsight", appauthor=False)) / name


def model_cache() -> Path:
    """The folder of fetched models in the user's cache; raises `ModelError` where others can write to it."""
    folder = cache_folder("models").absolute()
    # Others may read weights; what they can write is not looked at closely enough, for it is hashed once.
    if sys.platform != "win32" and folder.is_dir() and folder.stat().st_mode & 0o022:
        fix = f"run: chmod go-w {shlex.quote(str(folder))}"
        raise ModelError(f"{folder}: others can write to it; remove what is not yours there and {fix}, or {ELSEWHERE}")
    return folder


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, with mode 0700; what is there stays. Raises `OSError`."""
    missing = [p for p in (folder, *folder.parents) if not os.path.lexists(p)]
    for each in reversed(missing):
        with suppress(FileExistsError):  # another process was faster
            each.mkdir(0o700)
            each.chmod(0o700)  # whatever the umask


def take_lock(path: Path, say: Callable[[str], object], waiting: str) -> BaseFileLock:
    """The lock `path`, taken; release it. `say` is told `waiting` where another has it. Raises `OSError` for the folder."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, mode=0o600)  # the system frees it when the process dies
    with suppress(Timeout):
        lock.acquire(timeout=0)
    if not lock.is_locked:
        say(waiting)
        lock.acquire(poll_interval=0.1)  # it sleeps in between, so Ctrl-C ends it
    return lock


def hash_file(path: Path) -> str:
    """The sha256 of a file in hex; raises `ModelError` where it cannot be read."""
    sha = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); give a model folder whose files you can read") from error
    return sha.hexdigest()


def is_there(path: Path, sha256: str, *, hashed: bool = False) -> bool:
    """Whether a file is there and has that sha256. It is hashed once (hashed: it was just now), then known by size and time.

    Raises `ModelError` where it cannot be read.
    """
    try:
        about = path.stat()
    except OSError:
        return False
    seen = {"sha256": sha256, "size": about.st_size, "time": about.st_mtime_ns}
    marker = beside(path, ".checked")
    if read_json(marker) == seen:
        return True
    if not hashed and hash_file(path) != sha256:
        return False
    with suppress(OSError):  # in a folder that cannot be written it is hashed every time
        marker.write_text(json.dumps(seen))
    return True


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty one where there is none."""
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def beside(path: Path, suffix: str) -> Path:
    """PATHsuffix."""
    return path.with_name(path.name + suffix)
