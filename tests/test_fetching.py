"""Fetching: a file comes whole and of the right sha256, or one line says why not and nothing lies in its place."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import re
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.request import Request

import pytest

from clipsight.engines import ModelError, cache, fetching
from clipsight.engines.cache import make_private, model_cache
from clipsight.engines.fetching import fetch

posix = pytest.mark.skipif(os.name != "posix", reason="needs modes, signals and terminals of POSIX")

DATA = bytes(range(256)) * 4000  # 1 MB
OTHER = DATA[::-1]
SHA = hashlib.sha256(DATA).hexdigest()
HALF = len(DATA) // 2
MARK = '"one"'

Act = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers each request by the next act of the server's list, the last one for ever."""

    server: Server

    def do_GET(self) -> None:
        """Note what is asked and how many bytes are sent; the file must not be in its place meanwhile."""
        acts, asked = self.server.acts, self.server.asked
        part, version = self.headers["Range"], self.headers["If-Range"]
        self.note: dict[str, Any] = {"path": self.path, "range": part, "if": version, "sent": 0}
        asked.append(self.note)
        self.server.early |= self.server.into.exists()
        acts[min(len(asked), len(acts)) - 1](self)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """acts: what it does. asked: what it was asked. early: whether the file was in its place while it was being sent."""

    daemon_threads = True

    def __init__(self, into: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.into, self.early = into, False
        self.acts: list[Act] = []
        self.asked: list[dict[str, Any]] = []
        self.go = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/m/image.onnx"

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are part of it."""
        if not isinstance(sys.exc_info()[1], OSError):
            raise


def give(
    data: bytes = DATA,
    *,
    upto: int | None = None,
    then: Literal["close", "reset", "wait"] = "close",
    headers: dict[str, str | None] | None = None,
    ranges: bool = True,
    strict: bool = True,
    slow: float = 0,
) -> Act:
    """Send a file. upto: as far as this byte, and `then`. ranges, strict: knows Range, If-Range. slow: seconds a piece."""

    def act(handler: Handler) -> None:
        described: dict[str, str | None] = {"ETag": MARK, **(headers or {})}
        note, start = handler.note, 0
        same = note["if"] in (described["ETag"], described.get("Last-Modified"))
        if note["range"] and ranges and (same or not strict):
            start = int(note["range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(data)}")
                handler.end_headers()
                return
            described = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}", **described}
        handler.send_response(206 if start else 200)
        for name, value in {"Content-Length": str(len(data) - start), **described}.items():
            if value is not None:
                handler.send_header(name, value)
        handler.end_headers()
        body = data[start:upto]
        piece = len(body) // 15 + 1 if slow else 1 << 16
        for i in range(0, len(body), piece):
            handler.server.early |= handler.server.into.exists()
            note["sent"] += len(body[i : i + piece])
            handler.wfile.write(body[i : i + piece])
            time.sleep(slow)
        if then == "wait":
            handler.server.go.wait(120)
        if then == "reset":
            time.sleep(0.2)  # what was sent arrives first
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.rfile.close()
            handler.connection.close()

    return act


def answer(code: int, **headers: str) -> Act:
    def act(handler: Handler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(b"no file\n")

    return act


def raw(data: bytes) -> Act:
    """Send these bytes and nothing else."""
    return lambda handler: void(handler.wfile.write(data))


def void(_: object) -> None:
    pass


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of the machine that runs the tests."""
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "models" / "m" / "image.onnx"


@pytest.fixture
def server(into: Path) -> Iterator[Server]:
    """A server that gives DATA; in no test may the file be in its place before it is whole."""
    with Server(into) as server:
        server.acts = [give()]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.go.set()
        server.shutdown()
        thread.join()
        assert not server.early


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def get(server: Server, into: Path, said: list[str]) -> Callable[..., Path]:
    """`get(...)`: fetch from the server without long pauses."""

    def get(url: str | None = None, *, sha256: str = SHA, **options: Any) -> Path:
        return fetch(url or server.url, sha256, into, **{"say": said.append, "pauses": (0.01, 0.02), "timeout": 5, **options})

    return get


Get = Callable[..., Path]


def refused(act: Callable[[], object]) -> str:
    """The message of the `ModelError`; it must be one line that can be printed."""
    with pytest.raises(ModelError) as caught:
        act()
    assert str(caught.value).isprintable()
    return str(caught.value)


def part(into: Path) -> Path:
    return into.with_name(into.name + ".part")


def names(into: Path) -> set[str]:
    return {path.name.removeprefix(into.name) for path in into.parent.iterdir()} - {".lock"}


def begin(into: Path, data: bytes, *, sha256: str = SHA, version: object = MARK) -> None:
    """What an interrupted call leaves."""
    make_private(into.parent)
    part(into).write_bytes(data)
    Path(f"{part(into)}.json").write_text(json.dumps({"sha256": sha256, "version": version}))


def fail(*_: object) -> str:
    raise AssertionError("it was hashed although it was only looked at")


# It comes, once


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_it_comes_whole_and_is_not_fetched_again(
    server: Server, get: Get, into: Path, said: list[str], size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert get(size=size) == into
    assert into.read_bytes() == DATA
    assert names(into) == {"", ".checked"}
    assert said == [f"fetching image.onnx{' (2 MB)' * bool(size)} from 127.0.0.1", f"fetched {into}, 2 MB"]
    monkeypatch.setattr(cache, "hash_file", fail)
    assert get("https://nowhere.invalid/x") == get("no URL at all") == into
    assert len(server.asked) == 1
    with pytest.raises(AssertionError, match="hashed"):  # it is for another sha256 alone
        get(sha256="0" * 64)


def test_a_file_put_there_by_hand_is_hashed_once_and_a_changed_one_again(
    server: Server, get: Get, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into.parent.mkdir(parents=True)
    into.write_bytes(DATA)
    Path(f"{into}.checked").write_text("[1]")  # damaged
    assert get() == into
    with monkeypatch.context() as patch:
        patch.setattr(cache, "hash_file", fail)
        assert get() == into
    assert server.asked == []
    into.write_bytes(OTHER)
    os.utime(into, ns=(1, 1))
    server.acts = [answer(404), give()]
    assert "in place of what lies there, which is not it" in refused(get)
    assert into.read_bytes() == OTHER  # nothing better has come
    assert get().read_bytes() == DATA
    server.early = False  # it was the wrong one all the time


def test_a_folder_that_cannot_be_written_serves_what_is_in_it(into: Path, get: Get, server: Server) -> None:
    into.parent.mkdir(parents=True)
    into.write_bytes(DATA)
    for suffix in (".checked", ".lock"):
        Path(f"{into}{suffix}").mkdir()  # modes would not stop root
    assert get() == get() == into
    assert server.asked == []


def test_what_is_made_is_the_owners_alone(get: Get, tmp_path: Path) -> None:
    get()
    if os.name == "posix":
        assert {stat.S_IMODE((tmp_path / p).stat().st_mode) for p in ("models", "models/m")} == {0o700}


def test_the_cache_of_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPSIGHT_CACHE", str(tmp_path))
    folder = model_cache()
    assert folder == tmp_path / "models"
    assert not folder.exists()  # it is made when it is used
    if os.name == "posix":
        folder.mkdir(0o755)
        folder.chmod(0o755)
        assert model_cache() == folder  # others may read what everybody can download
        folder.chmod(0o775)
        assert f"chmod go-w {folder}" in refused(model_cache)
    monkeypatch.delenv("CLIPSIGHT_CACHE")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert model_cache() == tmp_path / "xdg" / "clipsight" / "models"


# Broken off and gone on


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize("size", [None, len(DATA)])
def test_only_the_rest_is_sent_after_a_break(
    server: Server, get: Get, into: Path, said: list[str], then: Literal["close", "reset"], size: int | None
) -> None:
    server.acts = [give(upto=HALF, then=then), give()]
    assert get(size=size).read_bytes() == DATA
    assert [(note["range"], note["if"], note["sent"]) for note in server.asked] == [
        (None, None, HALF),
        (f"bytes={HALF}-", MARK, len(DATA) - HALF),
    ]
    assert said[1].endswith("; trying again")
    assert ("broke off" in said[1]) == (then == "close")
    assert said[2] == "image.onnx: going on after 1 MB"
    assert names(into) == {"", ".checked"}


def test_a_later_call_goes_on_where_an_earlier_one_failed(server: Server, get: Get, into: Path) -> None:
    server.acts = [give(upto=HALF)]
    assert "the connection broke off after" in refused(lambda: get(pauses=()))
    assert names(into) == {".part", ".part.json"}
    server.acts = [give(headers={"ETag": 'W/"x"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}), give()]
    assert get().read_bytes() == DATA
    assert [note["sent"] for note in server.asked] == [HALF, len(DATA) - HALF]


def test_every_bit_of_progress_gives_new_tries(server: Server, get: Get) -> None:
    steps = range(len(DATA) // 10, len(DATA), len(DATA) // 10)
    server.acts = [*(give(upto=step) for step in steps), give()]
    assert get().read_bytes() == DATA
    assert len(server.asked) == len(steps) + 1 > 9
    assert sum(note["sent"] for note in server.asked) == len(DATA)


def test_a_date_or_a_server_without_either_will_do(server: Server, get: Get, into: Path) -> None:
    date: dict[str, str | None] = {"ETag": 'W/"weak"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    server.acts = [give(upto=HALF, headers=date), give(headers=date)]
    get()
    assert server.asked[1]["if"] == date["Last-Modified"]
    assert server.asked[1]["sent"] == len(DATA) - HALF
    into.unlink()
    server.asked.clear()
    server.acts = [give(upto=HALF, headers={"ETag": None}), give(headers={"ETag": None})]
    assert get().read_bytes() == DATA
    assert server.asked[1]["range"] is None  # nobody could say whether it is still the same file


def test_a_server_without_range_begins_anew(server: Server, get: Get) -> None:
    server.acts = [give(upto=HALF, ranges=False), give(ranges=False)]
    assert get().read_bytes() == DATA
    assert server.asked[1]["range"]
    assert server.asked[1]["sent"] == len(DATA)


@pytest.mark.parametrize("strict", [True, False])
def test_a_file_that_changed_between_tries_begins_anew(server: Server, get: Get, strict: bool, said: list[str]) -> None:
    new = give(headers={"ETag": '"two"'}, strict=strict)
    server.acts = [give(OTHER, upto=HALF), new]
    assert get().read_bytes() == DATA
    assert [note["if"] for note in server.asked] == [None, MARK, *([] if strict else [None])]
    assert not any("going on" in line for line in said)
    assert server.asked[-1]["sent"] == len(DATA)


@pytest.mark.parametrize("place", [f"bytes {HALF + 1}-{len(DATA) - 1}/{len(DATA)}", "bytes", "", f"bytes {'9' * 5000}-1/1"])
def test_another_range_than_was_asked_for_begins_anew(server: Server, get: Get, into: Path, place: str) -> None:
    begin(into, DATA[:HALF])
    server.acts = [answer(206, Content_Range=place), give()]
    assert get().read_bytes() == DATA
    assert [note["range"] for note in server.asked] == [f"bytes={HALF}-", None]


def test_a_range_of_a_length_that_is_not_told(server: Server, get: Get, into: Path) -> None:
    begin(into, DATA[:HALF])
    server.acts = [give(headers={"Content-Range": f"bytes {HALF}-{len(DATA) - 1}/*"})]
    assert get().read_bytes() == DATA
    assert server.asked[0]["sent"] == len(DATA) - HALF


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_a_part_that_is_all_of_it_needs_nothing_more(server: Server, get: Get, into: Path, size: int | None) -> None:
    begin(into, DATA)
    assert get(size=size).read_bytes() == DATA
    assert sum(note["sent"] for note in server.asked) == 0
    assert len(server.asked) == (size is None)


@pytest.mark.parametrize("size", [None, len(DATA)])
@pytest.mark.parametrize("length", [1, HALF, len(DATA), len(DATA) + 9])
def test_a_part_of_something_else_is_given_up_once(
    server: Server, get: Get, into: Path, length: int, size: int | None, said: list[str]
) -> None:
    begin(into, (OTHER + OTHER)[:length])
    assert get(size=size).read_bytes() == DATA
    assert server.asked[-1]["range"] is None
    assert server.asked[-1]["sent"] == len(DATA)
    assert len(server.asked) == (1 if size and length >= size else 2)
    assert any("beginning anew" in line for line in said) == (length <= len(DATA))  # a longer one is known by its length
    assert names(into) == {"", ".checked"}


def test_a_part_for_another_sha256_or_of_no_known_version_is_not_gone_on_from(server: Server, get: Get, into: Path) -> None:
    several: list[dict[str, Any]] = [{"sha256": "0" * 64}, {"version": 5}, {"version": ""}, {"version": None}]
    for options in several:
        begin(into, OTHER[:HALF], **options)
        assert get().read_bytes() == DATA
        into.unlink()
    assert [note["range"] for note in server.asked] == [None] * 4


# What goes wrong: one line, and nothing in its place


def check_line(line: str, server: Server, into: Path) -> None:
    """It must say what, from where and whereto."""
    for needed in ("image.onnx: cannot be fetched", server.url, SHA, str(into)):
        assert needed in line
    assert not into.exists()


def test_the_wrong_file_is_removed_and_both_hashes_are_said(server: Server, get: Get, into: Path) -> None:
    server.acts = [give(OTHER)]
    line = refused(get)
    check_line(line, server, into)
    assert f"has the sha256 {hashlib.sha256(OTHER).hexdigest()}, not {SHA}" in line
    assert len(server.asked) == 1  # all of it came at once, so it would come again
    assert names(into) == set()


def test_a_wrong_end_of_a_right_beginning_fails_after_beginning_anew_once(server: Server, get: Get, into: Path) -> None:
    begin(into, DATA[:HALF])
    server.acts = [give(OTHER)]
    check_line(refused(get), server, into)
    assert [note["range"] for note in server.asked] == [f"bytes={HALF}-", None]
    assert names(into) == set()


@pytest.mark.parametrize("length", [5, len(DATA) + 1])
def test_a_file_of_another_size_is_not_even_begun(server: Server, get: Get, into: Path, length: int) -> None:
    server.acts = [give((DATA + b"x")[:length])]
    line = refused(lambda: get(size=len(DATA)))
    check_line(line, server, into)
    assert f"a file of {length} bytes there, not {len(DATA)}" in line
    assert len(server.asked) == 1
    assert names(into) == set()


def test_more_than_is_wanted_is_not_taken(server: Server, get: Get) -> None:
    def more(handler: Handler) -> None:
        give(headers={"Content-Length": None})(handler)
        handler.wfile.write(bytes(10_000_000))

    server.acts = [more]
    assert get(size=len(DATA)).read_bytes() == DATA


def test_a_body_that_is_always_cut_fails_after_so_many_tries(server: Server, get: Get, into: Path, said: list[str]) -> None:
    server.acts = [give(upto=HALF, ranges=False)]
    line = refused(get)
    check_line(line, server, into)
    assert f"broke off after {HALF} of {len(DATA)} bytes" in line
    assert len(server.asked) == 3  # two pauses
    assert sum(text.endswith("trying again") for text in said) == 2


CHUNK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "bytes_", [b"", b"nonsense\r\n\r\n", CHUNK + b"100\r\nabc", CHUNK + b"zz\r\nabc", b"HTTP/1.1 200 OK\r\nCon"]
)
def test_what_is_no_whole_answer_fails_after_so_many_tries(server: Server, get: Get, into: Path, bytes_: bytes) -> None:
    server.acts = [raw(bytes_)]
    check_line(refused(lambda: get(timeout=0.5)), server, into)
    assert len(server.asked) >= (1 if bytes_.endswith(b"Con") else 3)  # headers that end early are read as no file at all


def test_chunks_without_a_length_come_whole(server: Server, get: Get) -> None:
    server.acts = [raw(CHUNK + b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (HALF, DATA[:HALF], len(DATA) - HALF, DATA[HALF:]))]
    assert get().read_bytes() == DATA


def test_a_server_that_is_busy_is_asked_again(server: Server, get: Get, said: list[str]) -> None:
    server.acts = [answer(503), answer(503), give()]
    assert get().read_bytes() == DATA
    assert said[1:3] == ["image.onnx: the server answers 503 Service Unavailable; trying again"] * 2


@pytest.mark.parametrize(("code", "tries"), [(404, 1), (403, 1), (416, 1), (206, 1), (204, 1), (600, 3), (500, 3), (429, 3)])
def test_what_the_server_refuses(server: Server, get: Get, into: Path, code: int, tries: int) -> None:
    server.acts = [answer(code)]
    line = refused(get)
    check_line(line, server, into)
    assert f"the server answers {code}" in line
    assert len(server.asked) == tries


def test_a_slow_server_is_waited_for_as_long_as_something_comes(server: Server, get: Get) -> None:
    server.acts = [give(slow=0.1)]
    begun = time.monotonic()
    assert get(timeout=1).read_bytes() == DATA
    assert time.monotonic() - begun > 1.2
    assert len(server.asked) == 1


@pytest.mark.parametrize("upto", [0, HALF])
def test_a_server_that_stalls_is_given_up(server: Server, get: Get, into: Path, upto: int) -> None:
    server.acts = [give(upto=upto, then="wait")]
    begun = time.monotonic()
    line = refused(lambda: get(timeout=0.3))
    assert time.monotonic() - begun < 5
    check_line(line, server, into)
    assert "nothing came for 0.3 s" in line
    assert len(server.asked) == 3
    server.acts = [give()]
    assert get().read_bytes() == DATA
    assert server.asked[-1]["sent"] == len(DATA) - upto


def test_a_server_that_does_not_answer_is_given_up(into: Path, said: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # nobody accepts
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        line = refused(lambda: fetch(url, SHA, into, timeout=0.2, pauses=(0,), say=said.append))
    assert "nothing came for 0.2 s" in line
    assert said[1:] == ["image.onnx: nothing came for 0.2 s; trying again"]


# No network


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.fixture
def no_tls() -> Iterator[int]:
    """The port of a server that answers whatever it hears in plain HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)

        def answer_plainly() -> None:
            with suppress(OSError), listening.accept()[0] as client:
                client.recv(1 << 16)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                client.recv(1 << 16)  # until the client hangs up

        thread = threading.Thread(target=answer_plainly)
        thread.start()
        yield int(listening.getsockname()[1])
        with suppress(OSError):
            socket.create_connection(listening.getsockname(), timeout=1).close()  # where nobody has come
        thread.join()


@pytest.mark.parametrize("how", ["refused", "no such name", "no TLS", "proxy refused", "proxy refuses", "proxy is nonsense"])
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # Python 3.10 forgets what a proxy has answered
def test_without_a_network_one_line_says_how_to_put_it_there_by_hand(
    server: Server, into: Path, said: list[str], how: str, monkeypatch: pytest.MonkeyPatch, no_tls: int
) -> None:
    url = {
        "refused": f"http://127.0.0.1:{free_port()}/m/image.onnx",
        "no TLS": f"https://127.0.0.1:{no_tls}/m/image.onnx",
    }.get(how, "https://nowhere.invalid/m/image.onnx")
    if how.startswith("proxy"):
        port = {"proxy refused": f"{free_port()}", "proxy refuses": f"{server.server_port}"}.get(how, "x")
        monkeypatch.setenv("https_proxy", f"http://me:hunter2@127.0.0.1:{port}")
    if how == "proxy refuses":
        monkeypatch.setattr(Handler, "do_CONNECT", lambda handler: handler.send_error(407), raising=False)
    line = refused(lambda: fetch(url, SHA, into, say=said.append, pauses=(9,), timeout=20))
    for needed in ("image.onnx: cannot be fetched, ", url, f"sha256 {SHA}", f"put it at {into}"):
        assert needed in line
    assert "hunter2" not in line + "".join(said)
    assert ("407" in line) == (how == "proxy refuses")  # the proxy of the environment was asked
    assert len(said) == 1
    assert names(into) == set()
    into.write_bytes(DATA)  # by hand
    assert fetch(url, SHA, into, say=said.append) == into
    assert len(said) == 1
    gc.collect()  # here, where such a warning is no error


def test_a_network_that_goes_away_midway_is_waited_for(server: Server, get: Get, into: Path, said: list[str]) -> None:
    def leave(handler: Handler) -> None:
        give(upto=HALF)(handler)
        handler.server.shutdown()
        handler.server.socket.close()

    server.acts = [leave]
    line = refused(get)
    check_line(line, server, into)
    assert "refused" in line.lower()
    assert "broke off" in said[1]
    assert "refused" in said[2].lower()
    assert part(into).stat().st_size == HALF


# Where it may come from


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/image.onnx",
        "http://127.0.0.1.example.org/image.onnx",
        "http://127.0.0.1\\.example.org/",
        "http://127.0.0.1 .example.org/",
        "http://127.0.0.1:80:80/",
        "file:///etc/hostname",
        "ftp://127.0.0.1/x",
        "data:,x",
        "//127.0.0.1/x",
        "https:/x",
        "https://[::1/x",
        "https://example.org/\nx",
        "https://exämple.org/x",
        "https://me:hunter2@example.org/image.onnx",
        "https://hunter2@example.org/image.onnx",
        "",
    ],
)
def test_urls_that_are_not_fetched_from(into: Path, url: str) -> None:
    line = refused(lambda: fetch(url, SHA, into, say=fail))
    assert "give an https URL" in line
    assert "hunter2" not in line
    assert not into.parent.exists()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed_and_what_is_asked_for_goes_along(server: Server, get: Get, into: Path, code: int) -> None:
    begin(into, DATA[:HALF])
    server.acts = [answer(code, Location="/elsewhere?signature=hunter2"), give()]
    assert get().read_bytes() == DATA
    assert [note["path"] for note in server.asked] == ["/m/image.onnx", "/elsewhere?signature=hunter2"]
    assert [note["range"] for note in server.asked] == [f"bytes={HALF}-"] * 2


@pytest.mark.parametrize(
    "location",
    [
        "http://example.org/hunter2",
        "http://me:hunter2@127.0.0.1/",
        "https://hunter2@example.org/",
        "file:///etc/hunter2",
        "ftp://hunter2/",
        "/m/image.onnx",  # in a circle
        "http://[hunter2/",
    ],
)
def test_redirects_that_are_not_followed(server: Server, get: Get, into: Path, location: str, said: list[str]) -> None:
    server.acts = [answer(302, Location=location)]
    line = refused(get)
    check_line(line, server, into)
    assert "the server redirects in a circle or to where nothing is fetched from" in line
    assert "hunter2" not in line + "".join(said)
    assert len(server.asked) < 12


@pytest.mark.parametrize("location", ["http://example.org/x", "http://127.0.0.1/x"])
def test_https_never_becomes_http(server: Server, location: str) -> None:
    follow = fetching._Redirects().redirect_request
    with socket.create_connection(server.server_address[:2]) as some, some.makefile("rb") as body:  # type: ignore[arg-type]
        headers: Any = {}
        with pytest.raises(HTTPError) as caught:
            follow(Request("https://example.org/"), body, 302, "", headers, location)
        caught.value.close()
        allowed = follow(Request("https://example.org/"), body, 302, "", headers, "https://example.com/x")
        assert allowed is not None
        assert allowed.full_url == "https://example.com/x"


def test_what_a_query_holds_is_never_said(server: Server, get: Get, said: list[str], caplog: pytest.LogCaptureFixture) -> None:
    server.acts = [answer(302, Location="/x?signature=hunter2"), answer(503), answer(403)]
    line = refused(lambda: get(f"{server.url}?token=hunter2"))
    assert server.asked[0]["path"] == "/m/image.onnx?token=hunter2"
    assert f"{server.url}?..." in line
    assert "hunter2" not in line + "".join(said) + caplog.text


# The disk


def test_a_folder_that_cannot_be_made_or_written(get: Get, into: Path, tmp_path: Path, server: Server) -> None:
    (tmp_path / "models").write_text("a file")
    line = refused(lambda: get(size=123_400_000))
    assert f"{into}: cannot be written (Not a directory)" in line
    assert "124 MB free" in line
    assert "CLIPSIGHT_CACHE" in line
    (tmp_path / "models").unlink()
    for name, needs in ((".lock", "a folder that"), (".part", "2 MB free"), (".part.json", "2 MB free")):
        shutil.rmtree(into.parent, ignore_errors=True)
        Path(f"{into}{name}").mkdir(parents=True)
        line = refused(get)
        assert "cannot be written" in line
        assert needs in line
        assert not into.exists()
    assert len(server.asked) == 2  # it is tried once


def test_too_little_space_is_said_before_it_begins(
    server: Server, get: Get, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(into.anchor)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=len(DATA) - 1))
    for size in (None, len(DATA)):
        line = refused(lambda size=size: get(size=size))  # type: ignore[misc]
        assert line.startswith(f"{into.parent}: image.onnx needs 2 MB there, 2 MB are free; free space or ")
        assert names(into) == set()
    begin(into, DATA[:1])
    assert get().read_bytes() == DATA  # the rest fits


# Each script fetches into the file of its second argument from the URL of its first.
PRELUDE = f"""
import logging, signal, sys
from pathlib import Path
from clipsight.engines.commandline import run
from clipsight.engines.fetching import fetch
logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
def get(**options): return fetch(sys.argv[1], {SHA!r}, Path(sys.argv[2]), **options)
"""
GET = "sys.exit(run(get))"


def start(script: str, server: Server, **streams: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PRELUDE + script, server.url, str(server.into)]
    return subprocess.Popen(command, text=True, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams})


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_half(into: Path) -> Callable[[], bool]:
    return lambda: part(into).exists() and part(into).stat().st_size == HALF


@posix
def test_a_full_disk_keeps_what_has_come(server: Server, get: Get, into: Path) -> None:
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({HALF}, resource.RLIM_INFINITY))\n"
    full = start(limit + GET, server)
    out, wrong = full.communicate(timeout=60)
    assert full.returncode == 2
    assert wrong.count("\n") == 1
    assert re.search(r"image\.onnx: cannot be written \(File too large\); it needs a folder with 2 MB free", wrong)
    assert out.count("\n") == 1
    assert names(into) == {".part", ".part.json"}
    assert has_half(into)()
    assert get().read_bytes() == DATA
    assert server.asked[-1]["sent"] == len(DATA) - HALF


@posix
def test_ctrl_c_leaves_a_part_that_the_next_call_completes(server: Server, get: Get, into: Path) -> None:
    server.acts = [give(upto=HALF, then="wait"), give()]
    process = start(GET, server)
    wait_for(has_half(into))
    process.send_signal(signal.SIGINT)
    _, wrong = process.communicate(timeout=60)
    assert (process.returncode, wrong) == (130, "")
    assert names(into) == {".part", ".part.json"}
    assert get().read_bytes() == DATA
    assert [note["sent"] for note in server.asked] == [HALF, len(DATA) - HALF]


@posix
@pytest.mark.parametrize("killed", [False, True])
def test_of_two_processes_one_fetches_and_the_other_waits_and_takes_it(server: Server, into: Path, killed: bool) -> None:
    def pause(handler: Handler) -> None:  # half, and the rest when the other waits
        give(upto=HALF)(handler)
        handler.server.go.wait(120)
        handler.note["sent"] = len(DATA)
        with suppress(OSError):  # it may have been killed
            handler.wfile.write(DATA[HALF:])

    server.acts = [pause, give()]
    first = start(GET, server)
    wait_for(has_half(into))
    second = start(GET, server)
    assert second.stdout is not None
    assert second.stdout.readline() == "another process is fetching image.onnx; waiting for it\n"
    if killed:
        first.kill()
    else:
        server.go.set()
    out, wrong = second.communicate(timeout=60)
    first.communicate(timeout=60)
    assert (second.returncode, wrong) == (0, "")
    assert into.read_bytes() == DATA
    assert len(server.asked) == 1 + killed
    assert (out == "") != killed
    assert server.asked[-1]["sent"] == len(DATA) - HALF * killed


@posix
@pytest.mark.parametrize("level", ["INFO", "ERROR"])
def test_a_bar_is_shown_in_a_terminal_and_nowhere_else(server: Server, into: Path, level: str) -> None:
    server.acts = [give(slow=0.05)]
    ours, theirs = os.openpty()
    terminal = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = start(f"logging.getLogger().setLevel({level!r})\n" + GET, server, stderr=theirs, env=terminal)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how a terminal says that nobody writes to it any more
        while select.select([ours], [], [], 60)[0] and (piece := os.read(ours, 1 << 16)):
            shown += piece
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    if level == "INFO":
        assert re.search(rb"image\.onnx.*1\.0 MB.*[kM]B/s.*0:00:0", shown, re.S)
        assert out.splitlines()[-1] == f"fetched {into}, 2 MB"
    else:
        assert (shown, out) == (b"", "")


def test_without_a_terminal_a_line_tells_of_the_begin_and_of_the_end(
    server: Server, into: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "clipsight")
    fetch(server.url, SHA, into)
    assert [record.getMessage() for record in caplog.records] == ["fetching image.onnx from 127.0.0.1", f"fetched {into}, 2 MB"]
    assert capfd.readouterr() == ("", "")
