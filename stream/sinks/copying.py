"""The other streams of a video file (audio, subtitles, chapters), copied as they are into the file being written."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..sources.base import log
from ..sources.video import best_video, open_container

if TYPE_CHECKING:
    from av.bitstream import BitStreamFilterContext
    from av.container import OutputContainer
    from av.packet import Packet
    from av.stream import Stream

_HOPELESS = 100  # reads that fail one after the other
_MPEG_CLOCK = 90_000  # ticks a second
_OF_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration"}  # not of what it shows


class OtherStreams:
    """Everything in `path` but the video that is seen, on its way into `output`, packet by packet, at its own time.

    What an MP4 cannot carry is named in one warning: further videos, covers, subtitles that are not mov_text, data,
    audio of an unusual codec. To be made before the first packet is written. Raises `SourceError` where the file cannot
    be opened any more.

    zero: the second that becomes 0. It is 0, but the clock of an MPEG stream starts anywhere in its 26 hours, and players
    would wait that long.
    """

    def __init__(self, path: Path, output: OutputContainer) -> None:
        from av.bitstream import BitStreamFilterContext

        self._name = path.name
        self._output = output
        self._container = open_container(path)
        self._lost = 0  # packets
        self._copies: dict[int, Stream] = {}  # by their index in `path`
        self._filters: dict[int, BitStreamFilterContext] = {}
        chapters = self._container.chapters()
        left = []
        seen = best_video(self._container)
        for stream in self._container.streams:
            if seen is not None and stream.index == seen.index:
                continue
            if stream.type in ("audio", "subtitle") and _fits(stream):
                self._copies[stream.index] = _add(output, stream)
                if stream.codec_context.name == "aac" and not stream.codec_context.extradata:
                    # As broadcast: every packet with a header of its own, where an MP4 has one for all of them.
                    self._filters[stream.index] = BitStreamFilterContext("aac_adtstoasc", stream)
            elif not (chapters and _describes_chapters(stream)):
                left.append(_describe(stream))
        if left:
            log.warning("%s: these of its streams are not copied: %s", self._name, ", ".join(left))
        output.set_chapters(chapters)
        output.metadata.update((k, v) for k, v in self._container.metadata.items() if k not in _OF_THE_FILE)
        broadcast = self._container.format.name in ("mpegts", "mpeg")
        start = (self._container.start_time or 0) if broadcast else 0
        self.zero = Fraction(round(start * _MPEG_CLOCK / 1_000_000), _MPEG_CLOCK)
        self._packets = self._read()
        self._next = next(self._packets, None)

    def write(self, until: Fraction | None) -> None:
        """Write every packet that starts before `until` (seconds), or all there are (None)."""
        while self._next is not None and (until is None or _start(self._next) < until):
            self._mux(self._next)
            self._next = next(self._packets, None)

    def _mux(self, packet: Packet[Stream]) -> None:
        from av.error import ArgumentError, InvalidDataError, PermissionError

        index = packet.stream.index
        try:
            for part in self._filters[index].filter(packet) if index in self._filters else [packet]:
                part.stream = self._copies[index]
                self._output.mux(part)
        except (ArgumentError, InvalidDataError, PermissionError):  # what FFmpeg calls a packet it cannot take
            self._lost += 1

    def _read(self) -> Generator[Packet[Stream], None, None]:
        from av.error import FFmpegError

        streams = [s for s in self._container.streams if s.index in self._copies]
        if not streams:
            return
        packets = self._container.demux(streams)
        failures = 0
        while failures < _HOPELESS:
            try:
                packet = next(packets, None)
            except FFmpegError:
                failures += 1
                self._lost += 1
                packets = self._container.demux(streams)  # goes on behind the damage
                continue
            if packet is None:
                return
            failures = 0
            if packet.dts is not None or packet.pts is not None:
                zero = round(self.zero / packet.time_base)
                packet.dts = None if packet.dts is None else packet.dts - zero
                packet.pts = None if packet.pts is None else packet.pts - zero
                yield packet
            elif packet.size:  # without a time it has no place; an empty one only marks the end
                self._lost += 1

    def close(self) -> None:
        """Free the file and tell what was lost; harmless when repeated."""
        if self._lost:
            log.warning("%s: %d damaged packets of audio or subtitles were left out", self._name, self._lost)
        self._lost = 0
        self._next = None
        self._packets.close()
        self._container.close()


def _start(packet: Packet[Stream]) -> Fraction:
    """When a packet begins, in seconds; its order in the file where its stream has both."""
    time = packet.dts if packet.dts is not None else packet.pts or 0
    return time * packet.time_base


def _fits(stream: Stream) -> bool:
    """Whether an MP4 carries this codec: asked of FFmpeg with a header that goes nowhere, as its list is not the truth."""
    import av

    trial = av.open(io.BytesIO(), "w", format="mp4")
    try:
        trial.add_stream_from_template(stream)
        trial.start_encoding()
    except (ValueError, av.error.FFmpegError):
        return False
    with contextlib.suppress(av.error.FFmpegError):  # some codecs say only in their first packet what the index needs
        trial.close()
    return True


def _describes_chapters(stream: Stream) -> bool:
    """Whether this is the list of chapters, which an MP4 keeps in a stream of its own."""
    return stream.type == "data" and stream.name == "bin_data"


def _add(output: OutputContainer, stream: Stream) -> Stream:
    copy = output.add_stream_from_template(stream)
    copy.metadata.update((k, v) for k, v in stream.metadata.items() if k in ("language", "title", "handler_name"))
    copy.disposition = stream.disposition
    return copy


def _describe(stream: Stream) -> str:
    codec = stream.codec_context.name if stream.codec_context else stream.name
    language = stream.language if stream.language not in (None, "und") else None
    return f"{stream.type} stream {stream.index} ({', '.join(filter(None, (codec, language)))})"
