"""The user's cache of compiled plans: a key in, the bytes of a plan out, or None where it must be built.

A plan is executable content (NVIDIA's words), so what is run must be ours. The protection is the mode of the folder
(0700) and the owner of the files in it; the sha256 in a plan's sidecar, PLAN.json, only detects damage and staleness,
for whoever could replace the plan could replace the sidecar too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from ..cache import ELSEWHERE, cache_folder, make_private, take_lock
from ..cache import hash_file as hash_file  # handed on: what a key's `model` is
from ..errors import BackendError

log = logging.getLogger("clipsight")

Facts = dict[str, Any]  # what a sidecar says; JSON


@dataclass(frozen=True)
class PlanKey:
    """Everything that a plan depends on.

    model: sha256 of the ONNX file (`hash_file`). runtime: tensorrt | tensorrt-rtx, and its version. device: the GPU and
    its architecture ("NVIDIA H200 sm90"; "sm89" where it is built for another machine). profile: its batches ("1,32").
    """

    model: str
    runtime: str
    version: str
    device: str
    driver: str
    precision: str
    profile: str

    @property
    def name(self) -> str:
        """A file's stem that a person can read and no other key has."""
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.runtime}-{self.version}-{self.precision}").strip("-.")[:60]
        return f"{readable}-{_sha256(json.dumps(asdict(self), sort_keys=True).encode())[:32]}"


class Plan(NamedTuple):
    """A plan as it was read, and what its sidecar says of it."""

    data: bytes
    facts: Facts
    path: Path


class PlanCache:
    """Plans by key in one folder that only its owner can reach.

    folder: where the plans lie; $CLIPSIGHT_CACHE/plans or else the system's folder for caches. It is made when it is
    first used. Every method raises `BackendError` where the folder cannot be made or others can reach it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_folder("plans") if folder is None else folder

    def load(self, key: PlanKey) -> Plan | None:
        """The plan, or None where there is none, it is damaged, of another key, or others could have written it."""
        path = self._path(key, "plan")
        found = _load(path, key)
        return found and Plan(*found, path)

    def save(self, key: PlanKey, data: bytes, facts: Mapping[str, Any]) -> Plan:
        """Keep a plan in the place of the one before; call it inside `building`. Raises `OSError` for a full disk."""
        plan = self._describe(key, data, facts)
        _write(plan.path, data, plan.facts)
        return plan

    def obtain(
        self, key: PlanKey, build: Callable[[], tuple[bytes, Facts]], say: Callable[[str], object], *, anew: bool = False
    ) -> Plan:
        """The plan from the cache, or else built and kept, by one process while the others wait.

        anew: built though there is one, which stays until the new one takes its place. What `build` raises passes through
        and nothing is kept. A plan that cannot be kept is returned all the same.
        """
        if not anew and (plan := self.load(key)):
            return plan
        with self.building(key, say):
            plan = None if anew else self.load(key)  # somebody may have built it since
            if plan is None:
                plan = self._describe(key, *build())
                try:
                    _write(plan.path, plan.data, plan.facts)
                except OSError as error:
                    log.warning("%s: not kept (%s); free space or %s", plan.path, error.strerror or error, ELSEWHERE)
        return plan

    def attach(self, key: PlanKey, suffix: str, data: bytes) -> Path:
        """Keep a companion of a plan, such as the kernels TensorRT for RTX has compiled. Raises `OSError` for a full disk."""
        path = self._path(key, suffix)
        _write(path, data, _describe(data, asdict(key)))
        return path

    def attached(self, key: PlanKey, suffix: str) -> bytes | None:
        """A companion, guarded as the plan is, or None."""
        found = _load(self._path(key, suffix), key)
        return found and found[0]

    def detach(self, key: PlanKey, suffix: str) -> None:
        """Remove a companion, where there is one."""
        path = self._path(key, suffix)
        for part in (path, _sidecar(path)):
            part.unlink(missing_ok=True)

    def remove(self, key: PlanKey) -> None:
        """Remove a plan, its sidecar and its companions, where they are there."""
        for path in self._checked().glob(f"{key.name}.*"):
            if path.suffix != ".lock":  # whoever holds it would no longer keep others out
                path.unlink(missing_ok=True)

    @contextmanager
    def building(self, key: PlanKey, say: Callable[[str], object]) -> Iterator[None]:
        """Keep other processes from building this plan; `say` is told where one already does and is waited for."""
        try:
            lock = take_lock(self._path(key, "lock"), say, "another process is building this plan; waiting for it")
        except OSError as error:
            raise BackendError(f"{self.folder}: cannot be written ({error.strerror or error}); {ELSEWHERE}") from error
        try:
            for part in self.folder.glob(f"{key.name}.plan.*.part"):  # of a builder that was killed
                part.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def _describe(self, key: PlanKey, data: bytes, facts: Mapping[str, Any]) -> Plan:
        return Plan(data, _describe(data, {**facts, **asdict(key)}), self._path(key, "plan"))

    def _path(self, key: PlanKey, suffix: str) -> Path:
        return self._checked() / f"{key.name}.{suffix}"

    def _checked(self) -> Path:
        """The folder, made where it is missing; raises `BackendError` where it is not ours alone."""
        try:
            make_private(self.folder)
            about = self.folder.lstat()
        except OSError as error:
            raise BackendError(f"{self.folder}: cannot be made ({error.strerror}); {ELSEWHERE}") from error
        wrong = None
        if not stat.S_ISDIR(about.st_mode):
            wrong = "is a link or a file; remove it"
        elif sys.platform == "win32":  # no modes there; a user's profile, where the cache lies, is closed to others
            pass
        elif about.st_uid != os.geteuid():
            wrong = "belongs to another user; make it yours"
        elif about.st_mode & 0o077:
            mode = f"{stat.S_IMODE(about.st_mode):o}"
            wrong = f"others can reach the plans in it (mode {mode}); run: chmod 700 {shlex.quote(str(self.folder))}"
        if wrong:
            raise BackendError(f"{self.folder}: {wrong}, or {ELSEWHERE}")
        return self.folder


def write_plan(path: Path, data: bytes, facts: Mapping[str, Any]) -> Facts:
    """Write a plan for another machine and PATH.json beside it; return what that says. Raises `OSError` for a full disk."""
    described = _describe(data, facts)
    _write(path, data, described)
    return described


def check_adoptable(path: Path, sha256: str) -> tuple[bytes, Facts]:
    """A plan made elsewhere, never run here, and what its sidecar says, which nobody vouches for.

    Raises `BackendError` where its sha256 is not the one given, or PATH.json is missing or belongs to another plan.
    """
    if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise BackendError(f"{sha256!r} is no sha256; give the 64 hexadecimal digits that its maker told you")
    sidecar = _sidecar(path)
    try:
        data = path.read_bytes()
        if _sha256(data) != sha256.lower():
            raise BackendError(f"{path}: its sha256 is {_sha256(data)}, not the one given; do not use it, fetch it again")
        return data, _check(data, sidecar.read_bytes())
    except OSError as error:
        lacks = error.filename or path
        raise BackendError(f"{lacks}: cannot be read ({error.strerror}); put PLAN and PLAN.json in one folder") from error
    except ValueError as error:
        raise BackendError(f"{sidecar}: {error}; fetch it again together with the plan") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _describe(data: bytes, facts: Mapping[str, Any]) -> Facts:
    """The content of a sidecar, as it will be read back."""
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    described: Facts = json.loads(json.dumps({**facts, "sha256": _sha256(data), "size": len(data), "time": time}))
    return described


def _check(data: bytes, sidecar: bytes) -> Facts:
    """What a sidecar says; raises `ValueError` where it is no sidecar, or not that of `data`."""
    try:
        facts = json.loads(sidecar)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise ValueError("the sidecar is no JSON object")
    if facts.get("sha256") != _sha256(data):
        raise ValueError("it is damaged, or the sidecar belongs to another file")
    return facts


def _load(path: Path, key: PlanKey) -> tuple[bytes, Facts] | None:
    """A file and its sidecar's content, or None, with the reason in the log, where they are not to be used."""
    if not os.path.lexists(path):
        return None
    try:
        data = _read(path)  # once: what is checked is what is used
        facts = _check(data, _read(_sidecar(path)))
        for field, value in asdict(key).items():
            if facts.get(field) != value:
                raise ValueError(f"it was made for another {field}")
    except (OSError, ValueError) as error:
        log.info("%s: not used, %s; it will be made again", path, error)
        return None
    return data, facts


def _read(path: Path) -> bytes:
    """All of a regular file of ours that others cannot write; raises `OSError` for any other."""
    if path.is_symlink():
        raise OSError(f"{path.name} is a symbolic link")

    def opener(name: str, flags: int) -> int:  # a link put here since is refused, a pipe is not waited for
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=opener) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(f"{path.name} is no regular file")
        if sys.platform != "win32" and (about.st_uid != os.geteuid() or about.st_mode & 0o022):
            raise OSError(f"{path.name} is another user's or can be written by others")
        return file.read()


def _write(path: Path, data: bytes, facts: Facts) -> None:
    """Replace a file and its sidecar by new ones that are whole; where that fails, what stood there stays."""
    parts: list[tuple[str, Path]] = []
    try:
        for target, content in ((path, data), (_sidecar(path), json.dumps(facts, indent=2).encode() + b"\n")):
            descriptor, part = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".part", dir=path.parent)  # mode 0600
            parts.append((part, target))
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for part, target in parts:  # the sidecar last: until it is there, the hashes differ and nothing is loaded
            os.replace(part, target)
    finally:
        for part, _ in parts:
            with suppress(FileNotFoundError):
                os.unlink(part)
