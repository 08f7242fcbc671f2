"""Measure the stream on this machine: python -m clipsight.stream bench."""

from __future__ import annotations

import argparse
import sys

from ..engines import open_engine
from ..engines.commandline import Parser, run, size, whole
from ..engines.registry import BACKENDS
from .bench import bench, bench_draw


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit status, see `commandline.run`."""
    parser = Parser(prog="python -m clipsight.stream", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser(
        "bench",
        help="does the display hold its rate beside the encoder?",
        description="A simulated camera beside an encoder, in turn with the same beside none. An encoder of true shape, with "
        "random weights: python -m clipsight.engines export --random ViT-B-16 -o vit",
    ).add_argument
    add("--model", required=True, help="the encoder: a name or a folder")
    add("--engine", default="auto", choices=("auto", *BACKENDS))
    add("--device", type=int, metavar="N", help="the GPU of that index (default the CPU)")
    add("--labels", type=whole, default=500, help="size of the bank (default 500, random)")
    add("--size", type=size, default=(1280, 720), metavar="WxH", help="of the camera's picture (default 1280x720)")
    add("--fps", type=whole, default=30, help="of the camera (default 30)")
    add("--seconds", type=whole, default=60, help="of each turn (default 60)")
    add("--rounds", type=whole, default=2, help="turns of each kind (default 2)")
    add("--jpeg", action="store_true", help="show by encoding a JPEG, as a server does, instead of copying to a screen")
    args = parser.parse_args(argv)
    if args.size[0] < 192 or args.size[1] < 16:
        parser.error("--size must be at least 192x16: the camera's clock is painted into its picture")
    return run(lambda: _bench(args))


def _bench(args: argparse.Namespace) -> None:
    bench_draw()
    with open_engine(args.model, args.engine, device=args.device, background=True) as engine:
        print(f"{engine.card.id} on {engine.name}, {args.labels} labels, {args.size[0]}x{args.size[1]} at {args.fps} fps")
        turns = {"seconds": args.seconds, "rounds": args.rounds, "jpeg": args.jpeg}
        bench(engine, labels=args.labels, size=args.size, fps=args.fps, **turns)


if __name__ == "__main__":
    sys.exit(main())
