"""Raw video frames with exact timestamps as a Matroska stream, for ffmpeg's standard input.

YUV4MPEG carries neither timestamps nor most colour tags; a Matroska stream carries both, and ffmpeg reads it from a
pipe. Elements are those of RFC 9559; sizes and numbers are big-endian.
"""

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
class VideoTrack:
    """What the one track of the stream holds.

    Attributes:
        fourcc: four bytes naming the layout of a frame, as in ffmpeg's table of raw formats.
        sample_aspect_ratio: width over height of one sample.
        frame_rate: nominal, for rate control; the timestamps are what counts.
    """

    width: int
    height: int
    fourcc: bytes
    colour: Colour
    sample_aspect_ratio: Fraction
    frame_rate: Fraction


def _element(name: int, payload: bytes) -> bytes:
    return _name(name) + _size(len(payload)) + payload


def _name(name: int) -> bytes:
    return name.to_bytes((name.bit_length() + 7) // 8)


def _size(size: int) -> bytes:
    return (1 << 56 | size).to_bytes(8)


def _number(name: int, value: int) -> bytes:
    return _element(name, value.to_bytes(8))


def _colour(colour: Colour) -> bytes:
    siting = b""
    if colour.chroma_location in (0, 1, 2, 3):
        siting = _number(0x55B7, 1 if colour.chroma_location in (0, 2) else 2)
        siting += _number(0x55B8, 1 if colour.chroma_location in (2, 3) else 2)
    numbers = _number(0x55B1, colour.matrix) + siting + _number(0x55B9, 2 if colour.full_range else 1)
    return _element(0x55B0, numbers + _number(0x55BA, colour.transfer) + _number(0x55BB, colour.primaries))


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
            _colour(track.colour),
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
