"""Point a camera at the world and see what it is looking at: python run_camera.py [SOURCE]."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from clipsight.stream import Recognizer, Result, Sink, Source

INSTALL = 'pip install -e ".[camera,onnx,text]"'
EXAMPLES = """
examples:
  run_camera.py demo                                    a scene that needs no camera and no download
  run_camera.py demo --save demo.mp4                    the same, kept as a video
  run_camera.py 0 --model demo                          a webcam and printed cards (engines/models/demo/cards.pdf)
  run_camera.py demo --labels "orange star, pink circle"  your own words for cards
  run_camera.py 0                                       a webcam and 300 everyday things, by OpenAI's ViT-B/16 (fetched once)
  run_camera.py 0 --labels "cat, dog, cup"              your own words for the world
  run_camera.py clip.mp4 --labels bank.safetensors --save out.mp4 --results out.jsonl

The model `demo`, which the source demo runs, knows printed cards (14 shapes, 11 colors, 4 surfaces), not the world. What knows
the world is CLIP: --model ViT-B-16 (the default), RN50x4 and others by name, or the folder of a model of your own.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 and one line where it is wrong."""
    from clipsight.engines.commandline import Parser, size, whole
    from clipsight.engines.registry import BACKENDS, Precision

    parser = Parser(
        prog="run_camera.py",
        description="See what a camera, a video or a folder of pictures shows, by names you choose.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", nargs="?", default="0", metavar="SOURCE", help="0 | 1 | /dev/video2 | clip.mp4 | picture | folder | demo")
    add(
        "--model",
        metavar="NAME|FOLDER",
        help="ViT-B-16 (the default), another name, demo (knows printed cards, not the world), or a model folder",
    )
    add("--labels", metavar="LABELS", help='everyday (the default) | words.txt | "a, b, c" | bank.safetensors')
    add("--engine", default="auto", choices=("auto", *BACKENDS), help="what runs the model (default: auto)")
    add("--precision", default="auto", choices=get_args(Precision))
    add("--device", type=int, metavar="N", help="GPU to run the model on (default: the CPU; with TensorRT: GPU 0)")
    add("--max-batch", type=whole, metavar="N", help="pictures per forward that TensorRT compiles the model for (default: 32)")
    add("--fit", choices=("crop", "squash", "pad"), help="how a frame becomes the model's square (default: as its card says)")
    add("--top", type=whole, default=5, metavar="K", help="labels to show (default: 5)")
    add("--size", type=size, metavar="WxH", help="size to ask the camera for")
    add("--fps", type=float, metavar="N", help="rate to ask the camera for")
    add("--save", metavar="OUT.mp4", help="write the picture with what is drawn on it; sound and other streams are copied")
    add("--results", metavar="OUT.jsonl", help="write the results, a line for each frame")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--live", action="store_true", help="play a file as a camera would: late frames are dropped")
    how.add_argument("--every-frame", action="store_true", help="recognize every frame, in its own time; files do so anyway")
    add("--no-window", action="store_true")
    add("--quiet", action="store_true", help="say nothing but errors")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit status: 0 done, 1 a run that failed, 2 wrong use, 130 Ctrl-C."""
    try:
        from clipsight.engines import ClipsightError
        from clipsight.engines.commandline import missing, replace_unprintable
    except ImportError:
        print(f"clipsight is not installed here; run: {INSTALL}", file=sys.stderr)
        return 2
    replace_unprintable()
    args = parse(argv)
    logging.basicConfig(format="clipsight: %(message)s", level=logging.ERROR if args.quiet else logging.INFO)
    status = 2  # until everything is open it is the user's to mend; after that it is the run that failed
    try:
        with contextlib.ExitStack() as stack:
            source, recognizer, sinks = open_all(args, stack)
            status = 1
            return run(args, source, recognizer, sinks)
    except KeyboardInterrupt:
        return 130
    except ClipsightError as error:
        print(f"clipsight: {error}", file=sys.stderr)
    except ImportError as error:
        print(f"clipsight: {missing(error)}", file=sys.stderr)
        status = 2
    return status


def is_live(args: argparse.Namespace, source: Source) -> bool:
    """Cameras and the demo show the newest frame, files and folders every frame, unless the user says otherwise."""
    return args.live or (not args.every_frame and (source.live or args.source == "demo"))


def open_all(args: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[Source, Recognizer, list[Sink]]:
    """Open what the command line names; `stack` closes it. Outputs come last, so that a mistake leaves none behind."""
    from clipsight.engines import SinkError, open_engine
    from clipsight.engines.registry import find_model
    from clipsight.labels import open_bank
    from clipsight.stream import Recognizer, open_sink, open_source
    from clipsight.stream.sinks.window import Window

    outputs = [path for path in (args.save, args.results) if path]
    source = stack.enter_context(open_source(args.source, size=args.size, fps=args.fps))
    if args.no_window and not outputs:
        raise SinkError("--no-window needs --save OUT.mp4 or --results OUT.jsonl: there would be nothing to see")
    model = args.model or ("demo" if args.source == "demo" else "ViT-B-16")
    find_model(model)  # before the labels, which would complain of what is only a consequence
    labels = args.labels if args.labels is not None else "demo" if model == "demo" else "everyday"
    bank = open_bank(labels, model)
    sinks: list[Sink] = []
    if not args.no_window:
        try:
            sinks.append(stack.enter_context(Window(f"clipsight: {source.name}")))
        except SinkError as error:
            if not outputs:
                raise
            logging.getLogger("clipsight").info("no window: %s", str(error).partition(";")[0])
    engine = stack.enter_context(
        open_engine(
            model,
            args.engine,
            precision=args.precision,
            device=args.device,
            background=is_live(args, source),
            fit=args.fit,
            max_batch=args.max_batch,
        )
    )
    recognizer = Recognizer(engine, bank)
    sinks += [stack.enter_context(open_sink(path, like=source)) for path in outputs]
    return source, recognizer, sinks


def run(args: argparse.Namespace, source: Source, recognizer: Recognizer, sinks: list[Sink]) -> int:
    """Show and keep every result until the source ends or the window is closed; print what it came to."""
    from clipsight.stream import draw, each, live
    from clipsight.stream.report import Report
    from clipsight.stream.sinks.window import Window

    report = Report(source)
    drawn = bool(args.save) or any(isinstance(sink, Window) for sink in sinks)
    running = live(source, recognizer) if is_live(args, source) else None
    try:
        with contextlib.closing(running or each(source, recognizer, batch=recognizer.engine.good_batch)) as results:
            buffer = None
            for result in results if running else with_progress(results, source, hidden=args.quiet):
                new = report.add(result)
                picture = result.frame.image
                if drawn:
                    same = buffer is not None and buffer.shape == picture.shape
                    picture = buffer = draw(picture, result, out=buffer if same else None, top=args.top)
                for sink in sinks:
                    if new or isinstance(sink, Window):
                        sink.write(picture, result)
                if any(sink.finished for sink in sinks):
                    break
    finally:
        if not args.quiet:
            print("\n".join(report.lines(running.meter.summary() if running else None)))
            for path in filter(None, (args.save, args.results)):
                print(f"saved          {path}")
    return 0 if report.passed else 1


def with_progress(results: Iterable[Result], source: Source, *, hidden: bool) -> Iterator[Result]:
    """The same results, with a progress bar where somebody sits at a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = hidden or not console.is_terminal
    yield from track(results, source.name, total=source.about.frames, console=console, transient=True, disable=hidden)


if __name__ == "__main__":
    sys.exit(main())
