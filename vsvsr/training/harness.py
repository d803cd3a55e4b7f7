"""What every training is made of: processes, averaged weights, optimiser, schedule, run folder, and the loop.

A recipe is a network, its losses and its settings; it is composed of these parts and handed to `train`.
"""

import copy
import csv
import json
import math
import pickle
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env, reduce
from torch import Tensor, nn

from vsvsr.errors import UserError
from vsvsr.files import explain, replace_file
from vsvsr.training.settings import RunSettings, write_options

Row = dict[str, float | str]


@dataclass(frozen=True)
class Processes:
    """This process among those that ``accelerate launch`` started.

    Attributes:
        device: of this process.
        index: of this process.
        count: how many there are.
    """

    device: torch.device
    index: int = 0
    count: int = 1

    @classmethod
    def launched(cls) -> "Processes":
        state = _state()
        return cls(state.device, state.process_index, state.num_processes)

    @property
    def main(self) -> bool:
        return self.index == 0

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs the block before the others: files are written once."""
        if self.count == 1:
            yield
            return
        with _state().main_process_first():
            yield

    def check_batch(self, batch: int) -> None:
        """Raises a `UserError` where a batch cannot be shared evenly."""
        if batch % self.count:
            raise UserError(
                f"a batch of {batch} cannot be shared by {self.count} processes; give a multiple of their number"
            )

    def average(self, tensor: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.count == 1:
            return tensor
        mean: Tensor = reduce(tensor, "mean")
        return mean

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        total = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))


def _state() -> PartialState:
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu)


class AveragedWeights[N: nn.Module]:
    """An exponential moving average of a network's trainable weights.

    The decay rises with the step: ``min(decay, (step + 1) / (step + 10))``.

    Attributes:
        network: a copy with the averaged weights, in evaluation mode.
    """

    def __init__(self, network: N, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._source, self._decay = network, decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step``."""
        decay = min(self._decay, (step + 1) / (step + 10))
        pairs = zip(self.network.parameters(), self._source.parameters(), strict=True)
        targets, values = zip(*((a, b) for a, b in pairs if b.requires_grad), strict=True)
        torch._foreach_lerp_(targets, values, 1 - decay)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A linear rise, then a cosine: the learning rate as a share of its highest.

    Attributes:
        steps: length of the cosine.
        final: share at its end.
        warmup: updates over which the rate rises from zero.
        updates: of the optimiser in each step.
    """

    steps: int
    final: float = 0.0
    warmup: int = 1
    updates: int = 1

    def share(self, step: int, update: int = 0) -> float:
        """The share at update ``update`` of ``step``."""
        rise = min(1.0, (step * self.updates + update + 1) / max(self.warmup, 1))
        fall = (1 + self.final) / 2 + (1 - self.final) / 2 * math.cos(math.pi * step / self.steps)
        return rise * fall


class Optimiser:
    """Adam whose gradients are averaged over the processes.

    Args:
        parameters: trainable parameters, or groups ``{"params": ..., "lr": ...}`` with rates of their own.
        learning_rate: of parameters without a rate of their own, at its highest.
        processes: share the gradients.
        clip: largest norm of the gradient.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        learning_rate: float,
        processes: Processes,
        clip: float = math.inf,
    ) -> None:
        self._adam = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.99))
        self._rates = [group["lr"] for group in self._adam.param_groups]
        self._parameters = [parameter for group in self._adam.param_groups for parameter in group["params"]]
        self._processes, self._clip = processes, clip

    def step(self, loss: Tensor, share: float = 1.0) -> bool:
        """One update at a share of the learning rates; False, and none, where the gradient is not finite."""
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._processes.average_gradients(self._parameters)
        if not torch.isfinite(nn.utils.clip_grad_norm_(self._parameters, self._clip)):
            return False
        self._adam.step()
        return True

    @property
    def learning_rate(self) -> float:
        """Of the first group, in the last update."""
        return float(self._adam.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        return self._adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adam.load_state_dict(state)


def minimise(
    parameters: Iterable[nn.Parameter], loss_of: Callable[[], Tensor], *, steps: int, learning_rate: float
) -> list[float]:
    """A short training on one process; a cosine takes the learning rate to a hundredth. Returns the losses."""
    optimiser = Optimiser(parameters, learning_rate=learning_rate, processes=Processes(torch.device("cpu")))
    schedule = Schedule(steps=steps, final=0.01)
    losses = []
    for step in range(steps):
        loss = loss_of()
        optimiser.step(loss, schedule.share(step))
        losses.append(float(loss.detach()))
    return losses


class RunFolder:
    """Checkpoints, log, samples and exported weights of one training. What has its final name is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(explain(error, path)) from None

    def load(self, device: torch.device, name: str = "checkpoint") -> dict[str, Any] | None:
        """The state that was saved last, or None."""
        path = self.path / f"{name}.pt"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            raise UserError(f"{path} is damaged; remove it to begin again") from None
        return state

    def save(self, state: dict[str, Any], name: str = "checkpoint") -> None:
        path = self.path / f"{name}.pt"
        partial = path.with_name(path.name + ".partial")
        torch.save(state, partial)
        replace_file(partial, path)

    def log(self, row: Row) -> None:
        """Append to ``log.csv`` and print."""
        cells = {name: value if isinstance(value, str) else f"{value:.6g}" for name, value in row.items()}
        path = self.path / "log.csv"
        columns = _columns(path) or list(cells)
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            if not file.tell():
                writer.writeheader()
            writer.writerow(cells)
        print(", ".join(f"{name} {value}" for name, value in cells.items()), flush=True)

    def check(self, row: Row) -> None:
        """Raise a UserError where the log has other columns: the folder belongs to another recipe or other losses."""
        path = self.path / "log.csv"
        if unknown := set(row) - set(_columns(path) or row):
            raise UserError(f"{path} has no column {min(unknown)}; give another run folder for another training")

    def sample(self, step: int) -> Path:
        """Where the sample picture of ``step`` belongs."""
        return self.path / "samples" / f"{step:07d}.png"


def _columns(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


class Stateful(Protocol):
    """What a checkpoint keeps and restores."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


class Recipe(Protocol):
    """What `train` trains.

    Attributes:
        phase: name of the weights that are exported now.
        best_by: the score whose highest value so far chooses the weights ``best``, or None.
        pixels: low-resolution pixels of a step, on all processes together.
        parts: everything that training changes, by name.
    """

    @property
    def phase(self) -> str: ...
    @property
    def best_by(self) -> str | None: ...
    @property
    def pixels(self) -> int: ...
    @property
    def parts(self) -> Mapping[str, Stateful]: ...

    def step(self, step: int) -> dict[str, float]:
        """Train on batch ``step``, a function of the state, the seed and its number; losses and rate by name."""

    def validate(self, sample: Path) -> Row:
        """Scores by name; a sheet of pictures can be written to ``sample``."""

    def export(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the weights for inference in one move."""


def train(
    recipe: Recipe, settings: RunSettings, *, steps: int, processes: Processes, milestones: Collection[int] = ()
) -> None:
    """Train up to ``steps``, from the checkpoint in the run folder where there is one.

    A checkpoint is written between steps, and a step is a function of state, seed and number, so on a CPU an
    interrupted run ends with the same weights as an uninterrupted one. Under ``accelerate launch`` each process takes
    its share of every batch: the weights are those of one process, up to rounding.

    Args:
        recipe: what to train.
        settings: of its run.
        steps: number of steps.
        processes: this one saves if it is the main one.
        milestones: steps after which to save whatever the time.
    """
    folder, given = RunFolder(settings.run), _given_metadata(settings.metadata)
    step, best, seconds = 0, -math.inf, 0.0
    state = folder.load(processes.device)
    if state is not None:
        _restore(recipe, state.get("recipe", {}), folder.path)
        step, best, seconds = state["step"], state["best"], state["seconds"]
    saved, saved_seconds = time.monotonic(), seconds
    rows: list[dict[str, float]] = []
    while step < steps:
        started = time.monotonic()
        rows.append(recipe.step(step))
        step += 1
        now = time.monotonic()
        seconds += now - started
        if step != steps and step not in milestones and now - saved <= 60 * settings.save_minutes:
            continue
        if processes.main:
            scores = recipe.validate(folder.sample(step))
            speed = len(rows) * recipe.pixels / (seconds - saved_seconds)
            row = _row(step, seconds, means(rows), scores, speed)
            folder.check(row)
            facts = {**given, **_facts(settings, step, scores)}
            recipe.export(folder.path / f"{recipe.phase}.safetensors", facts)
            if recipe.best_by is not None and float(scores[recipe.best_by]) > best:
                best = float(scores[recipe.best_by])
                recipe.export(folder.path / "best.safetensors", facts)
            parts = {name: part.state_dict() for name, part in recipe.parts.items()}
            folder.save({"recipe": parts, "step": step, "best": best, "seconds": seconds})
            folder.log(row)
        saved, saved_seconds, rows = time.monotonic(), seconds, []


def _restore(recipe: Recipe, state: Mapping[str, dict[str, Any]], folder: Path) -> None:
    parts = recipe.parts
    try:
        if parts.keys() != state.keys():
            raise ValueError
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (RuntimeError, ValueError, KeyError, AttributeError):  # as torch says that tensors or groups do not fit
        raise UserError(f"{folder} holds another training, or another version's; give another run folder") from None


def _row(step: int, seconds: float, losses: dict[str, float], scores: Row, speed: float) -> Row:
    return {
        "step": str(step),
        "seconds": f"{seconds:.0f}",
        "loss": losses.pop("loss"),
        **scores,
        "lr_pixels_per_second": speed,
        **losses,
    }


def _given_metadata(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--metadata {path} cannot be read: {error}") from None
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise UserError(f"--metadata {path} is not a JSON object of strings")
    return given


def _facts(settings: RunSettings, step: int, scores: Row) -> dict[str, str]:
    """What an exported file says of its origin: enough to train it again, or on."""
    recipe = type(settings).__module__.rpartition(".")[2]
    command = shlex.join(["python", "-m", "vsvsr.training", recipe, *write_options(settings)])
    numbers = {f"validation_{name}": f"{value:.4g}" for name, value in scores.items() if not isinstance(value, str)}
    return {"command": command, "seed": str(settings.seed), "step": str(step), **numbers}


def means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of every entry over the rows, broken ones left out."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.nanmean([row[name] for row in rows if name in row])) for name in names}
