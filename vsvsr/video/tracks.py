"""What a file has besides its picture, and what of it another container can hold."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vsvsr.video.ffmpeg import url

MOV = frozenset({".mp4", ".m4v", ".mov"})
_TEXT = frozenset({"ass", "mov_text", "ssa", "srt", "subrip", "text", "webvtt"})
_SUBTITLES = {
    ".mkv": {**dict.fromkeys(_TEXT, "copy"), "mov_text": "srt", "dvb_subtitle": "copy", "dvd_subtitle": "copy"}
    | {"hdmv_pgs_subtitle": "copy", "hdmv_text_subtitle": "copy"},
    ".webm": {**dict.fromkeys(_TEXT, "webvtt"), "webvtt": "copy"},
    ".ts": dict.fromkeys(("dvb_subtitle", "dvb_teletext", "hdmv_pgs_subtitle"), "copy"),
    **{suffix: {**dict.fromkeys(_TEXT, "mov_text"), "mov_text": "copy", "dvd_subtitle": "copy"} for suffix in MOV},
}
"""Codecs of subtitles that a container can hold, and what ffmpeg makes of them."""

_MIME_TYPES = {"mjpeg": "image/jpeg", "png": "image/png"}
"""Of pictures that Matroska attaches as files; ffmpeg would copy them as films of one frame."""

_TRACK = re.compile(
    r"\s+Stream #0:(\d+)(?:\[\w+\])?(?:\(([^)]*)\))?: (Video|Audio|Subtitle|Attachment|Data): (\w+)(.*)"
)
_ABOUT = re.compile(r"\s+(filename|title)\s*: (.*)")


@dataclass(frozen=True, kw_only=True)
class Track:
    """A track of a file as ffmpeg describes it.

    Attributes:
        index: ffmpeg's number of it.
        kind: ``Video``, ``Audio``, ``Subtitle``, ``Attachment`` or ``Data``.
        codec: ffmpeg's name of it.
        language: as the file has it, such as ``eng``, ``pt-BR`` or ``eng,fra``, or empty.
        is_default: players choose it.
        is_forced: they show it whatever is chosen.
        is_cover: it is a picture attached to the file.
        title: that players show.
        name: of the attached file, if it is one.
        is_chapters: it holds titles of chapters, which ffmpeg reads and writes by itself.
    """

    index: int
    kind: str
    codec: str
    language: str = ""
    is_default: bool = False
    is_forced: bool = False
    is_cover: bool = False
    title: str = ""
    name: str = ""
    is_chapters: bool = False

    def __str__(self) -> str:
        what = {"Subtitle": "subtitles", "Video": "picture"}.get(self.kind, self.kind.lower())
        return f"{what} {self.index} ({self.name or self.codec})"


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What goes into a file besides its picture.

    Attributes:
        picture: the track whose place another picture takes; None without one.
        tracks: those that ffmpeg takes from the source, with the encoder of each.
        covers: pictures that are attached as files.
        left_out: what the container cannot hold.
    """

    picture: Track | None = None
    tracks: list[tuple[Track, str]] = field(default_factory=list)
    covers: list[Track] = field(default_factory=list)
    left_out: list[Track] = field(default_factory=list)

    def marks(self) -> list[str]:
        """Output options of ffmpeg that say of the first track what the source says of its picture."""
        picture, options = self.picture, list[str]()
        if picture is None:
            return options
        if marks := "+".join(["default"] * picture.is_default + ["forced"] * picture.is_forced):
            options += ["-disposition:0", marks]
        for name, value in (("language", picture.language), ("title", picture.title)):
            if value:
                options += ["-metadata:s:0", f"{name}={value}"]
        return options

    def maps(self, source: int, first: int) -> list[str]:
        """Output options of ffmpeg that take the tracks.

        Args:
            source: number of the input that they are from.
            first: number of the first of them in the output.
        """
        taken: list[str] = []
        for number, (track, encoder) in enumerate(self.tracks, start=first):
            taken += ["-map", f"{source}:{track.index}", f"-c:{number}", encoder]
        return taken

    def attached(self, files: Sequence[Path]) -> list[str]:
        """Output options of ffmpeg that attach ``files``, which are ``covers``."""
        before = sum(track.kind == "Attachment" for track, _ in self.tracks)
        options: list[str] = []
        for number, (cover, file) in enumerate(zip(self.covers, files, strict=True), start=before):
            about = (f"mimetype={_MIME_TYPES[cover.codec]}", f"filename={cover.name or file.name}")
            options += ["-attach", url(file), *(word for each in about for word in (f"-metadata:s:t:{number}", each))]
        return options


def beside(described: str, target: Path, *, without: Collection[str] = ()) -> Beside:
    """What of a source, as ffmpeg describes it, goes into the file ``target`` besides the picture.

    Args:
        described: what ffmpeg says.
        target: decides about what is possible.
        without: kinds of tracks that are not wanted.
    """
    suffix = target.suffix.lower()
    tracks = tracks_of(described)
    result = Beside(picture=next((track for track in tracks if track.kind == "Video" and not track.is_cover), None))
    for track in tracks:
        encoder: str | None = None
        if track.is_chapters or track is result.picture or track.kind in without:
            continue
        if track.kind == "Audio":
            encoder = "libopus" if suffix == ".webm" and track.codec not in ("opus", "vorbis") else "copy"
        elif track.kind == "Subtitle":
            encoder = _SUBTITLES.get(suffix, {}).get(track.codec)
        elif track.kind == "Attachment":
            encoder = "copy" if suffix == ".mkv" else None
        elif track.is_cover and suffix in MOV - {".mov"}:
            encoder = "copy"
        elif track.is_cover and suffix == ".mkv" and track.codec in _MIME_TYPES:
            result.covers.append(track)
            continue
        if encoder is None:
            result.left_out.append(track)
        else:
            result.tracks.append((track, encoder))
    return result


def tracks_of(described: str) -> list[Track]:
    """The tracks in what ffmpeg says about a file. It lists those that belong together first, as groups."""
    tracks: list[Track] = []
    for line in described.splitlines():
        found, about = _TRACK.match(line), _ABOUT.match(line)
        if found:
            index, language, kind, codec, more = found.groups()
            tracks.append(
                Track(
                    index=int(index),
                    kind=kind,
                    codec=codec,
                    language=language or "",
                    is_default="(default)" in more,
                    is_forced="(forced)" in more,
                    is_cover="(attached pic)" in more,
                    is_chapters=codec == "bin_data" and "(text " in more,
                )
            )
        elif about and tracks:
            told = about[2].strip()
            last = tracks[-1]
            tracks[-1] = replace(last, title=told) if about[1] == "title" else replace(last, name=told)
    return sorted({track.index: track for track in reversed(tracks)}.values(), key=lambda track: track.index)
