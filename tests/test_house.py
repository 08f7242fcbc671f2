"""The house keeps its rules: floors, laziness, types, style, and pyproject names what is there."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ["engines", "labels", "stream"]  # lowest first
HEAVY = [
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
    "av",
    "cv2",
    "tokenizers",
    "PIL",
    "reportlab",
]


def modules(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Every import of the file as an absolute dotted name, wherever in the file it stands."""
    here = ["clipsight", *path.relative_to(ROOT).with_suffix("").parts[:-1]]
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            found += [".".join([*module, alias.name]) for alias in node.names]
    return found


@pytest.mark.parametrize("floor", FLOORS)
def test_nothing_imports_upward_and_nobody_imports_the_door(floor: str) -> None:
    above = FLOORS[FLOORS.index(floor) + 1 :]
    files = modules(floor)
    assert len(files) > 3
    for path in files:
        for name in imports(path):
            parts = name.split(".")
            assert "run_camera" not in parts, f"{path} imports the door"
            assert "__main__" not in parts, f"{path} imports a __main__"
            if parts[0] == "clipsight":
                assert parts[1] not in above, f"{path} imports upward: {name}"
            assert parts[0] not in FLOORS, f"{path} imports the bare name {name}"


def test_labels_need_numpy_alone_at_run_time() -> None:
    code = (
        "import sys\n"
        f"for name in {[*HEAVY, 'safetensors', 'rich']!r}: sys.modules[name] = None\n"
        "import numpy as np\n"
        "from clipsight.labels import LabelBank\n"
        "bank = LabelBank(('a', 'b'), np.eye(2, dtype=np.float32), 's')\n"
        "print(bank.score(np.array([[0, 1]], np.float32))[0].label)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "b\n", done.stderr


def test_importing_the_stream_loads_nothing_heavy() -> None:
    code = (
        "import sys, clipsight.stream, clipsight.labels, clipsight.engines\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_stream_imports_where_nothing_heavy_is_installed() -> None:
    code = (
        "import sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"
        "import clipsight.stream, run_camera\n"
        "print(sorted(clipsight.stream.__all__)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "About\n", done.stderr


def test_pyproject_names_every_folder_and_no_other() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = re.search(r"^packages = \[(.*?)\]", text, re.M | re.S)
    assert packages is not None
    named = set(re.findall(r'"clipsight\.([\w.]+)"', packages.group(1)))
    there = {".".join(p.parent.relative_to(ROOT).parts) for f in FLOORS for p in (ROOT / f).rglob("__init__.py")}
    assert named == there
    mapped = dict(re.findall(r'^"clipsight\.([\w.]+)" = "([\w./]+)"', text, re.M))
    assert mapped == {name: name.replace(".", "/") for name in named}


def test_the_top_level_is_what_was_agreed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    agreed = {
        *("engines", "labels", "stream", "tests", "run_camera.py", "pyproject.toml"),
        *("README.md", "CHANGELOG.md", "BENCHMARKS.md", "LICENSE", ".ci", ".gitignore"),
    }
    assert {name.split("/")[0] for name in tracked} <= agreed


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "BENCHMARKS.md", "engines/NVIDIA.md"])
def test_every_link_leads_to_a_file_that_is_there(page: str) -> None:
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
    gone = [link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()]
    assert not gone


def test_mypy_strict(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    tree = tmp_path / "clipsight"
    tree.mkdir()
    for floor in FLOORS:
        (tree / floor).symlink_to(ROOT / floor)
    for command in (["-p", "clipsight"], [str(ROOT / "run_camera.py"), str(ROOT / "tests")]):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "mypy", "--namespace-packages", "--explicit-package-bases"),
                *("--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache")),
                *command,
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "MYPYPATH": os.pathsep.join([str(tmp_path), str(ROOT / "tests")])},
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff(command: list[str]) -> None:
    pytest.importorskip("ruff")
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
