"""Label banks from the command line: python -m clipsight.labels build | show | bench."""

from __future__ import annotations

import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np

from ..engines import LabelError, ModelCard, open_engine
from ..engines.commandline import Parser, run
from ..engines.registry import BACKENDS, find_model
from .bank import LabelBank
from .opening import open_bank


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit status, see `commandline.run`."""
    parser = Parser(prog="python -m clipsight.labels", description="Make and look at label banks.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="make a bank of words, or of vectors that are there already")
    build.add_argument("source", help='words.txt, "a, b, c", or an .npz with names and one n x dim array')
    build.add_argument("--model", required=True, help="the model it is for: a name or a folder")
    build.add_argument("-o", "--output", required=True, type=Path, metavar="BANK.safetensors")
    show = commands.add_parser("show", help="print what a bank holds")
    show.add_argument("bank")
    bench = commands.add_parser("bench", help="time scoring, alone and beside an encoder that fills every core")
    bench.add_argument("--model", default="demo", help="the encoder to run beside: a name or a folder")
    bench.add_argument("--engine", default="auto", choices=("auto", *BACKENDS), help="what runs it (default auto)")
    bench.add_argument("--device", type=int, metavar="N", help="the GPU of that index")
    args = parser.parse_args(argv)
    if args.command == "build":
        return run(lambda: _build(args.source, args.model, args.output))
    if args.command == "show":
        return run(lambda: _show(args.bank))
    return run(lambda: _bench(args.model, args.engine, args.device))


def _build(source: str, model: str, output: Path) -> None:
    if output.suffix != ".safetensors":
        raise LabelError(f"{output}: a bank's file ends in .safetensors; name it so")
    if not output.parent.is_dir():
        raise LabelError(f"{output}: the folder {output.parent} is not there; make it first")
    bank = bank_of_npz(Path(source), model) if source.endswith(".npz") else open_bank(source, model)
    print(f"{bank.save(output)}: {len(bank)} labels of {bank.dim} numbers, space {bank.space}")


def bank_of_npz(path: Path, model: str) -> LabelBank:
    """A bank of vectors that somebody else computed: `names` and one n x dim array, and `background` where there is one."""
    card = ModelCard.load(find_model(model))
    try:
        with path.open("rb") as raw, np.load(raw) as file:  # opened here, for numpy leaves a damaged file open
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise LabelError(f"{path}: not a readable .npz file ({error})") from error
    background = arrays.pop("background", None)
    matrices = [key for key, a in arrays.items() if a.ndim == 2 and np.issubdtype(a.dtype, np.floating)]
    if "names" not in arrays or len(matrices) != 1:
        raise LabelError(f"{path}: needs `names` and exactly one n x dim array, has {', '.join(arrays)}")
    vectors = arrays[matrices[0]]
    if vectors.shape[1] != card.dim:
        raise LabelError(f"{path}: vectors of {vectors.shape[1]} numbers are not {card.id}'s, which have {card.dim}")
    display = [str(n) for n in arrays["names"]]
    return LabelBank(
        names=tuple(_unique(display)),
        vectors=vectors,
        space=card.space,
        display=tuple(display),
        background=background,
        logit_scale=card.logit_scale,
        logit_bias=card.logit_bias,
        activation=card.activation,
    )


def _unique(names: list[str]) -> list[str]:
    """Number what comes again, "missile", "missile (2)": two classes may share a word."""
    count: dict[str, int] = {}
    result = []
    for name in names:
        count[name] = count.get(name, 0) + 1
        result.append(name if count[name] == 1 else f"{name} ({count[name]})")
    return result


def _show(path: str) -> None:
    bank = LabelBank.load(path)
    print(f"{path}: {len(bank)} labels of {bank.dim} numbers, space {bank.space}, {bank.activation}")
    cosines = bank.vectors @ bank.vectors.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = cosines.argmax(1) if len(bank) > 1 else np.zeros(1, int)
    for i, name in enumerate(bank.names):
        prompts = f"  [{'; '.join(bank.prompts[i])}]" if bank.prompts else ""
        near = f"  nearest: {bank.names[nearest[i]]} {cosines[i, nearest[i]]:.2f}" if len(bank) > 1 else ""
        print(f"  {name}{prompts}{near}")


def _bench(model: str, backend: str, device: int | None) -> None:
    """Scoring one picture's vector and taking its five best, alone and beside an encoder; then both, from the frame on."""
    rng = np.random.default_rng(0)
    stop = threading.Event()
    with open_engine(model, backend, device=device) as engine:
        size = engine.card.size
        image = rng.integers(0, 256, (size, size, 3), np.uint8)

        def encode() -> None:
            while not stop.is_set():
                engine.encode([image])

        print(f"{'labels':>7} {'dim':>5}   {'alone':>18}   beside {engine.card.id} on {engine.name}")
        for count in (1_000, 10_000):
            bank = LabelBank(tuple(map(str, range(count))), rng.standard_normal((count, 512), np.float32), "bench")
            vector = rng.standard_normal((1, 512), np.float32)
            alone = _times(bank, vector)
            stop.clear()
            worker = threading.Thread(target=encode)
            worker.start()
            try:
                beside = _times(bank, vector)
            finally:
                stop.set()
                worker.join()
            print(f"{count:7} {512:5}   {alone}   {beside}")
        frame = rng.integers(0, 256, (720, 1280, 3), np.uint8)
        bank = LabelBank(tuple(map(str, range(500))), rng.standard_normal((500, engine.card.dim), np.float32), "bench")
        whole = []
        for _ in range(220):
            start = time.perf_counter()
            bank.score(engine.encode([frame]))[0].top(5)
            whole.append(time.perf_counter() - start)
        print(
            f"a frame of 1280x720 in host memory -> the five best of 500 labels, {engine.card.id} on {engine.name}: "
            "p50 {:.3f} p95 {:.3f} p99 {:.3f} ms".format(*np.percentile(whole[20:], (50, 95, 99)) * 1e3)
        )


def _times(bank: LabelBank, vector: np.ndarray) -> str:
    times = []
    for _ in range(200):
        start = time.perf_counter()
        bank.score(vector)[0].top(5)
        times.append(time.perf_counter() - start)
        time.sleep(0.002)
    p50, p95 = np.percentile(times[10:], (50, 95)) * 1e3
    return f"p50 {p50:.2f} p95 {p95:.2f} ms"


if __name__ == "__main__":
    sys.exit(main())
