"""How papers on video super-resolution judge REDS4, Vid4 and Vimeo-90K-T, on folders in the layout of these sets."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vsvsr.errors import UserError, shown
from vsvsr.evaluation.metrics import check_size, luma, mean_of_finite, psnr, round_to_8_bit, ssim

_LIST = "sep_testlist.txt"
"""In the folder of Vimeo-90K: the test clips, one in a line."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is judged, and how. Borders are not cropped in any of them.

    Attributes:
        clips: names of their folders; none for those that Vimeo-90K lists, which lie below ``sequences``.
        y: judge the luma of ITU-R BT.601; else R, G and B.
        centre: judge the middle frame of each clip alone.
    """

    clips: tuple[str, ...] = ()
    y: bool
    centre: bool = False


PROTOCOLS = {
    "reds4": Protocol(clips=("000", "011", "015", "020"), y=False),
    "vid4": Protocol(clips=("calendar", "city", "foliage", "walk"), y=True),
    "vimeo": Protocol(y=True, centre=True),
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A clip of a set: its name, the folder of results and that of the truth."""

    name: str
    result: Path
    truth: Path


def find_pairs(protocol: Protocol, results: Path, truth: Path) -> list[Pair]:
    """The clips that a protocol judges.

    Args:
        protocol: says which.
        results: a folder with a folder of pictures for each clip.
        truth: the same; for Vimeo-90K the folder that holds ``sequences`` and ``sep_testlist.txt``.

    Raises:
        UserError: the list or a folder is missing.
    """
    names, parent = protocol.clips, truth
    if not names:
        names, parent = _listed(truth), truth / "sequences"
    pairs = [Pair(name=name, result=results / name, truth=parent / name) for name in names]
    for folder in (folder for pair in pairs for folder in (pair.result, pair.truth)):
        if not folder.is_dir():
            raise UserError(f"{folder} is missing; a folder of pictures for each of {len(pairs)} clips is expected")
    return pairs


def _listed(folder: Path) -> tuple[str, ...]:
    try:
        lines = (folder / _LIST).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{folder} holds no {_LIST}; give the folder of Vimeo-90K (vimeo_septuplet)") from None
    if not lines:
        raise UserError(f"{folder / _LIST} lists no clips")
    for name in lines:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{folder / _LIST} lists {shown(name)}, which is no clip of Vimeo-90K")
    return tuple(lines)


def judged[T](protocol: Protocol, pair: Pair, result: list[T], truth: list[T]) -> list[tuple[T, T]]:
    """The pictures to compare, of all pictures of a clip. Of a single frame its picture alone may be there.

    Raises:
        UserError: there are more or fewer results than frames.
    """
    allowed = {len(truth), 1} if protocol.centre else {len(truth)}
    if len(result) not in allowed:
        raise UserError(f"{pair.result} holds {len(result)} pictures, {pair.truth} {len(truth)}; they must be as many")
    if protocol.centre:
        return [(result[len(result) // 2], truth[len(truth) // 2])]
    return list(zip(result, truth, strict=True))


def score_pictures(protocol: Protocol, pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean PSNR in dB and mean SSIM of pictures ``(3, h, w)`` in [0, 1], rounded to 8 bits, against their truth.

    Raises:
        UserError: a picture is of another size than its truth.
    """
    rows = []
    for picture, reference in pairs:
        if picture.shape != reference.shape:
            given, wanted = (f"{x.shape[2]}x{x.shape[1]}" for x in (picture, reference))
            raise UserError(f"a picture of {given} cannot be compared with a truth of {wanted}; both must be alike")
        check_size(picture)
        rounded = [round_to_8_bit(x[None]) for x in (picture, reference)]
        compared = [luma(x) if protocol.y else 255 * x for x in rounded]
        rows.append((float(psnr(*compared)), float(ssim(*compared))))
    mean_psnr, mean_ssim = (mean_of_finite(column) for column in zip(*rows, strict=True))
    return mean_psnr, mean_ssim
