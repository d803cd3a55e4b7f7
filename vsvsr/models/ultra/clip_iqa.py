"""CLIP-IQA (Wang et al., AAAI 2023), the degradation factor of a clip: CLIP RN50 in the layout of OpenAI's weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vsvsr.errors import UserError
from vsvsr.models.common.loading import build
from vsvsr.models.ultra.network import upscale_bicubic
from vsvsr.weights import read_tensors

PAIRS = (
    ("Good image", "bad image"),
    ("Sharp image", "blurry image"),
    ("sharp edges", "blurry edges"),
    ("High resolution image", "low resolution image"),
    ("Noise-free image", "noisy image"),
)
"""Prompts for good and bad; the score is the mean share of the good ones."""
SAMPLES = 5
_UNUSED = ("visual.attnpool.positional_embedding", "input_resolution", "context_length", "vocab_size")
"""Entries of OpenAI's files: an embedding for one size of plane, and sizes."""


def sample_indices(frames: int) -> list[int]:
    """Which frames of a clip are scored: five, or all there are, spread evenly from the first to the last."""
    count = min(frames, SAMPLES)
    return [round(place * (frames - 1) / max(count - 1, 1)) for place in range(count)]


class Bottleneck(nn.Module):
    """Residual block that halves the plane, where it does, by averaging; ``(n, inputs, h, w)`` to ``4 * width``."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.pool = nn.AvgPool2d(stride)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.pool(F.relu(self.bn2(self.conv2(y))))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(self.pool(x))))


class AttentionPool(nn.Module):
    """One attention query, the mean over the plane: ``(n, c, h, w)`` to ``(n, outputs)``.

    CLIP adds a position embedding for one size of plane; CLIP-IQA leaves it out and takes any size.
    """

    def __init__(self, channels: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(x, "n c h w -> n (h w) c")
        mean = x.mean(dim=1, keepdim=True)
        x = torch.cat((mean, x), dim=1)
        parts = (self.q_proj(mean), self.k_proj(x), self.v_proj(x))
        q, k, v = (rearrange(part, "n tokens (heads d) -> n heads tokens d", heads=self.heads) for part in parts)
        pooled = rearrange(F.scaled_dot_product_attention(q, k, v), "n heads 1 d -> n (heads d)")
        return self.c_proj(pooled)  # type: ignore[no-any-return]


class Visual(nn.Module):
    """CLIP's ResNet: pictures ``(n, 3, h, w)``, normalised, to features ``(n, outputs)``."""

    def __init__(self, layers: Sequence[int], width: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        inputs = width
        for place, blocks in enumerate(layers):
            wide = width * 2**place
            stage = [
                Bottleneck(inputs if i == 0 else 4 * wide, wide, 2 if place and i == 0 else 1) for i in range(blocks)
            ]
            self.add_module(f"layer{place + 1}", nn.Sequential(*stage))
            inputs = 4 * wide
        self.stages = len(layers)
        self.attnpool = AttentionPool(inputs, inputs // 64, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for place in (1, 2, 3):
            x = F.relu(self.get_submodule(f"bn{place}")(self.get_submodule(f"conv{place}")(x)))
        x = F.avg_pool2d(x, 2)
        for place in range(self.stages):
            x = self.get_submodule(f"layer{place + 1}")(x)
        return self.attnpool(x)  # type: ignore[no-any-return]


class TextBlock(nn.Module):
    """Transformer block with causal attention over ``(n, tokens, width)``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device, dtype=x.dtype)
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))  # type: ignore[no-any-return]


class ClipIQA(nn.Module):
    """CLIP RN50 with both towers, as a judge of quality."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        outputs: int = 1024,
        text_width: int = 512,
        text_layers: int = 12,
        vocabulary: int = 49408,
    ) -> None:
        super().__init__()
        self.visual = Visual(layers, width, outputs)
        self.token_embedding = nn.Embedding(vocabulary, text_width)
        self.positional_embedding = nn.Parameter(torch.zeros(77, text_width))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(
            *(TextBlock(text_width, text_width // 64) for _ in range(text_layers))
        )
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.zeros(text_width, outputs))
        self.logit_scale = nn.Parameter(torch.tensor(4.6052))
        self.register_buffer("mean", torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1), persistent=False)

    def embed_text(self, tokens: Tensor) -> Tensor:
        """Token ids ``(n, 77)``, each text closed by the largest id, to unit features ``(n, outputs)``."""
        x = self.token_embedding(tokens) + self.positional_embedding
        x = self.transformer.get_submodule("resblocks")(x)
        x = self.ln_final(x)[torch.arange(len(x), device=x.device), tokens.argmax(dim=1)]
        return F.normalize(x @ self.text_projection, dim=1)

    @torch.inference_mode()
    def score(self, frames: Tensor, tokens: Tensor) -> Tensor:
        """Quality in [0, 1] of frames, seen at their own size.

        Args:
            frames: RGB in [0, 1], ``(n, 3, h, w)``.
            tokens: ids of :data:`PAIRS`, good and bad in turn, ``(10, 77)``.

        Returns:
            ``(n,)``.
        """
        pictures = F.normalize(self.visual((frames - self.mean) / self.std), dim=1)
        logits = self.logit_scale.exp() * pictures @ self.embed_text(tokens).T
        return logits.view(len(frames), -1, 2).softmax(dim=2)[..., 0].mean(dim=1)


def measure_degradation(judge: ClipIQA, tokens: Tensor, frames: Sequence[Tensor]) -> float:
    """d of a clip: mean score of its :func:`sample_indices`, enlarged as for restoration.

    Args:
        judge: see :func:`load_clip_iqa`.
        tokens: ids of :data:`PAIRS`, ``(10, 77)``, by :func:`vsvsr.models.ultra.base.tokenise`.
        frames: the sampled frames, each ``(3, h, w)``, RGB in [0, 1].
    """
    scores = [judge.score(upscale_bicubic(frame[None]).clamp(0.0, 1.0), tokens) for frame in frames]
    return float(torch.cat(scores).mean())


def load_clip_iqa(path: Path) -> ClipIQA:
    """CLIP RN50 from a local file with OpenAI's names.

    Raises:
        UserError: the file is missing or is something else.
    """
    try:
        return _build(read_tensors(path)[0], path, None)
    except UserError as error:
        remedy = 'give CLIP RN50 by OpenAI, as RN50.pt or safetensors ("resnet50_clip.openai"), or set degradation'
        raise UserError(f"{error}; {remedy}") from error


def holds_clip(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict looks like a CLIP with a ResNet."""
    return "visual.attnpool.q_proj.weight" in tensors


def clip_tensors(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of `ClipIQA`, in fp32, and the names of entries that are no part of it.

    Args:
        tensors: of CLIP RN50 with OpenAI's names.
        path: of the file, for messages.

    Raises:
        UserError: an entry is missing or of another shape.
    """
    extra: list[str] = []
    return _build(tensors, path, extra).state_dict(), extra


def _build(tensors: Mapping[str, Tensor], path: Path, extra: list[str] | None) -> ClipIQA:
    known = {name: tensor for name, tensor in tensors.items() if name not in _UNUSED}
    return build(ClipIQA, known, path, "CLIP RN50", extra=extra)
