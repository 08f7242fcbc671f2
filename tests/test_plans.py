"""The cache of compiled plans: what is handed out is ours, whole and of the key asked for; all else is built anew."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clipsight.engines import BackendError, ModelError
from clipsight.engines.compiled.plans import Plan, PlanCache, PlanKey, check_adoptable, hash_file, write_plan

posix = pytest.mark.skipif(os.name != "posix", reason="needs modes, links and signals of POSIX")

KEY = PlanKey("0" * 64, "tensorrt", "10.9.0.34", "NVIDIA H200 sm90", "570.86.15", "fp16", "1,32")
DATA = bytes(range(256)) * 40
WAITING = "another process is building this plan; waiting for it"


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.fixture
def reasons(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What has been logged since the last call, each one line."""
    caplog.set_level(logging.INFO, "clipsight")

    def take() -> list[str]:
        lines = [record.getMessage() for record in caplog.records if record.name == "clipsight"]
        caplog.clear()
        assert not any("\n" in line for line in lines)
        return lines

    return take


def refused(error: type[Exception], act: Callable[[], object]) -> str:
    """The message of what `act` raises; it must be one line."""
    with pytest.raises(error) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def never() -> tuple[bytes, dict[str, Any]]:
    raise AssertionError("built although the plan is there")


def silent(message: str) -> None:
    raise AssertionError(f"nobody else builds, but it says: {message}")


def sidecar(plan: Plan) -> Path:
    return plan.path.with_name(plan.path.name + ".json")


def parts(cache: PlanCache) -> list[Path]:
    return list(cache.folder.glob("*.part"))


# The key and its hash


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(PlanKey)])
def test_any_other_field_is_another_name(field: str) -> None:
    changed: dict[str, Any] = {field: "x"}
    assert dataclasses.replace(KEY, **changed).name != KEY.name


def test_a_value_that_moves_to_the_next_field_is_another_name() -> None:
    assert dataclasses.replace(KEY, device="a", driver="bc").name != dataclasses.replace(KEY, device="ab", driver="c").name


def test_a_name_can_be_read_and_stays_in_its_folder() -> None:
    assert re.fullmatch("tensorrt-10.9.0.34-fp16-[0-9a-f]{32}", KEY.name)
    assert KEY.name == dataclasses.replace(KEY).name
    odd = dataclasses.replace(KEY, runtime="../../etc", version="1*?[\n" + "9" * 300, precision="é/\\")
    assert re.fullmatch(r"etc-1-[A-Za-z0-9.-]*-[0-9a-f]{32}", odd.name)
    assert len(odd.name) < 100


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "image.onnx"
    file.write_bytes(DATA * 300)  # 3 MB, more than one block
    assert hash_file(file) == hashlib.sha256(DATA * 300).hexdigest()
    assert str(tmp_path) in refused(ModelError, lambda: hash_file(tmp_path))
    assert "absent.onnx" in refused(ModelError, lambda: hash_file(tmp_path / "absent.onnx"))


# The folder


def test_the_folder_is_the_systems_or_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPSIGHT_CACHE", str(tmp_path))
    assert PlanCache().folder == tmp_path / "plans"
    monkeypatch.setenv("CLIPSIGHT_CACHE", "")
    assert PlanCache().folder.parts[-1] == "plans"
    assert "clipsight" in PlanCache().folder.parts
    monkeypatch.delenv("CLIPSIGHT_CACHE")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert PlanCache().folder == tmp_path / "xdg" / "clipsight" / "plans"
    assert list(tmp_path.iterdir()) == []  # it is made when it is used


@posix
@pytest.mark.parametrize("mask", [0, 0o022, 0o377])
def test_what_is_made_is_the_owners_alone(tmp_path: Path, umask: Callable[[int], int], mask: int) -> None:
    cache = PlanCache(tmp_path / "new" / "er" / "plans")
    umask(mask)
    assert cache.load(KEY) is None
    with cache.building(KEY, silent):
        cache.save(KEY, DATA, {})
    cache.attach(KEY, "kernels", b"k")
    for folder in (tmp_path / "new", tmp_path / "new" / "er", cache.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(cache.folder.iterdir())
    assert len(files) == 5
    for file in files:
        assert not stat.S_IMODE(file.stat().st_mode) & 0o177, file


@posix
@pytest.mark.parametrize("mode", [0o777, 0o750, 0o701, 0o720])
def test_a_folder_that_others_can_reach_is_refused_everywhere(tmp_path: Path, mode: int) -> None:
    cache = PlanCache(tmp_path / "my plans")
    cache.save(KEY, DATA, {})
    cache.folder.chmod(mode)
    for act in (
        lambda: cache.load(KEY),
        lambda: cache.save(KEY, DATA, {}),
        lambda: cache.obtain(KEY, never, silent),
        lambda: cache.attach(KEY, "kernels", b""),
        lambda: cache.attached(KEY, "kernels"),
        lambda: cache.remove(KEY),
        lambda: cache.building(KEY, silent).__enter__(),
    ):
        said = refused(BackendError, act)
        assert f"chmod 700 '{cache.folder}'" in said
        assert "CLIPSIGHT_CACHE" in said
    cache.folder.chmod(0o700)
    assert cache.load(KEY)


@posix
def test_a_folder_that_is_a_link_a_file_or_anothers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = PlanCache(tmp_path / "mine")
    mine.save(KEY, DATA, {})
    (tmp_path / "link").symlink_to(mine.folder)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch(0o600)
    for name in ("link", "dangling", "file"):
        assert "CLIPSIGHT_CACHE" in refused(BackendError, lambda n=name: PlanCache(tmp_path / n).load(KEY))  # type: ignore[misc]
    assert "cannot be made" in refused(BackendError, lambda: PlanCache(tmp_path / "file" / "plans").load(KEY))
    assert not (tmp_path / "nowhere").exists()
    assert mine.load(KEY)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert "another user" in refused(BackendError, lambda: mine.load(KEY))


@posix
def test_a_link_above_the_folder_is_the_users_own_affair(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    PlanCache(tmp_path / "cache" / "plans").save(KEY, DATA, {})
    assert PlanCache(tmp_path / "disk" / "plans").load(KEY)


# What comes back


def test_it_comes_back_as_it_was(cache: PlanCache, reasons: Callable[[], list[str]]) -> None:
    assert cache.load(KEY) is None
    saved = cache.save(KEY, DATA, {"took": 12.5, "batches": (1, 32), "model": "a lie"})
    assert cache.load(KEY) == saved
    assert saved.data == DATA
    assert saved.path.read_bytes() == DATA
    facts = saved.facts
    assert (facts["took"], facts["batches"], facts["size"]) == (12.5, [1, 32], len(DATA))
    assert facts["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert {name: facts[name] for name in dataclasses.asdict(KEY)} == dataclasses.asdict(KEY)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", facts["time"])
    assert cache.load(dataclasses.replace(KEY, driver="571.0")) is None
    assert cache.save(KEY, b"", {}) == cache.load(KEY) != saved
    assert reasons() == []


def damage(plan: Plan, how: str) -> None:
    """Do to a plan what accidents and people do."""
    path, beside, other = plan.path, sidecar(plan), plan.path.with_name("elsewhere")
    facts = dict(plan.facts)
    if how == "a bit has flipped":
        path.write_bytes(bytes([DATA[0] ^ 1]) + DATA[1:])
    elif how == "it is cut off":
        os.truncate(path, len(DATA) - 1)
    elif how == "it is empty":
        os.truncate(path, 0)
    elif how == "the sidecar is missing":
        beside.unlink()
    elif how == "the sidecar is cut off":
        os.truncate(beside, beside.stat().st_size // 2)
    elif how == "the sidecar is a list":
        beside.write_text("[]")
    elif how == "the sidecar is no text":
        beside.write_bytes(b"\xff\xfe\x00")
    elif how == "the sidecar is too deep":
        beside.write_text("[" * 100_000)
    elif how == "the sidecar has no hash":
        beside.write_text(json.dumps({**facts, "sha256": None}))
    elif how == "another driver":
        beside.write_text(json.dumps({**facts, "driver": "1"}))
    elif how == "no profile":
        beside.write_text(json.dumps({name: value for name, value in facts.items() if name != "profile"}))
    elif how == "it is a link":
        path.rename(other)
        path.symlink_to(other)
    elif how == "it leads nowhere":
        path.unlink()
        path.symlink_to(other)
    elif how == "the sidecar is a link":
        beside.rename(other)
        beside.symlink_to(other)
    elif how == "it is a folder":
        path.unlink()
        path.mkdir()
    elif how == "it is a pipe":
        path.unlink()
        os.mkfifo(path, 0o600)
    else:
        mode, _, which = how.partition(" ")
        (beside if which else path).chmod(int(mode, 8))


@posix
@pytest.mark.timeout(20)  # a pipe must not be waited for
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("a bit has flipped", "damaged"),
        ("it is cut off", "damaged"),
        ("it is empty", "damaged"),
        ("the sidecar is missing", ".plan.json"),
        ("the sidecar is cut off", "no JSON object"),
        ("the sidecar is a list", "no JSON object"),
        ("the sidecar is no text", "no JSON object"),
        ("the sidecar is too deep", "no JSON object"),
        ("the sidecar has no hash", "damaged"),
        ("another driver", "another driver"),
        ("no profile", "another profile"),
        ("it is a link", "is a symbolic link"),
        ("it leads nowhere", "is a symbolic link"),
        ("the sidecar is a link", "is a symbolic link"),
        ("it is a folder", "directory"),
        ("it is a pipe", "no regular file"),
        ("666", "written by others"),
        ("620", "written by others"),
        ("602", "written by others"),
        ("666 of the sidecar", "written by others"),
    ],
)
def test_what_is_not_whole_or_not_ours_is_made_again(
    cache: PlanCache, reasons: Callable[[], list[str]], how: str, said: str
) -> None:
    damage(cache.save(KEY, DATA, {}), how)
    assert cache.load(KEY) is None
    (reason,) = reasons()
    assert said in reason
    assert KEY.name in reason
    assert reason.endswith("it will be made again")
    plan = cache.obtain(KEY, lambda: (DATA[:-2], {}), silent)
    assert plan.data == DATA[:-2]
    if how != "it is a folder":  # which nothing of ours takes away
        assert cache.load(KEY) == plan


@posix
def test_a_link_put_there_after_the_look_is_not_followed(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(cache.save(KEY, DATA, {}), "it is a link")
    monkeypatch.setattr(Path, "is_symlink", lambda _: False)
    assert cache.load(KEY) is None


@posix
@pytest.mark.parametrize("which", ["plan", "sidecar", "companion"])
def test_a_file_of_another_user_is_not_used(cache: PlanCache, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = cache.save(KEY, DATA, {})
    kernels = cache.attach(KEY, "kernels", b"k")
    theirs = {"plan": plan.path, "sidecar": sidecar(plan), "companion": kernels}[which].stat().st_ino
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        about = real(descriptor)
        return os.stat_result([*about[:4], about.st_uid + (about.st_ino == theirs), *about[5:]])

    monkeypatch.setattr(os, "fstat", fstat)  # chown is root's alone
    assert (cache.load(KEY) is None) == (which != "companion")
    assert (cache.attached(KEY, "kernels") is None) == (which == "companion")


def test_a_pair_swapped_in_from_another_key_is_stale(cache: PlanCache, reasons: Callable[[], list[str]]) -> None:
    mine = cache.save(KEY, DATA, {})
    theirs = cache.save(dataclasses.replace(KEY, precision="fp32"), DATA[1:], {})
    sidecar(mine).write_bytes(sidecar(theirs).read_bytes())
    assert cache.load(KEY) is None
    assert "damaged" in reasons()[0]
    mine.path.write_bytes(theirs.path.read_bytes())
    assert cache.load(KEY) is None
    assert "another precision" in reasons()[0]


def test_the_bytes_that_were_hashed_are_the_bytes_returned(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = cache.save(KEY, DATA, {})
    real = hashlib.sha256

    def sha256(data: bytes = b"") -> object:
        if data == DATA:
            plan.path.write_bytes(b"replaced between check and use")
        return real(data)

    monkeypatch.setattr(hashlib, "sha256", sha256)
    loaded = cache.load(KEY)
    assert loaded is not None
    assert loaded.data == DATA
    assert plan.path.read_bytes() != DATA


def test_whoever_reads_while_another_writes_gets_a_whole_pair_or_none(cache: PlanCache) -> None:
    stop = threading.Event()

    def rewrite() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            cache.save(KEY, b"%d " % n * 2000, {"n": n})

    thread = threading.Thread(target=rewrite)
    thread.start()
    seen: set[int] = set()
    deadline = time.monotonic() + 10
    try:
        while len(seen) < 20 and time.monotonic() < deadline:
            if plan := cache.load(KEY):
                assert plan.data == b"%d " % plan.facts["n"] * 2000
                seen.add(plan.facts["n"])
    finally:
        stop.set()
        thread.join()
    assert len(seen) == 20
    assert parts(cache) == []


# Companions, and taking away


@posix
def test_a_companion_is_guarded_as_the_plan_is(cache: PlanCache, reasons: Callable[[], list[str]]) -> None:
    assert cache.attached(KEY, "kernels") is None
    assert reasons() == []
    path = cache.attach(KEY, "kernels", b"jit")
    assert cache.attached(KEY, "kernels") == b"jit"
    assert cache.attached(KEY, "timing") is None
    assert cache.load(KEY) is None  # no plan
    assert reasons() == []
    other = dataclasses.replace(KEY, device="NVIDIA L4 sm89")
    assert cache.attached(other, "kernels") is None
    beside, swapped = path.with_name(path.name + ".json"), cache.attach(other, "kernels", b"jit")

    def link() -> None:
        path.unlink()
        path.symlink_to(swapped)

    spoil: list[tuple[str, Callable[[], object]]] = [
        ("damaged", lambda: path.write_bytes(b"jiT")),
        ("written by others", lambda: path.chmod(0o666)),
        (".json", beside.unlink),
        ("another device", lambda: beside.write_bytes(swapped.with_name(swapped.name + ".json").read_bytes())),
        ("symbolic link", link),
    ]
    for said, act in spoil:
        act()
        assert cache.attached(KEY, "kernels") is None
        assert said in reasons()[0]
        cache.attach(KEY, "kernels", b"jit")
        assert cache.attached(KEY, "kernels") == b"jit"
    assert swapped.read_bytes() == b"jit"  # a link is replaced, not followed


def test_removing_takes_everything_of_this_key_and_nothing_else(cache: PlanCache) -> None:
    cache.remove(KEY)
    other = cache.save(dataclasses.replace(KEY, precision="fp32"), DATA, {})
    with cache.building(KEY, silent):
        cache.save(KEY, DATA, {})
        cache.attach(KEY, "kernels", b"k")
        cache.remove(KEY)
        left = {path.name for path in cache.folder.iterdir()}
        assert left == {other.path.name, sidecar(other).name, f"{KEY.name}.lock"}  # whose removal would let others in
    cache.remove(KEY)


# Building


def test_it_is_built_once_and_then_loaded(cache: PlanCache) -> None:
    plan = cache.obtain(KEY, lambda: (DATA, {"took": 1}), silent)
    assert plan.facts["took"] == 1
    assert cache.obtain(KEY, never, silent) == plan == cache.load(KEY)


def test_a_build_that_fails_keeps_nothing_and_lets_the_next_one_try(cache: PlanCache) -> None:
    def fail() -> tuple[bytes, dict[str, Any]]:
        raise BackendError("out of memory")

    for _ in range(2):
        assert refused(BackendError, lambda: cache.obtain(KEY, fail, silent)) == "out of memory"
    with pytest.raises(TypeError):
        cache.obtain(KEY, lambda: (DATA, {"not JSON": object()}), silent)
    assert {path.suffix for path in cache.folder.iterdir()} <= {".lock"}
    assert cache.obtain(KEY, lambda: (DATA, {}), silent).data == DATA


@posix
def test_a_folder_that_cannot_be_written_is_said_before_the_build(cache: PlanCache) -> None:
    assert cache.load(KEY) is None
    (cache.folder / f"{KEY.name}.lock").mkdir()  # modes would not stop root
    said = refused(BackendError, lambda: cache.obtain(KEY, never, silent))
    assert "cannot be written" in said
    assert "CLIPSIGHT_CACHE" in said


# Each script begins with the cache in the folder of its first argument. A build tells that it began by a file, goes on
# when there is a file `go`, and makes bytes that no other build makes.
PRELUDE = f"""
import errno, json, logging, os, resource, signal, sys, time
from pathlib import Path
from clipsight.engines.compiled.plans import PlanCache, PlanKey
KEY = PlanKey(**{dataclasses.asdict(KEY)!r})
cache = PlanCache(Path(sys.argv[1], "plans"))
def say(line): print(line, flush=True)
def build():
    Path(sys.argv[1], f"began-{{os.getpid()}}").touch()
    while not Path(sys.argv[1], "go").exists(): time.sleep(0.02)
    return os.urandom(64), {{"pid": os.getpid()}}
"""
OBTAIN = "plan = cache.obtain(KEY, build, say); say(plan.data.hex())"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """`start(script)`: it runs after PRELUDE in a process of its own; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def run(script: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PRELUDE + script, str(tmp_path)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def began(folder: Path) -> list[int]:
    """The processes that have begun to build; waits for the first."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if found := [int(path.name.partition("-")[2]) for path in folder.glob("began-*")]:
            return found
        time.sleep(0.02)
    raise AssertionError("nobody builds")


Start = Callable[[str], "subprocess.Popen[str]"]


@posix
def test_one_process_builds_and_the_other_waits_and_gets_the_same(tmp_path: Path, start: Start, cache: PlanCache) -> None:
    both = [start(OBTAIN), start(OBTAIN)]
    (builder,) = began(tmp_path)
    first, second = sorted(both, key=lambda process: process.pid != builder)
    assert line(second) == WAITING
    time.sleep(0.5)
    assert second.poll() is None
    (tmp_path / "go").touch()
    data = line(first)
    assert len(data) == 128
    told = time.monotonic()
    assert line(second) == data  # and nothing was said twice
    assert time.monotonic() - told < 5
    assert [process.wait(5) for process in both] == [0, 0]
    assert began(tmp_path) == [builder]
    plan = cache.load(KEY)
    assert plan is not None
    assert (plan.data.hex(), plan.facts["pid"]) == (data, builder)


@posix
def test_other_keys_do_not_wait(tmp_path: Path, start: Start, cache: PlanCache) -> None:
    start(OBTAIN)
    began(tmp_path)
    assert cache.obtain(dataclasses.replace(KEY, precision="fp32"), lambda: (DATA, {}), silent).data == DATA


@posix
def test_ctrl_c_ends_the_wait_and_nobody_elses(tmp_path: Path, start: Start) -> None:
    builder = start(OBTAIN)
    began(tmp_path)
    impatient, patient = start(OBTAIN), start(OBTAIN)
    assert [line(impatient), line(patient)] == [WAITING, WAITING]
    impatient.send_signal(signal.SIGINT)
    _, said = impatient.communicate(timeout=5)
    assert "KeyboardInterrupt" in said
    (tmp_path / "go").touch()
    assert line(patient) == line(builder) != ""


@posix
def test_a_killed_builder_frees_the_lock(tmp_path: Path, start: Start, cache: PlanCache) -> None:
    builder = start(OBTAIN)
    began(tmp_path)
    waiting = start(OBTAIN.replace("build,", "lambda: (b'mine', {}),"))
    assert line(waiting) == WAITING
    builder.kill()
    assert line(waiting) == b"mine".hex()
    assert cache.obtain(KEY, never, silent).data == b"mine"


@posix
@pytest.mark.parametrize("old", [True, False])
def test_a_crash_between_plan_and_sidecar_leaves_nothing_that_loads(cache: PlanCache, start: Start, old: bool) -> None:
    if old:
        cache.save(KEY, DATA, {})
    crash = """
def replace(a, b, real=os.replace):
    real(a, b)
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
cache.save(KEY, b"new", {})
"""
    assert start(crash).wait(20) == -signal.SIGKILL
    assert (cache.folder / f"{KEY.name}.plan").read_bytes() == b"new"
    assert len(parts(cache)) == 1
    assert cache.load(KEY) is None
    assert cache.obtain(KEY, lambda: (DATA, {}), silent) == cache.load(KEY)
    assert parts(cache) == []  # what the crash left is gone as well


FULL = """
def limit(most): resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
logging.basicConfig(level="INFO", format="%(levelname)s %(message)s", stream=sys.stdout)
limit(4096)
for data, facts in ((bytes(5000), {}), (b"small", {"large": "x" * 5000})):
    try:
        cache.save(KEY, data, facts)
    except OSError as error:
        say(errno.errorcode[error.errno])
    try:
        cache.attach(KEY, "kernels", bytes(5000))
    except OSError as error:
        say(errno.errorcode[error.errno])
    plan = cache.obtain(PlanKey(**{**vars(KEY), "driver": "new"}), lambda: (data, facts), say)
    say(json.dumps([plan.data == data, plan.path.exists(), plan.facts["size"] == len(data), plan.path.suffix]))
"""


@posix
def test_a_full_disk_leaves_the_old_plan_and_no_rest_and_the_run_goes_on(cache: PlanCache, start: Start) -> None:
    old = cache.save(KEY, DATA, {})
    said, wrong = start(FULL).communicate(timeout=20)
    assert wrong == ""
    lines = said.splitlines()
    assert len(lines) == 8
    for saved, attached, warning, obtained in (lines[:4], lines[4:]):
        assert [saved, attached] == [errno.errorcode[errno.EFBIG]] * 2
        assert re.fullmatch(r"WARNING .*\.plan: not kept \(File too large\); free space or set CLIPSIGHT_CACHE .*", warning)
        assert json.loads(obtained) == [True, False, True, ".plan"]
    assert cache.load(KEY) == old
    assert cache.attached(KEY, "kernels") is None
    assert {path.suffix for path in cache.folder.iterdir()} == {".plan", ".json", ".lock"}


# Plans made elsewhere


def test_a_plan_made_elsewhere_is_adopted_by_its_sha256(tmp_path: Path, cache: PlanCache) -> None:
    path = tmp_path / "vit.plan"
    facts = write_plan(path, DATA, {"device": "sm89"})
    assert sorted(os.listdir(tmp_path)) == ["vit.plan", "vit.plan.json"]
    assert facts["sha256"] == hash_file(path)
    assert check_adoptable(path, facts["sha256"]) == (DATA, facts)
    assert check_adoptable(path, facts["sha256"].upper()) == (DATA, facts)
    assert facts["device"] == "sm89"
    adopted = cache.save(KEY, *check_adoptable(path, facts["sha256"]))
    assert adopted.facts["device"] == KEY.device
    assert cache.load(KEY) == adopted


@pytest.mark.parametrize("hexadecimal", ["", "abc", "0" * 63, "0" * 65, "0" * 63 + "g", "0" * 64 + "\n", "\uff10" * 64])
def test_what_is_no_sha256_is_refused_before_the_plan_is_read(tmp_path: Path, hexadecimal: str) -> None:
    said = refused(BackendError, lambda: check_adoptable(tmp_path / "absent.plan", hexadecimal))
    assert "64 hexadecimal digits" in said


def test_a_plan_that_cannot_be_adopted(tmp_path: Path) -> None:
    path, beside = tmp_path / "vit.plan", tmp_path / "vit.plan.json"
    right = write_plan(path, DATA, {})["sha256"]
    wrong = hashlib.sha256(DATA[1:]).hexdigest()
    assert "not the one given" in refused(BackendError, lambda: check_adoptable(path, wrong))
    text = beside.read_text()
    for spoiled, said in [
        (text.replace(right, wrong), "belongs to another file"),
        ("{}", "belongs to another file"),
        ("[]", "no JSON object"),
        (text[:-9], "no JSON object"),
        ("[" * 100_000, "no JSON object"),
    ]:
        beside.write_text(spoiled)
        message = refused(BackendError, lambda: check_adoptable(path, right))
        assert said in message
        assert str(beside) in message
    beside.unlink()
    assert str(beside) in refused(BackendError, lambda: check_adoptable(path, right))
    path.unlink()
    assert f"{path}: " in refused(BackendError, lambda: check_adoptable(path, right))
