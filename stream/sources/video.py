"""Video files: every frame in order, at the container's own time, in its right colors and the right way up."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from ...engines import Image, SourceError
from .. import colors
from ..frame import Frame
from .base import About, Source, log

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.sidedata.sidedata import SideData
    from av.video.stream import VideoStream

_HOPELESS = 100  # reads that fail one after the other: the medium is gone, not a packet damaged
_BLOCK_HEADERS = 1024  # bytes between two Matroska packets that belong to neither; some 30 are usual


class Video(Source):
    """The frames of a video file, all of them, in order.

    Damaged packets are skipped, counted, and told in one warning at the end. A file that ends before its own header says
    so raises `SourceError` at the end, after every frame that can be decoded. Where a file holds several videos, the one
    FFmpeg calls best is taken; cover pictures never are. Frames of HDR videos are not tone mapped.
    """

    def __init__(self, path: str | Path) -> None:
        """Open `path` and decode its first frame. Raises `SourceError` where that cannot be done."""
        super().__init__()
        from av.video.reformatter import VideoReformatter

        self._path = Path(path)
        self.name = self._path.name
        self._demuxed = 0  # video packets, without those that an edit list takes out
        self._damaged = 0  # packets
        self._skipped = 0  # bytes without a packet in them
        self._container = open_container(self._path)
        self._reformatter = VideoReformatter()  # one for all: setting one up costs more than converting a frame
        try:
            self._stream = self._usable_stream()
            self._announced = _announced(self._container, self._stream)
            self._decoded = self._decode()
            self._first = next(self._decoded, None)
            if self._first is None:
                raise SourceError(f"{self.name}: no picture of it can be decoded; take another copy of the file")
        except BaseException:
            self.close()
            raise
        self._turn = _turn(self._first)
        size, aspect = (self._first.width, self._first.height), self._stream.sample_aspect_ratio or Fraction(1)
        if self._turn.transposed:
            size, aspect = (size[1], size[0]), 1 / aspect
        self.rate = self._stream.average_rate or None
        self.about = About(
            size=size,
            time_base=self._stream.time_base,
            aspect=aspect,
            rotation=self._turn.degrees,
            color=colors.NAMES.get(self._first.colorspace),
            frames=self._announced or self._stream.frames or None,
            path=self._path,
        )

    def _usable_stream(self) -> VideoStream:
        stream = best_video(self._container)
        if stream is None:
            raise SourceError(f"{self.name}: there is no video in it; give a file that has one")
        if stream.codec_context is None:
            raise SourceError(f"{self.name}: this FFmpeg cannot decode its codec; convert it to H.264 first")
        stream.thread_type = "AUTO"  # whole frames too, not only slices: many files have one slice a frame
        return stream

    def _frames(self) -> Iterator[Frame]:
        decoded, self._first = self._first, None
        while decoded is not None:
            pts, base = decoded.pts, decoded.time_base
            if pts is None or not base:  # a raw stream has no times
                yield self._frame(self._image(decoded), float(self._count / (self.rate or 25)))
            else:
                yield self._frame(self._image(decoded), float(pts * base), pts, base)
            decoded = next(self._decoded, None)
        self._tell_damage()
        self._check_end()

    def _decode(self) -> Generator[VideoFrame, None, None]:
        """Every frame that can be decoded, in order of time; damage is counted, not raised."""
        from av.error import FFmpegError

        # A Matroska file is read with all its streams: only so it shows that bytes between two packets were skipped.
        matroska = "matroska" in self._container.format.name
        streams = None if matroska else self._stream
        packets = self._container.demux(streams)
        failures = end = 0
        while True:
            try:
                packet = next(packets, None)
                failures = 0
            except FFmpegError as error:
                failures += 1
                self._damaged += 1
                if failures == _HOPELESS:
                    raise SourceError(f"{self.name}: cannot be read any further ({error.strerror})") from None
                packets = self._container.demux(streams)  # goes on behind the damage
                continue
            if packet is None:
                return
            flush = packet.size == 0 and packet.pts is None and packet.dts is None  # the decoder's last frames
            if matroska and packet.pos is not None and not flush:
                if end and packet.pos - end > _BLOCK_HEADERS:
                    self._skipped += packet.pos - end
                end = max(end, packet.pos + packet.size)
            if packet.stream.index != self._stream.index:
                continue
            if packet.is_corrupt and self._announced:  # an MP4's last packet, cut in two with the file
                continue
            self._demuxed += not flush and not packet.is_discard
            if packet.size == 0 and not flush:  # an empty packet would be taken for the end
                continue
            try:
                frames = self._stream.decode(packet)
            except FFmpegError:
                self._damaged += 1
                continue
            self._damaged += any(frame.is_corrupt for frame in frames)
            yield from frames

    def _image(self, frame: VideoFrame) -> Image:
        """`frame` as H x W x 3 BGR, the right way up."""
        space = colors.NAMES.get(frame.colorspace) or colors.guess(frame.width, frame.height)
        full = frame.color_range == colors.FULL or frame.format.name.startswith("yuvj")
        bgr = self._reformatter.reformat(
            frame,
            format="bgr24",
            src_colorspace=colors.MATRIX[space],
            src_color_range=colors.FULL if full else colors.LIMITED,
            dst_color_range=colors.FULL,
            threads=1,  # the decoder's threads fill the cores
        )
        image: Image = np.asarray(bgr.to_ndarray(), np.uint8)  # the frame's own memory, no copy
        return self._turn.apply(image)

    def _tell_damage(self) -> None:
        told = []
        if self._damaged:
            told.append(f"{self._damaged} damaged packet{'s' * (self._damaged > 1)}")
        if self._skipped:
            told.append(f"{self._skipped} bytes that are no video")
        if told:
            log.warning("%s: %s; what was in there is missing or spoilt", self.name, " and ".join(told))
        self._damaged = self._skipped = 0

    def _check_end(self) -> None:
        """Raise `SourceError` where the file is shorter than it says itself."""
        if self._announced:
            there, all_of_it, unit = self._count, self._announced, "frames"
            ends_early = self._demuxed < self._announced
        else:
            there, all_of_it, unit = *_bytes(self._path), "bytes"
            ends_early = there < all_of_it
        if ends_early:
            raise SourceError(f"{self.name}: ends early, {there} of {all_of_it} {unit}; the file is damaged or was cut")

    def _release(self) -> None:
        self._tell_damage()
        if "_decoded" in vars(self):
            self._decoded.close()
        for name in ("_first", "_decoded", "_stream"):  # the decoder's threads live as long as its stream does
            vars(self).pop(name, None)
        self._container.close()


class _Turn(NamedTuple):
    """How the stored picture becomes upright: transposed first, then mirrored. degrees: the clockwise turn in it."""

    transposed: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    degrees: int = 0

    def apply(self, image: Image) -> Image:
        """Turn an H x W x 3 picture."""
        if not any(self[:3]):
            return image
        import cv2

        turned = cv2.transpose(image) if self.transposed else image
        if self.flip_rows or self.flip_columns:
            turned = cv2.flip(turned, -1 if self.flip_rows and self.flip_columns else int(self.flip_columns))
        return np.asarray(turned, np.uint8)


def _turn(frame: VideoFrame) -> _Turn:
    """Read the display matrix: a stored pixel (x, y) is shown at (ax + cy, bx + dy)."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return _Turn()
    a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(cast("SideData", data)), np.int32)[:5])
    mirrored = -1 if a * d < b * c else 1
    degrees = round(math.degrees(math.atan2(b, mirrored * a)) / 90) * 90 % 360
    if abs(b) > abs(a):
        return _Turn(True, b < 0, c < 0, degrees)
    return _Turn(False, d < 0, a < 0, degrees)


def best_video(container: InputContainer) -> VideoStream | None:
    """The stream that FFmpeg calls best of those that are no cover picture."""
    from av.stream import Disposition

    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    best = container.streams.best("video")
    for stream in videos:
        if best is not None and stream.index == best.index:
            return stream
    return max(videos, key=lambda s: s.width * s.height, default=None)


def open_container(path: Path) -> InputContainer:
    """Open a media file for reading. Raises `SourceError` with one line that says what to do."""
    import av

    try:
        with path.open("rb") as file:
            start = file.read(12)
    except IsADirectoryError:
        raise SourceError(f"{path}: is a folder; give a video file") from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be opened ({error.strerror}); check its name and its permissions") from None
    if not start:
        raise SourceError(f"{path}: is empty; take another copy of the file")
    try:
        # "file:" keeps a name like "a:b.mp4" from being taken for an address; nothing in the file may lead elsewhere.
        return av.open(f"file:{path}", container_options={"protocol_whitelist": "file"}, metadata_errors="replace", mode="r")
    except av.error.FFmpegError:
        if start[4:8] in (b"ftyp", b"mdat", b"free", b"wide", b"skip"):
            raise SourceError(
                f"{path}: its index (moov) is missing, the recording was not finished or was cut; "
                "take another copy, or repair it with untrunc"
            ) from None
        raise SourceError(f"{path}: is no video that FFmpeg knows; give a video, a picture or a folder") from None


def _announced(container: InputContainer, stream: VideoStream) -> int | None:
    """How many frames an MP4's index promises; None where there is no such index (Matroska, fragments, raw streams).

    `stream.frames` would count those too that an edit list takes out.
    """
    if "mp4" not in container.format.name or not stream.frames:
        return None
    return sum(not entry.is_discard for entry in stream.index_entries) or None


def _bytes(path: Path) -> tuple[int, int]:
    """How long a Matroska or AVI file is and how long its header says it is; the same twice where it does not say."""
    there = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(256)
    if head[:4] == b"RIFF":
        return there, int.from_bytes(head[4:8], "little") + 8
    if head[:4] == b"\x1a\x45\xdf\xa3":  # EBML: a header, then one segment that holds everything
        start, length = _ebml_size(head, 4)
        at = start + (length or 0)
        if head[at : at + 4] == b"\x18\x53\x80\x67":
            start, length = _ebml_size(head, at + 4)
            if length is not None:
                return there, start + length
    return there, there


def _ebml_size(data: bytes, at: int) -> tuple[int, int | None]:
    """Read an element's size: where its content starts, and its length (None: not known, a live recording)."""
    width = 9 - data[at].bit_length() if at < len(data) else 9
    value = int.from_bytes(data[at : at + width], "big") - (1 << 7 * width)
    return at + width, None if width > 8 or value == (1 << 7 * width) - 1 else value
