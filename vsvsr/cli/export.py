"""``vsvsr export``: a network as ONNX, for other programs."""

import importlib.metadata
from pathlib import Path
from typing import Annotated

import typer

from vsvsr import weights
from vsvsr.errors import UserError
from vsvsr.files import refuse_input, written_whole

app = typer.Typer()


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(help="Weights of FastReal: a name that `vsvsr weights list` shows, or a file.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    *,
    window: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Write a network without a state: N frames in, the picture of the last out, at N times the work. For "
            "programs that know one input and one output, as vs-mlrt.",
        ),
    ] = 0,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compute in fp16.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", "-y", help="Replace OUT.onnx if it exists.")] = False,
) -> None:
    """Write FastReal as ONNX (frames of any size), and say what goes in and comes out.

    The network is one step of the recurrence: frame, frame before and state in, next state and picture out.
    """
    try:
        import onnx
    except ImportError:
        raise UserError('vsvsr export needs onnx; run: pip install "vsvsr[onnx]"') from None
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already; give --overwrite to replace it")

    from vsvsr.models.fastreal import load
    from vsvsr.models.fastreal.step import OPSET, Step, Window, described, write_onnx

    source = weights.find(model)
    refuse_input(output, source)
    loaded = load(source)
    network = loaded.network.half() if fp16 else loaded.network
    form = Window(network, window) if window else Step(network)
    tensors = described(form)
    with written_whole(output) as path:
        write_onnx(form, path)
        written = onnx.load(path)
        written.producer_name, written.producer_version = "vsvsr", importlib.metadata.version("vsvsr")
        written.doc_string = f"FastRealVSR, {model if source.name.startswith(model) else source.name}"
        about = {
            "weights_sha256": weights.sha256(source),
            "scale": str(loaded.scale),
            "smallest_side": str(loaded.smallest_side),
            "segment": str(loaded.restarts.segment),
            "warmup": str(loaded.restarts.warmup),
        }
        onnx.helper.set_model_props(written, {**about, **tensors})
        onnx.save(written, path)
    for role, names in (("in", form.INPUTS), ("out", form.OUTPUTS)):
        for name in names:
            typer.echo(f"{role:4}{name:12}{tensors[name]}")
    typer.echo(f"    sides of at least {loaded.smallest_side}, {'fp16' if fp16 else 'fp32'}, opset {OPSET}")
    if not window:
        restarts = loaded.restarts
        typer.echo(
            f"    restart every {restarts.segment} frames: cold {restarts.warmup} frames before, whose pictures are "
            "thrown away"
        )
