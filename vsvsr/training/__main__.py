"""``python -m vsvsr.training build|train-flow|train|train-sharp``: make training clips, train flow and FastRealVSR.

On several GPUs: ``accelerate launch --num_processes 4 -m vsvsr.training train ...``.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import load_file

from vsvsr.errors import UserError
from vsvsr.models.fastreal import HEAD, FastRealConfig, FastRealVSR, load_fastreal
from vsvsr.models.fastreal.config import COMPACT, Variant
from vsvsr.training.data.build import DatasetConfig, build_dataset
from vsvsr.training.data.clips import Dataset
from vsvsr.training.recipes.fastreal import PixelLoss, TrainConfig, Trainer, processes
from vsvsr.training.recipes.fastreal_gan import SharpConfig, SharpTrainer
from vsvsr.training.recipes.light_flow import train_flow


def _network(arguments: argparse.Namespace, hsa: Variant | None) -> FastRealVSR:
    """A new network with the given flow estimator, or the one to carry on from; ``hsa`` overrides its variant."""
    torch.manual_seed(arguments.seed)
    if arguments.start is not None:
        start = load_fastreal(arguments.start)
        base = start.config
    else:
        base = COMPACT if arguments.size == "compact" else FastRealConfig()
    network = FastRealVSR(replace(base, scale=arguments.scale or base.scale, hsa=hsa or base.hsa))
    if arguments.start is not None:
        # Attention of another kind and the head of another scale begin anew.
        changed = ("hsa.",) * (network.config.hsa != base.hsa) + HEAD * (network.scale != base.scale)
        kept = {name: value for name, value in start.state_dict().items() if not name.startswith(changed)}
        network.load_state_dict(kept, strict=not changed)
    if arguments.flow is not None:
        network.flow_estimator.load_state_dict(load_file(arguments.flow))
    elif arguments.start is None:
        raise UserError("a new network needs a trained flow estimator; give --flow FILE or --start FILE")
    return network.to(processes().device)


def _settings(arguments: argparse.Namespace, *, final_rate: float) -> TrainConfig:
    return TrainConfig(
        steps=arguments.steps,
        batch=arguments.batch,
        frames=arguments.frames,
        chunk=arguments.chunk,
        learning_rate=arguments.learning_rate,
        final_rate=final_rate,
        loss=arguments.loss,
        steadiness=arguments.steadiness,
        bf16=arguments.bf16,
        checkpointing=arguments.checkpointing,
        stateless=arguments.stateless,
        seed=arguments.seed,
        save_minutes=arguments.save_minutes,
    )


def _clips(arguments: argparse.Namespace, network: FastRealVSR) -> tuple[Dataset, Dataset]:
    """Training and validation clips; their flows are written by one process."""
    with processes().main_process_first():
        training, validation = (
            Dataset(folder, network, crop=arguments.crop) for folder in (arguments.data, arguments.validation)
        )
    return training, validation


def _metadata(arguments: argparse.Namespace) -> dict[str, str]:
    return json.loads(arguments.metadata.read_text()) if arguments.metadata is not None else {}


def _train(arguments: argparse.Namespace) -> None:
    network = _network(arguments, arguments.hsa)
    training, validation = _clips(arguments, network)
    Trainer(
        network,
        _settings(arguments, final_rate=0.01),
        training=training,
        validation=validation,
        folder=arguments.run,
        metadata=_metadata(arguments),
    ).run()


def _train_sharp(arguments: argparse.Namespace) -> None:
    # The network of stage 1 may have had no attention; this stage is what it is for.
    plain = load_fastreal(arguments.start).config.hsa == "none"
    network = _network(arguments, arguments.hsa or ("full" if plain else None))
    if arguments.vgg is None:
        processes().print("no --vgg FILE: training without the perceptual loss")
    training, validation = _clips(arguments, network)
    SharpTrainer(
        network,
        _settings(arguments, final_rate=1.0),
        SharpConfig(discriminator_channels=arguments.discriminator_channels),
        vgg=arguments.vgg,
        training=training,
        validation=validation,
        folder=arguments.run,
        metadata=_metadata(arguments),
    ).run()


def _build(arguments: argparse.Namespace) -> None:
    config = DatasetConfig(
        clips=arguments.clips,
        frames=arguments.frames,
        scale=arguments.scale,
        clean=arguments.clean,
        noisy_share=arguments.noisy_share,
        interlaced_share=arguments.interlaced,
        recompressed_share=arguments.recompressed,
        seed=arguments.seed,
    )
    build_dataset(arguments.sources, arguments.target, config)


def _flow(arguments: argparse.Namespace) -> None:
    train_flow(arguments.data, arguments.validation, arguments.target, steps=arguments.steps, seed=arguments.seed)


def _add_training(parser: argparse.ArgumentParser, *, steps: int | None, learning_rate: float) -> None:
    """Arguments of both stages."""
    parser.add_argument("data", type=Path, help="folder that build made")
    parser.add_argument("validation", type=Path, help="another one, of photographs that are not trained on")
    parser.add_argument("run", type=Path, help="folder of checkpoints, log, sample pictures and exported weights")
    parser.add_argument("--hsa", choices=get_args(Variant), help="what happens to the hidden state")
    parser.add_argument("--steps", type=int, default=steps, required=steps is None)
    parser.add_argument("--batch", type=int, default=4, help="sequences at once, on all devices together")
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--chunk", type=int, default=15, help="frames between optimiser steps")
    parser.add_argument("--crop", type=int, default=48, help="side of the low-resolution crops")
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--checkpointing", action="store_true", help="less memory for long chunks, more time")
    parser.add_argument("--stateless", action="store_true", help="force the state to zero: the per-frame twin")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-minutes", type=float, default=5.0)
    parser.add_argument("--metadata", type=Path, help="JSON object of strings for the exported files")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vsvsr.training", description=__doc__)
    commands = parser.add_subparsers(required=True)

    flow = commands.add_parser("train-flow", help="train the compact size's flow estimator on clips with known motion")
    flow.add_argument("data", type=Path)
    flow.add_argument("validation", type=Path)
    flow.add_argument("target", type=Path, help="safetensors file to write")
    flow.add_argument("--steps", type=int, default=6000)
    flow.add_argument("--seed", type=int, default=0)
    flow.set_defaults(run_command=_flow)

    build = commands.add_parser("build", help="make degraded clips from a folder of photographs and videos")
    build.add_argument("sources", type=Path)
    build.add_argument("target", type=Path)
    build.add_argument("--clips", type=int, default=300)
    build.add_argument("--frames", type=int, default=30)
    build.add_argument("--scale", type=int, choices=(2, 4), default=4)
    build.add_argument("--clean", action="store_true", help="only downsample: for MIA")
    build.add_argument("--noisy-share", type=float, default=0.0, help="share of noisy captures, encoded well, 0 to 1")
    build.add_argument("--interlaced", type=float, default=0.0, help="share of clips of interlaced origin, 0 to 1")
    build.add_argument("--recompressed", type=float, default=0.0, help="share of clips compressed twice, 0 to 1")
    build.add_argument("--seed", type=int, default=0)
    build.set_defaults(run_command=_build)

    train = commands.add_parser("train", help="stage 1: recurrent training with a pixel loss; carries on where it was")
    _add_training(train, steps=None, learning_rate=1e-3)
    train.add_argument("--size", choices=("compact", "full"), default="compact")
    train.add_argument("--scale", type=int, choices=(2, 4), help="of new weights 4, otherwise that of --start")
    train.add_argument("--flow", type=Path, help="weights of the flow estimator (safetensors)")
    train.add_argument("--start", type=Path, help="trained weights to start from")
    train.add_argument("--loss", choices=get_args(PixelLoss), default="charbonnier")
    train.add_argument("--steadiness", type=float, default=0.0, help="weight of a loss on flicker")
    train.set_defaults(run_command=_train)

    sharp = commands.add_parser(
        "train-sharp", help="stage 2: adversarial training of what stage 1 made; carries on where it was"
    )
    _add_training(sharp, steps=70_000, learning_rate=5e-5)
    sharp.add_argument("--start", type=Path, required=True, help="weights of stage 1")
    sharp.add_argument("--vgg", type=Path, help="torchvision's vgg19 weights file, for the perceptual loss")
    sharp.add_argument("--discriminator-channels", type=int, default=64)
    sharp.set_defaults(run_command=_train_sharp, flow=None, scale=None, loss="charbonnier", steadiness=0.0)
    return parser


def main() -> int:
    """Run the command line; the return value is the exit status."""
    arguments = _parser().parse_args()
    try:
        arguments.run_command(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
