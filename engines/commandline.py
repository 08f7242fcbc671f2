"""What the project's commands have in common: mistakes are one line, and an exit status says whose they are."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from .errors import ClipsightError

PACKAGES = {"cv2": "opencv-python", "PIL": "pillow"}  # where a module and what installs it have two names


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, without the usage, and exits with status 2."""

    def error(self, message: str) -> NoReturn:
        """Print `message` and exit."""
        self.exit(2, f"{self.prog}: {message}; --help says more\n")


def run(command: Callable[[], object]) -> int:
    """Run a command and return its exit status: 0 done, 1 a run that failed, 2 wrong use, 130 Ctrl-C."""
    replace_unprintable()
    try:
        command()
    except BrokenPipeError:  # whoever read has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  else Python complains of the same at its end
    except ModuleNotFoundError as error:
        print(f"clipsight: {missing(error)}", file=sys.stderr)
        return 2
    except ClipsightError as error:
        print(f"clipsight: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"clipsight: {error}; free space or give another folder", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def missing(error: ImportError) -> str:
    """What to do about an import that failed, in one line."""
    package = PACKAGES.get(error.name or "", error.name)
    if isinstance(error, ModuleNotFoundError) and package:
        return f"{package} is not installed; run: pip install {package}"
    return f"{package or 'a package'} is installed but does not load ({error}); install it anew"


def replace_unprintable() -> None:
    """Let a terminal that has no letter for a label show a question mark; it is no reason to fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


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
