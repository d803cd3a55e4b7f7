"""``python -m vsvsr.training build|train-flow|train``: make training clips, train the light flow and FastRealVSR."""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from vsvsr.errors import UserError
from vsvsr.models.fastreal import FastRealConfig, FastRealVSR, load_fastreal
from vsvsr.models.fastreal.config import COMPACT
from vsvsr.training.dataset import Dataset, DatasetConfig, build_dataset
from vsvsr.training.flow import train_flow
from vsvsr.training.train import TrainConfig, Trainer


def _network(arguments: argparse.Namespace) -> FastRealVSR:
    """A new network with the given flow estimator, or the one to carry on from."""
    if arguments.start is not None:
        network = load_fastreal(arguments.start).train()
        # A loaded network is for inference; only the flow stays as it is.
        network.requires_grad_(True).flow_estimator.requires_grad_(False)
    else:
        settings = {
            **(COMPACT if arguments.size == "compact" else FastRealConfig()).to_dict(),
            "scale": arguments.scale,
        }
        if arguments.hsa is not None:
            settings["hsa"] = arguments.hsa
        network = FastRealVSR(FastRealConfig.from_dict(settings))
    if arguments.flow is not None:
        network.flow_estimator.load_state_dict(load_file(arguments.flow))
    elif arguments.start is None:
        raise UserError("a new network needs a trained flow estimator; give --flow FILE or --start FILE")
    return network


def _train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    network = _network(arguments)
    metadata = json.loads(arguments.metadata.read_text()) if arguments.metadata is not None else {}
    config = TrainConfig(
        steps=arguments.steps,
        batch=arguments.batch,
        frames=arguments.frames,
        chunk=arguments.chunk,
        learning_rate=arguments.learning_rate,
        bf16=arguments.bf16,
        stateless=arguments.stateless,
        seed=arguments.seed,
        save_minutes=arguments.save_minutes,
    )
    training = Dataset(arguments.data, network, crop=arguments.crop)
    validation = Dataset(arguments.validation, network, crop=arguments.crop)
    trainer = Trainer(
        network, config, training=training, validation=validation, folder=arguments.run, metadata=metadata
    )
    trainer.run()


def _build(arguments: argparse.Namespace) -> None:
    config = DatasetConfig(
        clips=arguments.clips,
        frames=arguments.frames,
        scale=arguments.scale,
        interlaced_share=arguments.interlaced,
        recompressed_share=arguments.recompressed,
        seed=arguments.seed,
    )
    build_dataset(arguments.sources, arguments.target, config)


def _flow(arguments: argparse.Namespace) -> None:
    train_flow(arguments.data, arguments.validation, arguments.target, steps=arguments.steps, seed=arguments.seed)


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
    build.add_argument("--interlaced", type=float, default=0.0, help="share of clips of interlaced origin, 0 to 1")
    build.add_argument("--recompressed", type=float, default=0.0, help="share of clips compressed twice, 0 to 1")
    build.add_argument("--seed", type=int, default=0)
    build.set_defaults(run_command=_build)

    train = commands.add_parser("train", help="stage 1: recurrent training with a pixel loss; carries on where it was")
    train.add_argument("data", type=Path, help="folder that build made")
    train.add_argument("validation", type=Path, help="another one, of photographs that are not trained on")
    train.add_argument("run", type=Path, help="folder of checkpoints, log and exported weights")
    train.add_argument("--size", choices=("compact", "full"), default="compact")
    train.add_argument("--scale", type=int, choices=(2, 4), default=4)
    train.add_argument("--hsa", choices=("none", "full", "blurry", "sharp", "conv"))
    train.add_argument("--flow", type=Path, help="weights of the flow estimator (safetensors)")
    train.add_argument("--start", type=Path, help="trained weights to start from")
    train.add_argument("--steps", type=int, required=True)
    train.add_argument("--batch", type=int, default=4)
    train.add_argument("--frames", type=int, default=30)
    train.add_argument("--chunk", type=int, default=15)
    train.add_argument("--crop", type=int, default=48)
    train.add_argument("--learning-rate", type=float, default=1e-3)
    train.add_argument("--bf16", action="store_true")
    train.add_argument("--stateless", action="store_true", help="force the state to zero: the per-frame twin")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--save-minutes", type=float, default=5.0)
    train.add_argument("--metadata", type=Path, help="JSON object of strings for the exported files")
    train.set_defaults(run_command=_train)
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
