"""Window attention over three frames for the positions of the current frame that are kept (MIA-VSR, eq. 4 to 6)."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Kept queries of a window are padded to one of these counts; a fuller window takes all its positions. Finer steps cost
# more in gathered bias rows than they save.
_BUCKETS = (16, 32)


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
    table = raster.view(rows, window, columns, window).transpose(1, 2).reshape(rows * columns, window**2)
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


def masked_window_attention(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    position_bias: Tensor,
    keep: Tensor | None = None,
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
        window: side of a window.
        shift: frames are rolled by ``-shift`` before they are cut into windows, with M = -100 between pixels from
            opposite borders; 0 or ``window // 2``.

    Returns:
        ``(kept pixels, c)`` in raster order, before the output projection.
    """
    batch, frames, height, width, channels = tokens.shape
    pixels, positions = height * width, window**2
    heads = len(position_bias)
    biases = shifted_bias(position_bias, window, shift)
    table, kinds = window_table(height, width, window, shift, tokens.device)
    padded = table.numel() != pixels
    items = torch.arange(batch, device=tokens.device)[:, None, None]
    padding = (table == pixels).expand(batch, -1, -1)
    queries = table + items * pixels
    if keep is None:
        kept, total = ~padding, batch * pixels
        target = queries
    else:
        flat = keep.flatten()
        kept = ~padding & flat[queries.masked_fill(padding, 0)] if padded else flat[queries]
        total = int(flat.sum())
        target = (flat.cumsum(0) - 1)[queries.masked_fill(padding, 0)]
    # Results of padding and of pixels that only fill up a bucket go to one row behind the others, and are dropped.
    target = target.masked_fill(~kept, total).flatten(0, 1)
    sources = (table + items * (frames * pixels)).flatten(0, 1)
    padding, kept, kinds = padding.flatten(0, 1), kept.flatten(0, 1), kinds.repeat(batch)

    # Windows are sorted by bucket and kind, so that each group is one call on views.
    counts = kept.sum(1)
    bucket = torch.bucketize(counts, torch.tensor((0, *_BUCKETS), device=tokens.device))
    groups = bucket * len(biases) + kinds
    if keep is None:
        groups = (len(_BUCKETS) + 1) * len(biases) + kinds
    groups, order = groups.sort(stable=True)
    sizes = torch.bincount(groups, minlength=(len(_BUCKETS) + 2) * len(biases)).tolist()
    order = order[sum(sizes[: len(biases)]) :]
    sources, padding, target, kept = sources[order], padding[order], target[order], kept[order]

    offsets = torch.arange(frames, device=tokens.device)[:, None] * pixels
    rows = (sources[:, None] + offsets).masked_fill(padding[:, None], 0)
    flat_tokens = tokens.reshape(-1, channels)
    windows = flat_tokens.index_select(0, rows.flatten()).view(-1, frames * positions, channels)
    if padded:
        windows = windows.masked_fill(padding.repeat(1, frames)[..., None], 0.0)
    key, value = (
        F.linear(windows, weight[channels:], bias[channels:])
        .view(-1, frames * positions, 2, heads, channels // heads)
        .permute(2, 0, 3, 1, 4)
    )

    result = tokens.new_empty(total + 1, channels)
    first = 0
    for group, size in enumerate(sizes):
        level, kind = divmod(group, len(biases))
        if level == 0 or size == 0:
            continue
        part = slice(first, first + size)
        first += size
        chosen, places = rows[part, -1], target[part]
        mask = biases[kind][None]  # the CPU's fast path wants four dimensions
        if level <= len(_BUCKETS):
            # Kept positions first.
            pick = kept[part].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, : _BUCKETS[level - 1]]
            chosen, places = chosen.gather(1, pick), places.gather(1, pick)
            mask = mask[0].transpose(0, 1).flatten(1).index_select(0, pick.flatten())
            mask = mask.view(*pick.shape, heads, -1).transpose(1, 2)
        query = F.linear(flat_tokens.index_select(0, chosen.flatten()), weight[:channels], bias[:channels])
        query = query.view(*chosen.shape, heads, channels // heads).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key[part], value[part], attn_mask=mask)
        result.index_copy_(0, places.flatten(), attended.transpose(1, 2).reshape(-1, channels))
    return result[:total]
