"""Label banks from the command line: python -m clipsight.labels build | show | bench."""

from __future__ import annotations

import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..engines import LabelError, ModelCard, open_engine
from ..engines.commandline import Parser, run
from ..engines.compiled.gate import render
from ..engines.figures import interval
from ..engines.pictures import pictures_in
from ..engines.registry import BACKENDS, find_model
from .bank import LabelBank
from .building import bank_of_labels, bank_of_pictures, encode
from .calibrating import calibrate, kept
from .opening import is_file, listed
from .words import read_templates

_ALIKE = 0.95  # above it lie, of real CLIP labels, rock and stone, alcohol and liquor, not cat and dog (0.92)


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit status, see `commandline.run`."""
    parser = Parser(prog="python -m clipsight.labels", description="Make and look at label banks.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="make a bank of words, of pictures, or of vectors that are there already")
    build.add_argument(
        "source",
        nargs="+",
        help='a list: everyday, words.txt or "a, b, c"; a folder with a folder of pictures for each label; an .npz of vectors',
    )
    build.add_argument("--model", required=True, help="the model it is for: a name or a folder")
    build.add_argument("-o", "--output", required=True, type=Path, metavar="BANK.safetensors")
    build.add_argument(
        "--templates",
        default="simple",
        metavar="NAME|FILE",
        help="sentences for a word: simple, imagenet (80 of them), none, or a file with {} on each line (default simple)",
    )
    calibrate = commands.add_parser("calibrate", help="set a bank so that pictures of nothing on its list get no name")
    calibrate.add_argument("bank", type=Path, help="its file, which is written anew")
    calibrate.add_argument("--model", required=True, help="the model it is for: a name or a folder")
    calibrate.add_argument("--nothing", type=Path, metavar="FOLDER", help="pictures of other things (default: rendered ones)")
    calibrate.add_argument("--rate", type=float, default=5.0, metavar="PERCENT", help="of them may be named (default 5)")
    calibrate.add_argument("--pictures", type=Path, metavar="FOLDER", help="a folder for each label, to see what it costs")
    show = commands.add_parser("show", help="print what a bank holds")
    show.add_argument("bank")
    bench = commands.add_parser("bench", help="time scoring, alone and beside an encoder that fills every core")
    bench.add_argument("--model", default="demo", help="the encoder to run beside: a name or a folder")
    bench.add_argument("--engine", default="auto", choices=("auto", *BACKENDS), help="what runs it (default auto)")
    bench.add_argument("--device", type=int, metavar="N", help="the GPU of that index")
    args = parser.parse_args(argv)
    if args.command == "build":
        return run(lambda: _build(args.source, args.model, args.templates, args.output))
    if args.command == "calibrate":
        return run(lambda: _calibrate(args.bank, args.model, args.nothing, args.rate, args.pictures))
    if args.command == "show":
        return run(lambda: _show(args.bank))
    return run(lambda: _bench(args.model, args.engine, args.device))


def _build(sources: Sequence[str], model: str, templates: str, output: Path) -> None:
    if output.suffix != ".safetensors":
        raise LabelError(f"{output}: a bank's file ends in .safetensors; name it so")
    if not output.parent.is_dir():
        raise LabelError(f"{output}: the folder {output.parent} is not there; make it first")
    shelves = [source for source in sources if Path(source).is_dir()]
    if shelves and len(shelves) < len(sources):
        raise LabelError(
            f"{shelves[0]}: labels of pictures would win over labels of words whatever is seen; make a bank of each"
        )
    sentences = read_templates(templates)
    known = LabelBank.load(output) if output.exists() else None
    banks = [_bank(source, model, sentences, known) for source in sources]
    bank = banks[0]
    for other in banks[1:]:
        bank = bank.plus(other)
    print(f"{bank.save(output)}: {len(bank)} labels of {bank.dim} numbers, space {bank.space}")


def _bank(source: str, model: str, templates: Sequence[str], known: LabelBank | None) -> LabelBank:
    if source.endswith(".npz"):
        return bank_of_npz(Path(source), model)
    if Path(source).is_dir():
        with open_engine(model) as engine, _progress(f"{source}: pictures") as done:
            return bank_of_pictures(Path(source), engine, done=done)
    labels, remarks = listed(source)
    for remark in remarks if is_file(source) else ():
        print(remark, file=sys.stderr)
    with _progress(f"{len(labels)} labels", len(labels)) as done:
        return bank_of_labels(labels, model, templates, known=known, done=done)


@contextmanager
def _progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda n: progress.update(task, advance=n)


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


def _calibrate(path: Path, model: str, nothing: Path | None, percent: float, pictures: Path | None) -> None:
    if not 0 < percent < 100:
        raise LabelError(f"--rate {percent:g} is no share in percent; give a number between 0 and 100")
    bank = LabelBank.load(path)
    with open_engine(model) as engine:
        bank.check(engine.card)
        images = pictures_in(nothing) if nothing else render(128)
        done = calibrate(bank, encode(engine, images), rate=percent / 100)
        rule = f"threshold {done.bank.threshold:.4f}" if done.bank.background is None else f"margin {done.bank.margin:.4f}"
        low, high = interval(round(done.named * done.of), done.of)
        print(f"{rule}: of {done.of} other pictures of nothing {done.named:.1%} are named (95 %: {low:.1%} to {high:.1%})")
        if pictures:
            shelves = {name: pictures_in(pictures / name) for name in bank.names if (pictures / name).is_dir()}
            if not shelves:
                raise LabelError(f"{pictures}: has no folder that is called as a label is, such as {bank.names[0]!r}")
            truth = [name for name, shelf in shelves.items() for _ in shelf]
            vectors = encode(engine, [image for shelf in shelves.values() for image in shelf])
            (right, names) = kept(done.bank, vectors, truth)
            print(f"of {len(truth)} pictures of what is on it {right} are nearest to their label; {names} of those keep it")
    done.bank.save(path)


def _show(path: str) -> None:
    bank = LabelBank.load(path)
    print(f"{path}: {len(bank)} labels of {bank.dim} numbers, space {bank.space}, {bank.activation}")
    cosines = bank.vectors @ bank.vectors.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = cosines.argmax(1) if len(bank) > 1 else np.zeros(1, int)
    for i, name in enumerate(bank.names):
        prompts = f"  [{_few(bank.prompts[i])}]" if bank.prompts and bank.prompts[i] else ""
        near = f"  nearest: {bank.names[nearest[i]]} {cosines[i, nearest[i]]:.2f}" if len(bank) > 1 else ""
        print(f"  {name}{prompts}{near}")
    alike = [(i, j) for i, j in zip(*np.where(np.triu(cosines, 1) > _ALIKE), strict=True)]
    if alike:
        print(f"too alike to tell apart (cosine above {_ALIKE}): {len(alike)} pairs")
        for i, j in sorted(alike, key=lambda pair: -cosines[pair])[:20]:
            print(f"  {bank.names[i]} - {bank.names[j]} {cosines[i, j]:.3f}")


def _few(prompts: Sequence[str]) -> str:
    return "; ".join(prompts) if len(prompts) <= 3 else f"{prompts[0]}; {prompts[1]}; and {len(prompts) - 2} more"


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
