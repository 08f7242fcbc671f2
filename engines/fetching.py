"""A file of a model from its URL into a folder: whole and of the sha256 that is known beforehand, or not there at all."""

from __future__ import annotations

import http.client
import json
import logging
import math
import os
import re
import shutil
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from .base import one_line
from .cache import ELSEWHERE, beside, hash_file, is_there, make_private, read_json, take_lock
from .errors import ModelError

log = logging.getLogger("clipsight")

Say = Callable[[str], object]

_BLOCK = 1 << 18


class _File(NamedTuple):
    """A file to fetch. size: in bytes, None where it is not known."""

    url: str
    sha256: str
    into: Path
    size: int | None

    @property
    def part(self) -> Path:
        """What has come of it so far; PART.json beside it says of which version."""
        return beside(self.into, ".part")


def fetch(
    url: str,
    sha256: str,
    into: Path,
    *,
    size: int | None = None,
    say: Say = log.warning,  # in a host that shows warnings alone too: it may take minutes
    timeout: float = 10.0,
    pauses: Sequence[float] = (1.0, 2.0, 4.0),
) -> Path:
    """Return the file `into`, whose sha256 is the one given; fetch it from `url` where it is not there.

    size: in bytes, where it is known. timeout: seconds that each wait for the server may take. pauses: seconds between tries
    that bring nothing new; after the last one it fails. What has come stays in INTO.part when it fails or is interrupted, and
    the next call goes on from there. Of several processes one fetches and the others wait.

    Raises `ModelError` for a URL that is not https (or http to this machine), no network, what the server refuses, another
    sha256, and a folder that cannot be written or is too full; it says where the file comes from and where it can be put.
    """
    file = _File(url, sha256, into.absolute(), size)
    if is_there(file.into, file.sha256):
        return file.into
    if not _is_allowed(url):
        raise ModelError(f"{into.name}: its URL is not one that is fetched from; give an https URL without user and password")
    with _writing(file, size):
        make_private(file.into.parent)
        lock = take_lock(beside(file.into, ".lock"), say, f"another process is fetching {into.name}; waiting for it")
    try:
        if not is_there(file.into, file.sha256):  # somebody may have fetched it since
            say(f"fetching {into.name}{f' ({_mb(size)})' if size else ''} from {urlsplit(url).hostname}")
            _obtain(file, say, timeout, pauses)
            say(f"fetched {file.into}, {_mb(file.into.stat().st_size)}")
    finally:
        lock.release()
    return file.into


def _obtain(file: _File, say: Say, timeout: float, pauses: Sequence[float]) -> None:
    """Fetch the part and put it into its place when it is right; what earlier calls left is given up once."""
    for last in (False, True):
        continued = _complete(file, say, timeout, pauses)
        found = hash_file(file.part)
        if found == file.sha256:
            break
        _drop(file)
        if last or not continued:
            raise _by_hand(file, f"what came has the sha256 {found}, not {file.sha256}")
        say(f"{file.into.name}: what was begun earlier is not the same file; beginning anew")
    with _writing(file, file.size):
        os.replace(file.part, file.into)
        _drop(file)
    is_there(file.into, file.sha256, hashed=True)


def _complete(file: _File, say: Say, timeout: float, pauses: Sequence[float]) -> bool:
    """Try until the part is as long as it shall be; return whether it was begun before the last try."""
    most = first = _begun(file)[0]
    failures = 0
    while True:
        try:
            return _receive(file, say, timeout)
        except ModelError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as failure:
            error = failure.reason if type(failure) is URLError and isinstance(failure.reason, OSError) else failure
            if isinstance(error, HTTPError):
                error.close()
            have = _begun(file)[0]
            if have > most:
                most, failures = have, 0
            if failures == len(pauses) or not _may_pass(error, came=most > first):
                raise _by_hand(file, _reason(error, timeout)) from error
            say(f"{file.into.name}: {_reason(error, timeout)}; trying again")
            time.sleep(pauses[failures])
            failures += 1


def _receive(file: _File, say: Say, timeout: float) -> bool:
    """Ask for what the part lacks, once, and append it; return whether there was something to append it to.

    Raises what urllib raises, `ConnectionError` where the answer ends early, `ModelError` where trying again is of no use.
    """
    have, version = _begun(file)
    if have and have == file.size:
        return True
    headers = {"User-Agent": "clipsight"}  # some servers refuse Python's own
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        response = build_opener(_Redirects).open(Request(file.url, headers=headers), timeout=timeout)
    except HTTPError as error:
        if error.code != 416 or not have:
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{have}":  # all of it is here
            return True
        _drop(file)
        return _receive(file, say, timeout)
    with response:
        if response.status != 200 and not (response.status == 206 and have):
            raise HTTPError(file.url, response.status, "", response.headers, response)
        start, total = _place(response)
        if start and (start != have or _version(response) not in ("", version)):  # a server that knows no If-Range
            start = None
        if start is None:
            response.close()
            _drop(file)
            return _receive(file, say, timeout)
        if file.size is not None and total not in (None, file.size):
            raise _by_hand(file, f"the server has a file of {total} bytes there, not {file.size}")
        total = total if file.size is None else file.size
        _check_space(file, start, total)
        if start:
            say(f"{file.into.name}: going on after {_mb(start)}")
        have = _append(file, response, start, total)
    if total is not None and have < total:
        raise ConnectionError(f"the connection broke off after {have} of {total} bytes")
    return bool(start)


def _append(file: _File, response: http.client.HTTPResponse, start: int, total: int | None) -> int:
    """Write what comes to the part, from `start` on and no more than `total` bytes; return how long it is then."""
    have = start
    with _writing(file, total):
        out = open(file.part, "ab" if start else "wb", buffering=0)  # noqa: SIM115  so that closing writes nothing
    with out, _progress(file.into.name, start, total) as advance:
        if not start:
            with _writing(file, total):
                beside(file.part, ".json").write_text(json.dumps({"sha256": file.sha256, "version": _version(response)}))
        # read1 waits for one piece, so that each wait has the timeout
        while block := response.read1(_BLOCK if total is None else min(_BLOCK, total - have)):
            with _writing(file, total):
                rest = memoryview(block)
                while rest:
                    rest = rest[out.write(rest) :]
            have += len(block)
            advance(len(block))
        with _writing(file, total):
            os.fsync(out.fileno())
    return have


def _place(response: http.client.HTTPResponse) -> tuple[int | None, int | None]:
    """Where in the file an answer begins and how long the whole file is, each None where it does not say so."""
    if response.status == 200:
        return 0, response.length
    found = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
    if found is None:
        return None, None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _version(response: http.client.HTTPResponse) -> str:
    """What If-Range may name, a strong ETag or else a date; empty where there is neither."""
    for value in (response.headers.get("ETag"), response.headers.get("Last-Modified")):
        if value and not value.startswith("W/") and value.isascii() and value.isprintable():
            return value
    return ""


def _begun(file: _File) -> tuple[int, str]:
    """How many bytes earlier tries left, 0 where they are of no use, and which version they are of."""
    facts, version = read_json(beside(file.part, ".json")), ""
    if facts.get("sha256") == file.sha256 and isinstance(facts.get("version"), str):
        version = facts["version"]
    have = file.part.stat().st_size if version and file.part.is_file() else 0
    return (have, version) if file.size is None or have <= file.size else (0, "")


def _drop(file: _File) -> None:
    with _writing(file, file.size):
        for path in (file.part, beside(file.part, ".json")):
            path.unlink(missing_ok=True)


# What may be asked, and what is said when it goes wrong


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to where fetching is allowed, and from https to https alone."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> Request | None:
        if not _is_allowed(newurl) or (req.type == "https" and urlsplit(newurl).scheme != "https"):
            raise HTTPError(req.full_url, code, msg, headers, fp)
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)

    def http_error_302(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError as error:  # to what is no URL
            raise HTTPError(req.full_url, code, msg, headers, fp) from error

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _is_allowed(url: str) -> bool:
    """Whether it is https, or http to this machine, without user and password, which would end up in a log."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not (host and re.fullmatch(r"[!-\[\]-~]+", url)) or "@" in parts.netloc:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in ("localhost", "127.0.0.1", "::1"))


def _may_pass(error: Exception, *, came: bool) -> bool:
    """Whether trying again may help. came: something has come in this call, so the network was there a moment ago."""
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    passing = (TimeoutError, ConnectionError, ssl.SSLEOFError, http.client.HTTPException)
    lasting = (ConnectionRefusedError, http.client.InvalidURL)
    return came or (isinstance(error, passing) and not isinstance(error, lasting))


def _reason(error: Exception, timeout: float) -> str:
    """What went wrong, in words that hold nothing of a URL: one that is redirected to may be signed."""
    if isinstance(error, HTTPError):
        if 300 <= error.code < 400:
            return "the server redirects in a circle or to where nothing is fetched from"
        return f"the server answers {error.code} {http.client.responses.get(error.code, '')}".rstrip()
    if isinstance(error, TimeoutError):
        return f"nothing came for {timeout:g} s"
    if isinstance(error, OSError):
        return "".join(c for c in error.strerror or one_line(error) if c.isprintable())[:200]
    if isinstance(error, ValueError | http.client.InvalidURL):
        return "its URL, one that it redirects to or the proxy's cannot be read"
    return f"the server's answer cannot be read ({type(error).__name__})"


def _by_hand(file: _File, reason: str) -> ModelError:
    parts = urlsplit(file.url)
    url = f"{parts.scheme}://{parts.netloc}{parts.path}{'?...' if parts.query else ''}"  # a query may hold a secret
    there = ", in place of what lies there, which is not it" if file.into.exists() else ""
    how = f"run it again, or fetch {url} (sha256 {file.sha256}) by other means and put it at {file.into}{there}"
    return ModelError(f"{file.into.name}: cannot be fetched, {reason}; {how}")


def _check_space(file: _File, have: int, total: int | None) -> None:
    """Raise `ModelError` where the rest does not fit on the disk."""
    folder = file.into.parent
    with _writing(file, total):
        free = shutil.disk_usage(folder).free
    if total is not None and total - have > free:
        raise ModelError(
            f"{folder}: {file.into.name} needs {_mb(total - have)} there, {_mb(free)} are free; free space or {ELSEWHERE}"
        )


@contextmanager
def _writing(file: _File, total: int | None) -> Iterator[None]:
    """Make a `ModelError` of what the folder or the disk refuses."""
    try:
        yield
    except OSError as error:
        needs = f"a folder with {_mb(total)} free" if total else "a folder"
        raise ModelError(
            f"{file.into}: cannot be written ({error.strerror or error}); it needs {needs} that you can write to; {ELSEWHERE}"
        ) from error


def _mb(size: int) -> str:
    return f"{math.ceil(size / 1e6)} MB"


@contextmanager
def _progress(name: str, have: int, total: int | None) -> Iterator[Callable[[int], object]]:
    """A bar where somebody sits at a terminal; yields what is told how many bytes more have come."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    name_column = TextColumn("{task.description}", markup=False)
    columns = name_column, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    quiet = sys.stderr is None or not sys.stderr.isatty() or log.getEffectiveLevel() > logging.INFO
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task(name, total=total, completed=have)
        yield lambda count: progress.advance(task, count)
