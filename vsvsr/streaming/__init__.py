"""When to run what: pure logic over frame numbers and opaque states, without torch and without VapourSynth."""

from vsvsr.streaming.chunked import ChunkedSession, ChunkModel
from vsvsr.streaming.recurrent import RecurrentModel, RecurrentSession
from vsvsr.streaming.sampled import SampledSession
from vsvsr.streaming.segments import Segments
from vsvsr.streaming.session import CutDetector, Session, Source

__all__ = [
    "ChunkModel",
    "ChunkedSession",
    "CutDetector",
    "RecurrentModel",
    "RecurrentSession",
    "SampledSession",
    "Segments",
    "Session",
    "Source",
]
