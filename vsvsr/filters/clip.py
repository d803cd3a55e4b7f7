"""What a filter knows of the clip it is given."""

from dataclasses import dataclass

from vsvsr.errors import UserError

SMALLEST_SIDE = 16


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Format and size of a clip.

    Attributes:
        format: VapourSynth's name, such as RGBS; empty when it varies.
        width: pixels; 0 when it varies.
        height: pixels; 0 when it varies.
        frames: length.
    """

    format: str
    width: int
    height: int
    frames: int

    def require_float_rgb(self) -> None:
        """Raise what the user has to do when the clip is not RGBS or RGBH of a constant, sufficient size."""
        if not self.format or not self.width or not self.height:
            raise UserError(
                "the clip's format or size varies; make it constant, for example with "
                "core.resize.Bicubic(clip, width=640, height=360, format=vs.RGBS)"
            )
        if self.format not in ("RGBS", "RGBH"):
            raise UserError(
                f"the clip is {self.format}, allowed are RGBS and RGBH; convert it with {self._conversion()}"
            )
        if min(self.width, self.height) < SMALLEST_SIDE:
            raise UserError(
                f"the clip is {self.width}x{self.height}, the smallest possible is {SMALLEST_SIDE}x{SMALLEST_SIDE}"
            )

    def _conversion(self) -> str:
        if self.format.startswith("RGB"):
            return "core.resize.Bicubic(clip, format=vs.RGBS)"
        matrix = "709" if self.width > 1024 or self.height > 576 else "170m"
        return f'core.resize.Bicubic(clip, format=vs.RGBS, matrix_in_s="{matrix}")'
