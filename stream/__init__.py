"""All that has time: frames, cameras, files, threads, overlay, outputs.

with live(open_source("0"), Recognizer(engine, bank)) as results:
    for result in results:
        my_renderer(result.frame.image, result.scores.top(3))
"""

from ..engines import open_engine
from ..labels import LabelBank, open_bank
from .drawing import draw, panel
from .frame import Figures, Frame, Result
from .recognizer import Recognizer
from .running import Live, each, live
from .sinks import Sink, open_sink
from .sources import About, Source, open_source
from .sources.memory import Feed, Frames

__all__ = [
    "About",
    "Feed",
    "Figures",
    "Frame",
    "Frames",
    "LabelBank",
    "Live",
    "Recognizer",
    "Result",
    "Sink",
    "Source",
    "draw",
    "each",
    "live",
    "open_bank",
    "open_engine",
    "open_sink",
    "open_source",
    "panel",
]
