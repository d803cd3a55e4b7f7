"""Neural video super-resolution for VapourSynth.

Scripts need no import: ``core.vsvsr.FastReal(clip)`` is there once the package is installed. The functions here are
the same filters with types and named arguments for editors and type checkers.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import vapoursynth as vs

__all__ = ["MIA", "FastReal", "Skip", "Stats", "Ultra", "Version"]


def FastReal(
    clip: "vs.VideoNode",
    *,
    model: str | None = None,
    model_path: str | None = None,
    device_index: int | None = None,
    tile: "Sequence[int] | None" = None,
    tile_pad: int | None = None,
    segment: int | None = None,
    warmup: int | None = None,
    state_cache: int | None = None,
    preview: bool | None = None,
    scene_change: bool | None = None,
) -> "vs.VideoNode":
    """FastRealVSR: recurrent super-resolution of real-world video. None stands for the default.

    Args:
        clip: RGBS or RGBH, from 16x16.
        model: shipped weights by name: ``fastreal-compact-x4`` (the default), or ``fastreal-compact-x2`` for twice the
            size.
        model_path: a weights file of your own instead.
        device_index: CUDA device, -1 = CPU; default the first GPU if there is one.
        tile: width and height of spatial tiles in source pixels, 0 = whole frame; less memory, other pixels.
        tile_pad: source pixels of context around every tile; default 16.
        segment: frames between two restarts of the recurrence, 0 = never; default 240.
        warmup: frames before a segment on which the state is warmed up; default 15.
        state_cache: megabytes for kept states, which make seeks faster; default 256.
        preview: start cold shortly before a frame that is sought: fast, approximate; such frames carry the property
            ``VSVSRApproximate``.
        scene_change: restart at frames with the property ``_SceneChangePrev``; default on.

    Returns:
        The clip at the scale of the weights, in the format of the source. Frame n depends on the clip and on the
        arguments alone. Values are not clamped to [0, 1].

    Raises:
        vapoursynth.Error: an argument, the clip or the weights cannot be used.
    """
    import vapoursynth as vs

    return vs.core.vsvsr.FastReal(clip, **_given(locals()))


def Skip(
    clip: "vs.VideoNode",
    *,
    model: str | None = None,
    model_path: str | None = None,
    device_index: int | None = None,
    tile: "Sequence[int] | None" = None,
    tile_pad: int | None = None,
    length: int | None = None,
    overlap: int | None = None,
    state_cache: int | None = None,
    scene_change: bool | None = None,
    threshold: float | None = None,
    budget: float | None = None,
    mode: str | None = None,
) -> "vs.VideoNode":
    """SkipVSR: BasicVSR with the published weights, whose residual blocks can be skipped where nothing changed.

    Args:
        clip: RGBS or RGBH, from 16x16.
        model: ``BasicVSR_REDS4`` (default), ``BasicVSR_Vimeo90K_BIx4`` or ``BasicVSR_Vimeo90K_BDx4``; installed with
            ``vsvsr weights install NAME``.
        model_path: a weights file of your own instead.
        device_index: CUDA device, -1 = CPU; default the first GPU if there is one.
        tile: width and height of spatial tiles in source pixels, 0 = whole frame; less memory, other pixels.
        tile_pad: source pixels of context around every tile; default 16.
        length: frames of a chunk; default 30.
        overlap: frames of context before and after a chunk; default 5.
        state_cache: megabytes for finished frames that may be asked for again; default 256.
        scene_change: end chunks at frames with the property ``_SceneChangePrev``; default on.
        threshold: blocks run where the execution confidence is at least this; default 0: everywhere, BasicVSR itself.
        budget: instead, the share of blocks that shall run on footage like the calibration's, from 0 to 1.
        mode: ``frame`` (default), or ``patch`` as in the paper.

    Returns:
        The clip at four times the size, in the format of the source. Values are not clamped to [0, 1].

    Raises:
        vapoursynth.Error: an argument, the clip or the weights cannot be used.
    """
    import vapoursynth as vs

    return vs.core.vsvsr.Skip(clip, **_given(locals()))


def MIA(
    clip: "vs.VideoNode",
    *,
    model: str | None = None,
    model_path: str | None = None,
    device_index: int | None = None,
    tile: "Sequence[int] | None" = None,
    tile_pad: int | None = None,
    length: int | None = None,
    overlap: int | None = None,
    state_cache: int | None = None,
    scene_change: bool | None = None,
    mask: bool | None = None,
    refresh: int | None = None,
) -> "vs.VideoNode":
    """MIA-VSR: masked inter- and intra-frame window attention, with the authors' weights.

    Args:
        clip: RGBS or RGBH, from 16x16.
        model: no weights are published by name yet.
        model_path: the authors' file, or one of the same layout.
        device_index: CUDA device, -1 = CPU; default the first GPU if there is one.
        tile: width and height of spatial tiles in source pixels, 0 = whole frame; less memory, other pixels.
        tile_pad: source pixels of context around every tile; default 16.
        length: frames of a chunk; default 30.
        overlap: frames of context before and after a chunk; default 5.
        state_cache: megabytes for finished frames that may be asked for again; default 256.
        scene_change: end chunks at frames with the property ``_SceneChangePrev``; default on.
        mask: repeat what a block did one frame before where its input has hardly changed; default on.
        refresh: leave nothing out in every so many-th frame of a pass; default 0, only in the first.

    Returns:
        The clip at four times the size, in the format of the source. Values are not clamped to [0, 1].

    Raises:
        vapoursynth.Error: an argument, the clip or the weights cannot be used.
    """
    import vapoursynth as vs

    return vs.core.vsvsr.MIA(clip, **_given(locals()))


def Ultra(
    clip: "vs.VideoNode",
    *,
    model: str | None = None,
    model_path: str | None = None,
    device_index: int | None = None,
    tile: "Sequence[int] | None" = None,
    tile_pad: int | None = None,
    length: int | None = None,
    overlap: int | None = None,
    state_cache: int | None = None,
    scene_change: bool | None = None,
    base_path: str | None = None,
    prompt: str | None = None,
    degradation: float | None = None,
    clip_iqa_path: str | None = None,
    colour: str | None = None,
    feature_cache: int | None = None,
) -> "vs.VideoNode":
    """UltraVSR: one diffusion step with temporal shift, with the authors' weights on Stable Diffusion 2.1-base.

    Args:
        clip: RGBS or RGBH, from 16x16.
        model: no weights are published by name yet.
        model_path: the authors' ``model_UltraVSR.pkl``, or a network trained by ``vsvsr.training.recipes.ultra``.
        device_index: CUDA device, -1 = CPU; default the first GPU if there is one.
        tile: width and height of spatial tiles in source pixels, 0 = whole frame, rounded down to multiples of 16;
            default 192x192.
        tile_pad: source pixels of context around every tile, twice as many in the UNet; default 16.
        length: frames of a chunk; default 30.
        overlap: frames of context before and after a chunk; default 24, which gives the pixels of the whole clip.
        state_cache: megabytes for finished frames that may be asked for again; default 256.
        scene_change: end chunks at frames with the property ``_SceneChangePrev``; default on.
        base_path: folder of Stable Diffusion 2.1-base in the layout of diffusers; with the authors' file.
        prompt: what the clip shows; default empty.
        degradation: from 0 (ruined) to 1 (clean), one number for the clip; default 0.5.
        clip_iqa_path: instead, weights of CLIP RN50, which measure it on five frames of the clip.
        colour: how the result gets the colours of the source: ``wavelet`` (default), ``adain`` or ``none``.
        feature_cache: megabytes of features that may wait on the device, the others wait in host memory; default no
            limit.

    Returns:
        The clip at four times the size, in the format of the source, with values in [0, 1].

    Raises:
        vapoursynth.Error: an argument, the clip or the weights cannot be used.
    """
    import vapoursynth as vs

    return vs.core.vsvsr.Ultra(clip, **_given(locals()))


def _given(arguments: dict[str, object]) -> dict[str, object]:
    """The named arguments that are not left to their defaults."""
    return {name: value for name, value in arguments.items() if name not in ("vs", "clip") and value is not None}


def Stats(clip: "vs.VideoNode") -> dict[str, int]:
    """What the filter that made ``clip`` has done: steps, warmup_steps, renders, seeks, checkpoint_hits, replays."""
    import vapoursynth as vs

    return dict(vs.core.vsvsr.Stats(clip))


def Version() -> dict[str, object]:
    """Versions of vsvsr and torch, the devices, and the folder of installed weights."""
    import vapoursynth as vs

    return dict(vs.core.vsvsr.Version())
