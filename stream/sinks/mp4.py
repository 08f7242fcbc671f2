"""Results as a video file: H.264 in MP4, every frame at its own time, the source's audio and subtitles with it."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...engines import Image, SinkError, SourceError
from ...engines.preparing import check_image
from .. import colors
from ..frame import Frame, Result
from ..sources.base import About, Source, log
from .base import Sink
from .copying import OtherStreams

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

_PRESET, _CRF = "veryfast", "20"
_KEY_EVERY = 4  # seconds: how far a player must decode to jump somewhere
_TICKS = Fraction(1, 90000)  # unit of time where the source has none
_FINEST = 1_000_000  # ticks a second; with finer ones a pause of seconds overflows an MP4's 32 bits
_ROUNDED = 0x2 | 0x40000  # SWS_BILINEAR | SWS_ACCURATE_RND: the default cuts the fractions off, which makes it greener
# The file is written in fragments, so that a killed program leaves one that plays. The first index waits for the first
# fragment: only then are the streams' starts known. Closed, the file becomes a plain MP4 with one index (see `_open`).
_OPTIONS = {
    "movflags": "delay_moov",
    "frag_duration": "500000",  # microseconds
    "flush_packets": "1",  # what is written is on its way to the disk
    "max_interleave_delta": "500000",  # do not wait for a stream that is over or sparse
}


class Mp4(Sink):
    """An MP4 that browsers play.

    Each frame keeps the time it has in its container, to the tick; where it has none, the video starts at 0 and each frame
    comes as long after the first as its `time` says. A frame that comes again (a stalled camera) is not written twice.
    Aspect and color space are the source's. Audio, subtitles and chapters of a file are copied as they are: to their end
    where the source was read to its end, else to the end of the last frame.

    The first picture sets the size; an odd width or height is padded by one pixel, its neighbor's double, because H.264
    stores colors for 2 x 2 pixels. Later pictures of another size are fitted in, with black bars.
    """

    def __init__(self, path: str | Path, like: Source | None = None) -> None:
        """Raises `SinkError` where the file cannot be written. A file that is there stays until the first frame comes."""
        from av.codec import Codec
        from av.codec.codec import UnknownCodecError
        from av.video.reformatter import VideoReformatter

        try:
            Codec("libx264", "w")
        except UnknownCodecError:
            raise SinkError("this PyAV cannot encode H.264; install its own wheel: pip install --force-reinstall av") from None
        self._path = Path(path)
        self._like = like
        self._about = like.about if like is not None else About()
        self._was_there = self._path.exists()
        try:
            self._path.open("ab").close()
        except OSError as error:
            raise SinkError(f"{path}: cannot be written ({error.strerror}); choose another folder or name") from None
        self._reformatter = VideoReformatter()
        self._output: OutputContainer | None = None
        self._others: OtherStreams | None = None
        self._stream: VideoStream
        self._last: tuple[int, float, int] | None = None  # the last frame's index, time, and time in ticks
        self._step = 0  # ticks between the last two frames
        self._closed = self._failed = False

    def write(self, image: Image, result: Result) -> None:
        """Append one picture (H x W x 3 uint8 BGR). Raises `SinkError` when the disk or the encoder fails."""
        from av.error import FFmpegError

        check_image(image)
        if self._closed or self._failed:
            raise SinkError(f"{self._path}: is closed; nothing more can be written")
        try:
            if self._output is None:
                self._open(image, result.frame)
            self._append(image, result.frame)
        except (FFmpegError, OSError) as error:
            raise self._failure(error) from None

    def _open(self, image: Image, first: Frame) -> None:
        import av

        rate = self._like.rate if self._like is not None else None
        self._rate = rate if rate is not None and 1 <= rate <= 240 else Fraction(30)  # the times do not depend on it
        width, height = (n + n % 2 for n in (image.shape[1], image.shape[0]))
        base = first.time_base if first.pts is not None and first.time_base is not None else _TICKS
        self._base = base if base.denominator <= _FINEST else Fraction(1, _FINEST)
        # "file:" keeps a name like "a:b.mp4" from being taken for an address
        output = self._output = av.open(f"file:{self._path}", "w", format="mp4", container_options=dict(_OPTIONS))
        if av.library_versions["libavformat"] >= (62, 12):  # FFmpeg 8.1; in 8.0 the index made at the end is wrong
            output.container_options["movflags"] = "hybrid_fragmented+delay_moov"
        stream = output.add_stream("libx264", rate=self._rate, time_base=self._base)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": _PRESET, "crf": _CRF, "g": str(max(1, round(_KEY_EVERY * self._rate)))}
        stream.codec_context.sample_aspect_ratio = self._about.aspect
        # Whole frames in parallel, so that a call need not wait for its own; few, as the recognizer wants the cores too.
        stream.thread_type, stream.thread_count = "FRAME", max(2, min(4, (os.cpu_count() or 2) // 2))
        said = self._about.color
        self._space = said if said in colors.TAGS else colors.guess(width, height)
        stream.color_primaries, stream.color_trc, stream.colorspace = colors.TAGS[self._space]
        stream.color_range = colors.LIMITED
        self._stream = stream
        self._canvas: Image | None = None
        self._zero = Fraction(first.time) if first.pts is None else Fraction(0)  # a host's clock may count from 1970
        if self._about.path is not None and self._about.path.is_file():
            try:
                self._others = OtherStreams(self._about.path, output)
                self._zero = self._others.zero
            except SourceError as error:
                log.warning("%s; its audio and subtitles are not copied", error)
        # Starts are written in this unit, by default in milliseconds.
        units = [self._base, *(s.time_base for s in output.streams if s.time_base)]
        finest = math.lcm(*(unit.denominator for unit in units))
        output.container_options["movie_timescale"] = str(finest if finest < 2**31 else self._base.denominator)

    def _append(self, image: Image, frame: Frame) -> None:
        from av import VideoFrame

        ticks = self._ticks(frame)
        if self._last is not None:
            if (frame.index, frame.time) == self._last[:2]:
                return  # a live run gives its last frame again while no new one comes
            ticks = max(ticks, self._last[2] + 1)
            self._step = ticks - self._last[2]
        yuv = self._reformatter.reformat(
            VideoFrame.from_numpy_buffer(self._fitted(image), "bgr24"),  # no copy: it is converted before this returns
            format="yuv420p",
            dst_colorspace=colors.MATRIX[self._space],
            src_color_range=colors.FULL,
            dst_color_range=colors.LIMITED,
            interpolation=_ROUNDED,
            threads=1,
        )
        yuv.pts, yuv.time_base = ticks, self._base
        for packet in self._stream.encode(yuv):
            self._mux(packet)
        self._last = frame.index, frame.time, ticks

    def _ticks(self, frame: Frame) -> int:
        if frame.pts is not None and frame.time_base is not None:
            return round((frame.pts * frame.time_base - self._zero) / self._base)  # exact: mostly the same unit
        return round((Fraction(frame.time) - self._zero) / self._base)

    def _fitted(self, image: Image) -> Image:
        """`image` at the size of the video, its rows without gaps."""
        width, height = self._stream.width, self._stream.height
        h, w = image.shape[:2]
        if (w, h) == (width, height):
            return np.ascontiguousarray(image)
        if self._canvas is None:
            self._canvas = np.zeros((height, width, 3), np.uint8)
        canvas = self._canvas
        if (w + w % 2, h + h % 2) == (width, height):
            canvas[:h, :w] = image
            canvas[:h, w:] = canvas[:h, w - 1 : w]
            canvas[h:] = canvas[h - 1 : h]
            return canvas
        import cv2

        scale = min(width / w, height / h)
        w, h = max(1, round(w * scale)), max(1, round(h * scale))
        left, top = (width - w) // 2, (height - h) // 2
        canvas[:] = 0
        small = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        canvas[top : top + h, left : left + w] = small
        return canvas

    def _mux(self, packet: Packet[VideoStream]) -> None:
        assert self._output is not None
        if self._others is not None and packet.dts is not None:
            self._others.write(packet.dts * packet.time_base)  # side by side, so that little waits in memory
        self._output.mux(packet)

    def close(self) -> None:
        """Write the rest and the index; the file is a plain MP4 then. One that got no frame is taken away again."""
        from av.error import FFmpegError

        if self._closed:
            return
        self._closed = True
        try:
            if self._last is not None and not self._failed:
                self._finish(self._last[2])
            if self._output is not None:
                self._output.close()
            if self._last is None and not self._was_there:
                self._path.unlink(missing_ok=True)
        except (FFmpegError, OSError) as error:
            if not self._failed:  # else it was raised already, where it happened
                raise self._failure(error) from None
        finally:
            if self._others is not None:
                self._others.close()
            for name in ("_output", "_stream", "_others"):  # the encoder's threads live as long as its stream does
                vars(self).pop(name, None)

    def _finish(self, ticks: int) -> None:
        step = self._step or round(1 / (self._rate * self._base))
        end = ticks + step
        packets = self._stream.encode(None)
        if packets:
            # FFmpeg ends the video where the last fragment's latest frame ends, and players stop there. But frames are
            # stored in order of decoding: the last one to be shown may lie in a fragment before.
            packets[-1].duration = end - (packets[-1].pts or 0)
        for packet in packets:
            self._mux(packet)
        if self._others is not None:
            ended = self._like is not None and self._like.ended
            self._others.write(None if ended else end * self._base)

    def _failure(self, error: Exception) -> SinkError:
        self._failed = True
        reason = getattr(error, "strerror", None) or error
        return SinkError(f"{self._path}: cannot be written any further ({reason}); make room, or choose another place")
