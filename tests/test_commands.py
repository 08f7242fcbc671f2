"""The measuring commands run to their end and print their tables."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from clipsight.engines import available


def printed(folder: Path, *words: str) -> list[str]:
    """The lines that `python -m words` prints; it must exit with 0."""
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout.splitlines()


def test_stream_bench(tmp_path: Path) -> None:
    lines = printed(tmp_path, "clipsight.stream", "bench", "--model", "demo", "--seconds", "2", "--rounds", "1")
    assert any(line.startswith("demo on ") and "500 labels, 1280x720 at 30 fps" in line for line in lines)
    together = lines.index("together")
    for rows in (lines[:together], lines[together + 1 :]):
        for name in ("control", "encoder"):
            (row,) = (line.split() for line in rows if line.startswith(name))
            fps, recognized = float(row[1]), float(row[-2])
            assert 20 < fps < 31
            assert recognized > 0
    (sentence,) = (line for line in lines if line.startswith("p99 "))
    assert re.fullmatch(r"p99 of the interval beside the encoder: [+-]\d+\.\d ms against the control .*", sentence)


def test_engines_bench(tmp_path: Path) -> None:
    lines = printed(tmp_path, "clipsight.engines", "bench", "--model", "demo", "--rounds", "1", "--calls", "2")
    installed = [name for name, missing in available().items() if not missing]
    assert "onnx" in installed
    for name in available():
        (row,) = (line.split() for line in lines if re.match(rf"  {name} |{name}:", line))
        if name not in installed:
            assert row[1:4] == ["cannot", "run", "here"]
        elif row[0] == f"{name}:":
            assert row[1] in ("needs", "this", "cannot")  # why it cannot run this model
        else:
            assert row[1] == "p50"
            assert float(row[2]) > 0
    assert any(line.startswith("  onnx ") for line in lines)
    (at,) = (i for i, line in enumerate(lines) if line.startswith("prepare to 224 x 224"))
    sizes = [line.split()[0] for line in lines[at + 1 :] if " p50 " in line]
    assert sizes == ["640x480", "1280x720", "1920x1080", "3840x2160"]


def test_labels_bench(tmp_path: Path) -> None:
    heading, *rows, whole = printed(tmp_path, "clipsight.labels", "bench")
    assert "beside demo on " in heading
    assert [row.split()[0] for row in rows] == ["1000", "10000"]
    for row in rows:
        times = [float(t) for t in re.findall(r"p50 (\S+) p95 (\S+) ms", row) for t in t]
        assert len(times) == 4
        assert all(t > 0 for t in times)
    form = (
        r"a frame of 1280x720 in host memory -> the five best of 500 labels, demo on \S+: p50 [\d.]+ p95 [\d.]+ p99 [\d.]+ ms"
    )
    assert re.fullmatch(form, whole)
