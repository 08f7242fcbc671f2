"""What the project's commands have in common: mistakes are one line, and an exit status says whose they are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from .errors import ClipsightError


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, without the usage, and exits with status 2."""

    def error(self, message: str) -> NoReturn:
        """Print `message` and exit."""
        self.exit(2, f"{self.prog}: {message}; --help says more\n")


def run(command: Callable[[], object]) -> int:
    """Run a command and return its exit status: 0 done, 1 a run that failed, 2 wrong use, 130 Ctrl-C."""
    try:
        command()
    except ClipsightError as error:
        print(f"clipsight: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"clipsight: {error}; free space or give another folder", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def whole(text: str) -> int:
    """An argument that must be a whole number of at least 1."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def size(text: str) -> tuple[int, int]:
    """An argument that must be WIDTHxHEIGHT."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 1280x720")
    return int(width), int(height)
