"""Measure the stream on this machine: python -m clipsight.stream bench."""

from __future__ import annotations

import argparse
import sys

from ..engines import ClipsightError, available, open_engine
from .bench import bench


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 2 wrong use, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m clipsight.stream", description="Measure the stream on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "bench",
        help="does the display hold its rate beside the encoder?",
        description="A simulated camera beside an encoder, in turn with the same beside none. An encoder of true shape, with "
        "random weights: python -m clipsight.engines export --random ViT-B-16 -o vit",
    )
    run.add_argument("--model", required=True, help="the encoder: a name or a folder")
    run.add_argument("--engine", default="auto", choices=("auto", *available()))
    run.add_argument("--labels", type=int, default=500, help="size of the bank (default: 500, random)")
    run.add_argument("--size", default="1280x720", help="of the camera's picture (default: 1280x720)")
    run.add_argument("--fps", type=int, default=30, help="of the camera (default: 30)")
    run.add_argument("--seconds", type=float, default=60.0, help="of each turn (default: 60)")
    run.add_argument("--rounds", type=int, default=2, help="turns of each kind (default: 2)")
    args = parser.parse_args(argv)
    width, _, height = args.size.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) >= 192 and int(height) >= 16):
        parser.error(f"--size {args.size}: give WIDTHxHEIGHT, at least 192x16, such as 1280x720")
    if min(args.labels, args.fps, args.rounds) < 1 or args.seconds < 1:
        parser.error("--labels, --fps, --rounds and --seconds must be at least 1")
    try:
        with open_engine(args.model, args.engine, background=True) as engine:
            print(f"{engine.card.id} on {engine.name}, {args.labels} labels, {args.size} at {args.fps} fps")
            size = int(width), int(height)
            bench(engine, labels=args.labels, size=size, fps=args.fps, seconds=args.seconds, rounds=args.rounds)
    except ClipsightError as error:
        print(f"clipsight: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
