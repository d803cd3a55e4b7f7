"""FastRealVSR as functions of tensors alone, and their ONNX form."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from vsvsr.models.fastreal.network import FastRealVSR

OPSET = 17
"""From 20 on the warp is sampled in a mode of another name, which OpenVINO refuses."""


class Propagate(nn.Module):
    """``(frame, previous, state, warm) -> next_state``, a step without its picture.

    Args:
        network: whose step it is.
    """

    INPUTS = ("frame", "previous", "state", "warm")
    OUTPUTS = ("next_state",)

    def __init__(self, network: FastRealVSR) -> None:
        super().__init__()
        self.network = network

    def forward(self, frame: Tensor, previous: Tensor, state: Tensor, warm: Tensor) -> Tensor:
        """See `FastRealVSR.propagate`.

        Args:
            frame: ``(1, 3, h, w)``.
            previous: the frame before it; for a cold start anything finite.
            state: the state after ``previous``, ``(1, channels, h, w)``; for a cold start anything finite.
            warm: ``(1,)``: 1, or 0 for a cold start, which fuses zeros instead of a state.
        """
        network = self.network
        features = network.rb1(frame)
        carried = network.carry(features, state, network.flow(frame, previous))
        return network.rb2(torch.cat((carried * warm, features), dim=1))  # type: ignore[no-any-return]


class Picture(nn.Module):
    """``(state, frame) -> picture``, what is made of a state.

    Args:
        network: whose picture it is.
    """

    INPUTS = ("state", "frame")
    OUTPUTS = ("picture",)

    def __init__(self, network: FastRealVSR) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: Tensor, frame: Tensor) -> Tensor:
        """See `FastRealVSR.reconstruct`."""
        return self.network.reconstruct(state, frame)


class Step(nn.Module):
    """``(frame, previous, state, warm) -> (next_state, picture)``: `Propagate`, then `Picture`.

    Args:
        network: whose step it is.
    """

    INPUTS = Propagate.INPUTS
    OUTPUTS = (*Propagate.OUTPUTS, *Picture.OUTPUTS)

    def __init__(self, network: FastRealVSR) -> None:
        super().__init__()
        self.network = network
        self.propagate = Propagate(network)
        self.picture = Picture(network)

    def forward(self, frame: Tensor, previous: Tensor, state: Tensor, warm: Tensor) -> tuple[Tensor, Tensor]:
        """See `Propagate` and `Picture`."""
        following = self.propagate(frame, previous, state, warm)
        return following, self.picture(following, frame)


class Window(nn.Module):
    """``input -> picture``: the picture of the last of a few frames, from a cold start at the first.

    Args:
        network: whose pictures they are.
        frames: how many.
    """

    INPUTS = ("input",)
    OUTPUTS = Picture.OUTPUTS

    def __init__(self, network: FastRealVSR, frames: int) -> None:
        super().__init__()
        self.network = network
        self.frames = frames

    def forward(self, clip: Tensor) -> Tensor:
        """Frames one after the other as channels ``(1, 3 * frames, h, w)`` to the picture of the last."""
        frame, *later = clip.chunk(self.frames, dim=1)
        state = self.network.propagate(frame, None, None)
        for following in later:
            state, frame = self.network.propagate(following, frame, state), following
        return self.network.reconstruct(state, frame)


type Form = Propagate | Picture | Step | Window

MEANINGS = {
    "frame": "RGB of the frame, full range, 0 to 1 (1, 3, height, width)",
    "previous": "the frame before it, the same size; for a cold start the frame itself",
    "state": "next_state of the step before (1, {channels}, height, width); for a cold start zeros",
    "warm": "(1,): 1, or 0 for a cold start: first frame of a scene",
    "input": "RGB of {frames} frames one after the other, full range, 0 to 1 (1, {inputs}, height, width)",
    "next_state": "what the next step takes as state",
    "picture": "RGB of the last frame, not clamped (1, 3, {scale} height, {scale} width)",
}
"""Inputs and outputs of all forms."""


def described(form: Form) -> dict[str, str]:
    """Inputs and outputs by name, in their order, for people."""
    config, frames = form.network.config, getattr(form, "frames", 1)
    numbers = {"channels": config.channels, "scale": config.scale, "frames": frames, "inputs": 3 * frames}
    return {name: MEANINGS[name].format(**numbers) for name in (*form.INPUTS, *form.OUTPUTS)}


def write_onnx(form: Form, path: Path) -> None:
    """Write a form of a network as ONNX, for frames of any size: the dimensions ``height`` and ``width`` are open.

    Args:
        form: of a network on the CPU, in fp32 or in half precision.
        path: of the file.
    """
    config = form.network.config
    frame = torch.zeros((1, 3, 48, 64), dtype=form.network.conv_last.weight.dtype)
    examples = {
        "frame": frame,
        "previous": frame,
        "state": frame.new_zeros((1, config.channels, 48, 64)),
        "warm": frame.new_ones(1),
        "input": frame.repeat(1, getattr(form, "frames", 1), 1, 1),
    }
    with warnings.catch_warnings(), torch.no_grad():
        # Of the exporter, which is deprecated: its successor takes ten to fifty times as long for the hundreds of small
        # operations of the flow.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            form.eval(),
            tuple(examples[name] for name in form.INPUTS),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(form.INPUTS),
            output_names=list(form.OUTPUTS),
            dynamic_axes={name: {2: "height", 3: "width"} for name in form.INPUTS if name != "warm"},
        )
