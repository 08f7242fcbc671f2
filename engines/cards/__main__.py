"""python -m clipsight.engines.cards: the world of the demo, its model, and its cards on paper."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..commandline import Parser, run, whole
from ..errors import BackendMissing
from ..registry import BACKENDS, find_model


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status: 0 done, 1 a run that failed, 2 wrong use, 130 Ctrl-C."""
    parser = Parser("python -m clipsight.engines.cards", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("train", help="train the demo's model from scratch; goes on where it was stopped")
    command.set_defaults(run=_train)
    command.add_argument("-o", "--output", required=True, type=Path, metavar="RUN", help="folder of its checkpoint and log")
    command.add_argument("--seed", type=whole, help="of weights, pictures and sentences")
    command.add_argument("--pictures", type=whole, metavar="N", help="how many to see with a share of their patches")
    command.add_argument("--finish", type=whole, metavar="N", help="how many more with all of them")
    command.add_argument("--width", type=whole, metavar="N", help="of the image tower")
    command.add_argument("--layers", type=whole, metavar="N", help="of the image tower")
    command.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    command.add_argument("--minutes", type=float, metavar="N", help="stop after so many; the same command goes on")
    command = commands.add_parser("pack", help="make the model folder of a run, calibrated and examined")
    command.set_defaults(run=_pack)
    command.add_argument("trained", type=Path, metavar="RUN")
    command.add_argument("-o", "--output", required=True, type=Path, metavar="FOLDER")
    _examined(command)
    command = commands.add_parser(
        "evaluate", help="how well a model knows cards it has not seen; status 1 where a goal is missed"
    )
    command.set_defaults(run=_evaluate)
    command.add_argument("--model", default="demo", metavar="NAME|FOLDER", help="(default demo)")
    command.add_argument("--engine", default="onnx", choices=tuple(BACKENDS), help="(default onnx)")
    _examined(command)
    command = commands.add_parser("sheet", help="the cards as a PDF to print")
    command.set_defaults(run=_sheet)
    command.add_argument("-o", "--output", required=True, type=Path, metavar="CARDS.pdf")
    command.add_argument("--all", action="store_true", help="all 616, not a choice of 24")
    command.add_argument("--paper", choices=("a4", "letter"), default="a4")
    options = parser.parse_args(arguments)
    status = 0

    def command_line() -> None:
        nonlocal status
        status = options.run(options)

    return run(command_line) or status


def _examined(command: argparse.ArgumentParser) -> None:
    command.add_argument("-n", type=whole, default=2000, metavar="N", help="pictures for each figure (default 2000)")
    command.add_argument("--photographs", type=Path, metavar="FOLDER", help="photographs to lay cards on")


def _train(options: argparse.Namespace) -> int:
    try:
        from .training import Settings, train
    except ImportError as error:
        raise BackendMissing(
            f'training needs {error.name or error}, which is not installed; run: pip install -e ".[export,text,camera]"'
        ) from None
    given = ("seed", "pictures", "finish", "width", "layers")
    settings = Settings(**{name: value for name in given if (value := getattr(options, name)) is not None})
    if train(options.output, settings, device=options.device, minutes=options.minutes) < settings.steps:
        print(f"{options.output}: stopped; the same command goes on")
    else:
        print(f"{options.output}: done; now: python -m clipsight.engines.cards pack {options.output} -o FOLDER")
    return 0


def _pack(options: argparse.Namespace) -> int:
    try:
        from .packing import pack
    except ImportError as error:
        raise BackendMissing(
            f'packing needs {error.name or error}, which is not installed; run: pip install -e ".[export,text,camera]"'
        ) from None
    for share in pack(options.trained, options.output, n=options.n, photos=options.photographs):
        print(share)
    size = sum(path.stat().st_size for path in options.output.iterdir())
    print(f"{options.output}: {size / 1e6:.1f} MB; its bank: python -m clipsight.labels build {options.output}/labels.txt ...")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from .evaluating import evaluate

    shares = evaluate(find_model(options.model), n=options.n, photos=options.photographs, backend=options.engine)
    for share in shares:
        print(share)
    return 0 if all(share.met for share in shares) else 1


def _sheet(options: argparse.Namespace) -> int:
    from .sheet import write_sheet
    from .words import all_cards

    pages = write_sheet(options.output, all_cards() if options.all else None, paper=options.paper)
    print(f"{options.output}: {pages} pages; print at 100 %, cut out, and hold one before the camera")
    return 0


if __name__ == "__main__":
    sys.exit(main())
