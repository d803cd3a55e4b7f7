"""What fits into the device's memory: tiles, and features that wait."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence

import torch

from vsvsr.engine.worker import worker_of
from vsvsr.errors import UserError

_SIGNS = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "Failed to allocate memory", "DefaultCPUAllocator")
"""In the messages of CUDA, Triton, cuDNN, cuBLAS, ONNX Runtime and torch on a CPU when memory is used up."""

_log = logging.getLogger(__name__)
_recording = threading.Lock()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is used up: torch's own error or Python's, or what libraries and launches say of it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """Keep `release` away while a graph is recorded: CUDA may free nothing meanwhile, on no device."""
    with _recording:
        yield


def release(device: torch.device) -> None:
    """Give unused memory of ``device`` back, for other programs. Torch does so on all CUDA devices at once."""
    if device.type != "cuda":
        return
    with _recording, contextlib.suppress(RuntimeError):  # another plugin is recording a graph: not now
        torch.cuda.empty_cache()


def rehearse(device: torch.device, dry_run: Callable[[], object], *, limited: bool = False) -> None:
    """Call ``dry_run`` on the thread of ``device``, if that is no CPU or another runtime's memory is ``limited``.

    cuDNN does not say that it ran out of memory: it takes an algorithm that needs less, which rounds differently, and
    goes on taking it. Pixels would depend on the memory that happened to be free, so that counts as too little.

    Raises:
        torch.OutOfMemoryError: it needs more memory than is free.
    """
    if device.type == "cpu" and not limited:
        return

    def run() -> None:
        before = _failed_allocations(device)
        dry_run()
        if _failed_allocations(device) > before:
            raise torch.OutOfMemoryError("memory ran out, and another algorithm was used")

    try:
        worker_of(device).run(run)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = str(error)
    else:
        return
    # Out of there first: the error's traceback holds the tensors that were too many.
    worker_of(device).run(lambda: release(device))
    raise torch.OutOfMemoryError(message)


def _failed_allocations(device: torch.device) -> int:
    return int(torch.cuda.memory_stats(device).get("num_ooms", 0)) if device.type == "cuda" else 0


def fit_tiles[Model](
    tile: Sequence[int], width: int, height: int, open_model: Callable[[Sequence[int]], Model], *, smallest: int
) -> tuple[Model, tuple[int, int]]:
    """The model with the tiles that were asked for, or, where those run out of memory, with the largest that do not;
    and these tiles.

    Decided once, at construction: tiles that changed within a clip would show.

    Args:
        tile: width and height asked for, 0 = everything.
        width: source pixels of a frame.
        height: source pixels of a frame.
        open_model: makes the model for a tile and tries it (`rehearse`); raises ``torch.OutOfMemoryError``.
        smallest: sides of a tile are not made smaller than this.

    Raises:
        UserError: not even the smallest tile fits.
    """
    tried = tile
    while True:
        try:
            model = open_model(tried)
        except torch.OutOfMemoryError:
            smaller = _halved(tried[0] or width, tried[1] or height, tried, smallest)
        else:
            break
        if smaller is None:
            raise UserError(
                f"the device's memory is too small even for tile={list(tried)}; "
                "close what else uses it, or give device_index=-1 for the CPU"
            )
        tried = smaller
    if tried is not tile:
        _log.warning(
            "the device's memory is too small for tile=%s, using %s; give that to have it everywhere", tile, tried
        )
    return model, (tried[0], tried[1])


def feature_budget(megabytes: int | None, device: torch.device) -> int | None:
    """Bytes of waiting features that a chunk may keep on the device, the others wait in host memory; None = no limit.

    Called at construction, when the network has made its dry run and holds the memory it works in. By default a third
    of what is free then: where two readers take turns, two chunks are at work.

    Args:
        megabytes: what the user wants.
        device: where the network is; on the CPU there is nothing to offload.
    """
    if device.type == "cpu":
        return None
    if megabytes is not None:
        return megabytes * 1_000_000
    if device.type in ("xpu", "mps"):  # torch tells no free memory of all of them
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free // 3


def _halved(width: int, height: int, tile: Sequence[int], smallest: int) -> tuple[int, int] | None:
    """Half of the tile of ``width x height`` pixels along its longer side; None when that is too small."""
    if max(width, height) < 2 * smallest:
        return None
    # The side that is not halved keeps its 0: the whole axis, without a border in it.
    return (-(-width // 2), tile[1]) if width >= height else (tile[0], -(-height // 2))
