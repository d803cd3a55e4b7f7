"""Raw video frames with exact timestamps as a Matroska stream, for ffmpeg's standard input.

YUV4MPEG carries neither timestamps nor most colour tags; a Matroska stream carries both, and ffmpeg reads it from a
pipe. Elements are those of RFC 9559; sizes and numbers are big-endian.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

TIMESTAMPS_PER_SECOND = 1_000_000_000
"""Resolution of the stream's timestamps: `TimestampScale` is 1 ns."""


@dataclass(frozen=True, kw_only=True)
class Colour:
    """Colour tags by their numbers in ITU-T H.273; 2 is "unspecified".

    Attributes:
        full_range: samples use the whole range of numbers, not the limited one.
        chroma_location: numbered as VapourSynth's ``_ChromaLocation``: 0 left, 1 centre, 2 top left, 3 top.
    """

    matrix: int
    transfer: int
    primaries: int
    full_range: bool
    chroma_location: int | None


@dataclass(frozen=True, kw_only=True)
class Mastering:
    """The display that a film was graded on, as SMPTE ST 2086 has it.

    Attributes:
        chromaticities: x and y in CIE 1931 of red, green, blue and white.
        luminance: lowest and highest, in cd/m2.
    """

    chromaticities: tuple[tuple[float, float], ...]
    luminance: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class VideoTrack:
    """What the one track of the stream holds.

    Attributes:
        fourcc: four bytes naming the layout of a frame, as in ffmpeg's table of raw formats.
        sample_aspect_ratio: width over height of one sample.
        frame_rate: nominal, for rate control; the timestamps are what counts.
        mastering: of HDR, if the film says.
        light_level: of HDR, if the film says: the brightest pixel and the brightest mean of a frame, in cd/m2.
    """

    width: int
    height: int
    fourcc: bytes
    colour: Colour
    sample_aspect_ratio: Fraction
    frame_rate: Fraction
    mastering: Mastering | None = None
    light_level: tuple[int, int] | None = None


def _element(name: int, payload: bytes) -> bytes:
    return _name(name) + _size(len(payload)) + payload


def _name(name: int) -> bytes:
    return name.to_bytes((name.bit_length() + 7) // 8)


def _size(size: int) -> bytes:
    return (1 << 56 | size).to_bytes(8)


def _number(name: int, value: int) -> bytes:
    return _element(name, value.to_bytes(8))


def _real(name: int, value: float) -> bytes:
    return _element(name, struct.pack(">d", value))


def _mastering(mastering: Mastering) -> bytes:
    values = [value for point in mastering.chromaticities for value in point]
    names = range(0x55D1, 0x55D9)  # red x, red y, green, blue, white
    low, high = mastering.luminance
    numbers = b"".join(_real(name, value) for name, value in zip(names, values, strict=True))
    return _element(0x55D0, numbers + _real(0x55D9, high) + _real(0x55DA, low))


def _colour(track: VideoTrack) -> bytes:
    colour, siting, hdr = track.colour, b"", b""
    if colour.chroma_location in (0, 1, 2, 3):
        siting = _number(0x55B7, 1 if colour.chroma_location in (0, 2) else 2)
        siting += _number(0x55B8, 1 if colour.chroma_location in (2, 3) else 2)
    numbers = _number(0x55B1, colour.matrix) + siting + _number(0x55B9, 2 if colour.full_range else 1)
    if track.light_level is not None:
        hdr += _number(0x55BC, track.light_level[0]) + _number(0x55BD, track.light_level[1])
    if track.mastering is not None:
        hdr += _mastering(track.mastering)
    return _element(0x55B0, numbers + _number(0x55BA, colour.transfer) + _number(0x55BB, colour.primaries) + hdr)


def header(track: VideoTrack) -> bytes:
    """Everything before the first frame."""
    display = track.sample_aspect_ratio * track.width / track.height
    video = b"".join(
        (
            _number(0xB0, track.width),
            _number(0xBA, track.height),
            _number(0x54B0, display.numerator),
            _number(0x54BA, display.denominator),
            _number(0x54B2, 3),  # display size is an aspect ratio
            _element(0x2EB524, track.fourcc),
            _colour(track),
        )
    )
    entry = b"".join(
        (
            _number(0xD7, 1),
            _number(0x73C5, 1),
            _number(0x83, 1),  # a video track
            _element(0x22B59C, b"und"),  # no language, where the default is English
            _element(0x86, b"V_UNCOMPRESSED"),
            _number(0x23E383, round(TIMESTAMPS_PER_SECOND / track.frame_rate)),
            _element(0xE0, video),
        )
    )
    information = _number(0x2AD7B1, 1_000_000_000 // TIMESTAMPS_PER_SECOND)
    return b"".join(
        (
            _element(0x1A45DFA3, _element(0x4282, b"matroska") + _number(0x4287, 4) + _number(0x4285, 2)),
            _name(0x18538067) + b"\x01" + b"\xff" * 7,  # a segment of unknown size
            _element(0x1549A966, information),
            _element(0x1654AE6B, _element(0xAE, entry)),
        )
    )


def frame(
    timestamp: int, duration: int, planes: Iterable[bytes | memoryview], size: int
) -> Iterable[bytes | memoryview]:
    """One frame as pieces to be written one after the other: a cluster with one block.

    Args:
        timestamp: when it is shown, in nanoseconds, not negative.
        duration: how long, in nanoseconds.
        planes: the samples, in the order that ``fourcc`` says.
        size: of all planes together, in bytes.
    """
    block = b"\x81\x00\x00\x00"  # track 1, 0 after the cluster's timestamp, no flags
    length = _number(0x9B, duration)
    block_head = _name(0xA1) + _size(len(block) + size) + block
    group_head = _name(0xA0) + _size(len(length) + len(block_head) + size) + length
    time = _number(0xE7, timestamp)
    yield (
        _name(0x1F43B675) + _size(len(time) + len(group_head) + len(block_head) + size) + time + group_head + block_head
    )
    yield from planes
