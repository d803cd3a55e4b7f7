"""Window attention over three frames for the positions of the current frame that are kept (MIA-VSR, eq. 4 to 6)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vsvsr.ops.dispatch import runs_kernels

# Kept queries of a window are padded to one of these counts; a fuller window takes all its positions. Finer steps cost
# more in gathered bias rows than they save.
_BUCKETS = (16, 32)
_FULL = len(_BUCKETS) + 1
_KINDS = 4
_MOST_KEYS = 48 * 1024  # bytes of a window's padded keys


def window_table(height: int, width: int, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which pixels make up each window of a frame that is padded to multiples of ``window`` and rolled by ``-shift``.

    Args:
        height: of the frame without padding.
        width: likewise.
        window: side of a window.
        shift: 0 or ``window // 2``.
        device: where the tables go.

    Returns:
        Raster indices ``(windows, window ** 2)``, ``height * width`` where a position is padding; and the kind of each
        window ``(windows,)``: 1 is added in the last column and 2 in the last row of windows, where rolled frames join
        pixels from opposite borders. Without a shift every kind is 0. Windows come sorted by kind.
    """
    rows, columns = -(-height // window), -(-width // window)
    raster = torch.arange(height * width, device=device).view(height, width)
    padding = (0, columns * window - width, 0, rows * window - height)
    raster = F.pad(raster, padding, value=height * width).roll((-shift, -shift), (0, 1))
    table = rearrange(raster, "(rows y) (columns x) -> (rows columns) (y x)", y=window, x=window)
    kinds = torch.zeros(rows, columns, dtype=torch.int64, device=device)
    if shift:
        kinds[:, -1] += 1
        kinds[-1] += 2
    kinds, order = kinds.flatten().sort(stable=True)
    return table[order], kinds


def shifted_bias(position_bias: Tensor, window: int, shift: int) -> Tensor:
    """The position bias of each kind of window, with -100 between pixels that the roll brought together.

    Args:
        position_bias: ``(heads, window ** 2, frames * window ** 2)``.
        window: side of a window.
        shift: 0 or ``window // 2``.

    Returns:
        ``(kinds, heads, window ** 2, frames * window ** 2)``; one kind without a shift, four with one.
    """
    if not shift:
        return position_bias[None]
    rolled = torch.arange(window, device=position_bias.device) >= window - shift
    across = (rolled[:, None] != rolled).to(position_bias.dtype) * -100.0
    ones = torch.ones_like(across)
    vertical, horizontal = torch.kron(across, ones), torch.kron(ones, across)
    regions = torch.stack((torch.zeros_like(vertical), horizontal, vertical, torch.minimum(horizontal, vertical)))
    frames = position_bias.shape[-1] // window**2
    return position_bias + regions.repeat(1, 1, frames)[:, None]


class _Windows(NamedTuple):
    """The windows that have work to do, sorted by level (how many queries they are padded to) and kind.

    Attributes:
        pixels: raster index in the batch of frames ``(windows, positions)``; anything where a position is padding.
        padding: bool, likewise.
        kept: bool, likewise: positions whose result is wanted.
        target: row of the result, one behind the last where nothing is wanted.
        groups: level, kind and number of the windows in each run of equal ones.
        total: rows of the result.
    """

    pixels: Tensor
    padding: Tensor
    kept: Tensor
    target: Tensor
    groups: list[tuple[int, int, int]]
    total: int


def _plan(table: Tensor, kinds: Tensor, size: tuple[int, int, int], keep: Tensor | None) -> _Windows:
    """Choose and sort windows for frames of ``size`` (batch, height, width)."""
    batch, height, width = size
    pixels = height * width
    padding = (table == pixels).expand(batch, -1, -1)
    items = torch.arange(batch, device=table.device)[:, None, None] * pixels
    places = (table + items).masked_fill(padding, 0)
    if keep is None:
        total, kept, target = batch * pixels, ~padding, places
    else:
        flat = keep.flatten()
        total, kept, target = int(flat.sum()), flat[places] & ~padding, (flat.cumsum(0) - 1)[places]
    target = target.masked_fill(~kept, total)
    level = torch.bucketize(kept.sum(2), torch.tensor((0, *_BUCKETS), device=table.device))
    if keep is None:
        level.fill_(_FULL)
    key, order = (level * _KINDS + kinds).flatten().sort(stable=True)
    sizes = torch.bincount(key, minlength=(_FULL + 1) * _KINDS).tolist()
    order = order[sum(sizes[:_KINDS]) :]
    groups = [(*divmod(group, _KINDS), size) for group, size in enumerate(sizes) if group >= _KINDS and size]
    places, padding, kept, target = (x.flatten(0, 1).index_select(0, order) for x in (places, padding, kept, target))
    return _Windows(places, padding, kept, target, groups, total)


@torch.library.custom_op("vsvsr::masked_window_attention", mutates_args=())
def _launch(
    query: Tensor,
    key_value: Tensor,
    key_value_bias: Tensor,
    position_bias: Tensor,
    order: Tensor,
    counts: Tensor,
    rows: Tensor,
    window: int,
    shift: int,
) -> Tensor:
    from vsvsr.triton_kernels.masked_window_attention import (  # type: ignore[import-not-found]  # its own folder
        masked_window_attention as launch,
    )

    return launch(  # type: ignore[no-any-return]
        query, key_value, key_value_bias, position_bias, order, counts, rows, window, shift
    )


@_launch.register_fake
def _(
    query: Tensor,
    key_value: Tensor,
    key_value_bias: Tensor,
    position_bias: Tensor,
    order: Tensor,
    counts: Tensor,
    rows: Tensor,
    window: int,
    shift: int,
) -> Tensor:
    return torch.empty_like(query)


def kept_positions(keep: Tensor, window: int, shift: int) -> tuple[Tensor, Tensor]:
    """The positions of every window with the kept ones in front, and how many are kept.

    Args:
        keep: bool ``(b, h, w)``.
        window: side of a window.
        shift: 0 or ``window // 2``.

    Returns:
        int32 ``(b * windows, window ** 2)`` and ``(b * windows,)``, windows in raster order.
    """
    batch, height, width = keep.shape
    padded = F.pad(keep.to(torch.int8), (0, -width % window, 0, -height % window)).roll((-shift, -shift), (1, 2))
    rows, columns = padded.shape[1] // window, padded.shape[2] // window
    kept = padded.view(batch, rows, window, columns, window).transpose(2, 3).reshape(-1, window**2)
    order = kept.argsort(dim=1, descending=True, stable=True)
    return order.to(torch.int32), kept.sum(1, dtype=torch.int32)


def fused_masked_window_attention(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    position_bias: Tensor,
    keep: Tensor | None = None,
    kept: Tensor | None = None,
    *,
    window: int = 8,
    shift: int = 0,
) -> Tensor:
    """``masked_window_attention`` with the kernel, for what ``runs_kernels`` accepts.

    Keys and values are projected everywhere: one large product costs less than gathering windows first.
    """
    channels = tokens.shape[-1]
    current = tokens[:, -1]
    if keep is None:
        keep = torch.ones(current.shape[:3], dtype=torch.bool, device=tokens.device)
        query = F.linear(current.reshape(-1, channels), weight[:channels], bias[:channels])
    else:
        if kept is None:
            kept = keep.flatten().nonzero().squeeze(1)
        query = current.reshape(-1, channels).index_select(0, kept)
        query = F.linear(query, weight[:channels], bias[:channels])
    key_value = F.linear(tokens, weight[channels:], bias[channels:])
    order, counts = kept_positions(keep, window, shift)
    rows = (keep.flatten().cumsum(0) - 1).to(torch.int32)
    attended: Tensor = _launch(
        query,
        key_value.contiguous(),
        bias[channels:].contiguous(),
        position_bias.contiguous(),
        order,
        counts,
        rows,
        window,
        shift,
    )
    return attended


def masked_window_attention(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    position_bias: Tensor,
    keep: Tensor | None = None,
    kept: Tensor | None = None,
    *,
    window: int = 8,
    shift: int = 0,
) -> Tensor:
    """``softmax(q k^T / sqrt(d) + B + M) v`` in each window, for the kept pixels of the last frame.

    Queries are the pixels of the last frame, keys and values the pixels of all frames at the same place. Frames are
    padded with zero tokens to multiples of ``window``; padding serves as key and value, never as query. Windows without
    a kept pixel cost nothing. Rows of a softmax are independent, so a kept pixel gets the same result whatever else is
    kept, up to rounding.

    Args:
        tokens: normalised features ``(b, frames, h, w, c)``, the current frame last.
        weight: of the query, key and value projections ``(3 * c, c)``.
        bias: of the projections ``(3 * c,)``.
        position_bias: B, ``(heads, window ** 2, frames * window ** 2)``.
        keep: the pixels wanted, bool ``(b, h, w)``; None for all of them.
        kept: their raster indices in the batch, int64, if they are known: to list them for the kernel, the host waits.
        window: side of a window.
        shift: frames are rolled by ``-shift`` before they are cut into windows, with M = -100 between pixels from
            opposite borders; 0 or ``window // 2``.

    Returns:
        ``(kept pixels, c)`` in raster order, before the output projection.
    """
    heads = len(position_bias)
    if runs_kernels(tokens, weight, bias, position_bias) and _fits(window, tokens.shape[-1] // heads, tokens.dtype):
        fused = fused_masked_window_attention
        return fused(tokens, weight, bias, position_bias, keep, kept, window=window, shift=shift)
    return masked_window_attention_reference(tokens, weight, bias, position_bias, keep, window=window, shift=shift)


def _fits(window: int, dim: int, dtype: torch.dtype) -> bool:
    """Whether the keys of a window leave room in the shared memory of every GPU that runs kernels."""
    positions, padded = (1 << (size - 1).bit_length() for size in (window**2, dim))
    return positions * padded * dtype.itemsize <= _MOST_KEYS


def masked_window_attention_reference(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    position_bias: Tensor,
    keep: Tensor | None = None,
    *,
    window: int = 8,
    shift: int = 0,
) -> Tensor:
    """The plain form of ``masked_window_attention``."""
    batch, frames, height, width, channels = tokens.shape
    heads, positions = position_bias.shape[:2]
    biases = shifted_bias(position_bias, window, shift)
    table, kinds = window_table(height, width, window, shift, tokens.device)
    plan = _plan(table, kinds, (batch, height, width), keep)

    # Rows of the tokens: frames lie one behind the other within an item of the batch.
    pixels = height * width
    item = plan.pixels // pixels
    first_frame = (plan.pixels + item * ((frames - 1) * pixels))[:, None]
    rows = first_frame + torch.arange(frames, device=tokens.device)[:, None] * pixels
    flat = tokens.reshape(-1, channels)
    windows = flat.index_select(0, rows.flatten()).view(-1, frames * positions, channels)
    if table.numel() != pixels:
        windows = windows.masked_fill(plan.padding.repeat(1, frames)[..., None], 0.0)
    projected = F.linear(windows, weight[channels:], bias[channels:])
    key, value = rearrange(projected, "windows keys (kv heads d) -> kv windows heads keys d", kv=2, heads=heads)

    # Padding and pixels that only fill up a window's queries share one row behind the others, which is dropped.
    targets, results = [], []
    sizes = [size for _, _, size in plan.groups]
    parts = zip(plan.groups, *(x.split_with_sizes(sizes) for x in (windows, key, value)), strict=True)
    start = 0
    for (level, kind, size), tokens_, key_, value_ in parts:
        part = slice(start, start + size)
        start += size
        target = plan.target[part]
        mask = biases[kind][None]  # the CPU's fast path needs four dimensions
        if level < _FULL:
            pick = plan.kept[part].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, : _BUCKETS[level - 1]]
            wanted = flat.index_select(0, rows[part, -1].gather(1, pick).flatten())
            target = target.gather(1, pick)
            mask = mask[0].transpose(0, 1).flatten(1).index_select(0, pick.flatten())
            mask = mask.view(*pick.shape, heads, -1).transpose(1, 2)
        else:
            wanted = tokens_[:, -positions:]
        query = F.linear(wanted, weight[:channels], bias[:channels])
        query = query.view(size, -1, heads, channels // heads).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key_, value_, attn_mask=mask)
        targets.append(target.flatten())
        results.append(rearrange(attended, "windows heads queries d -> (windows queries) (heads d)"))
    if not results:
        return tokens.new_empty(0, channels)
    attended = torch.cat(results)
    result = attended.new_empty(plan.total + 1, channels)
    return result.index_copy_(0, torch.cat(targets), attended)[: plan.total]
