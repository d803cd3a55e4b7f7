"""Making the parts of a job in this process."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice

import vapoursynth as vs

from vsvsr.errors import UserError
from vsvsr.files import scratch_folder
from vsvsr.jobs.folder import JobFolder
from vsvsr.jobs.identity import Identity, describe_device
from vsvsr.jobs.order import Order
from vsvsr.jobs.parts import Part
from vsvsr.video.encoder import encode
from vsvsr.video.film import Film
from vsvsr.video.join import packet_times, part_zero
from vsvsr.video.source import one_line_errors


class Here:
    """This process, on one device, as what makes the parts of a film. See `vsvsr.jobs.cluster.Workers`."""

    def __init__(self, order: Order) -> None:
        self.plan = order
        self.device = describe_device(order)

    def make(
        self,
        film: Film,
        job: JobFolder,
        parts: Sequence[Part],
        *,
        zero: int,
        identity: Identity,
        on_frames: Callable[[int], object],
    ) -> None:
        """See `make_parts`."""
        make_parts(self.plan, film, job, parts, zero=zero, on_frames=on_frames)


def make_parts(
    order: Order, film: Film, job: JobFolder, parts: Sequence[Part], *, zero: int, on_frames: Callable[[int], object]
) -> None:
    """Make parts and put them into the job's folder.

    Parts that follow one another are played through: the filter sees each frame as often as without parts. A part is
    finished, checked and hashed while the next one begins.

    Args:
        order: what they are parts of.
        film: what ``order`` opened.
        job: where they go.
        parts: in order.
        zero: the source's time that is 0 in the film.
        on_frames: hears after every frame how many are made.

    Raises:
        UserError: a frame, or ffmpeg, failed.
    """
    made = 0
    finishing: Future[None] | None = None
    with ThreadPoolExecutor(1) as finisher, one_line_errors():
        for run in _runs(parts):
            frames = film.clip[run[0].first : run[-1].last].frames(close=True)
            for part in run:
                with ExitStack() as stack:
                    write = stack.enter_context(_written(order, film, job, part, zero))
                    for frame in islice(frames, len(part)):
                        write(frame)
                        made += 1
                        on_frames(made)
                        if finishing is not None and finishing.done():
                            finishing.result()
                    rest = stack.pop_all()
                if finishing is not None:
                    finishing.result()
                finishing = finisher.submit(rest.close)
        if finishing is not None:
            finishing.result()


@contextmanager
def _written(
    order: Order, film: Film, job: JobFolder, part: Part, zero: int
) -> Iterator[Callable[[vs.VideoFrame], None]]:
    """Give a function that takes the frames of a part; it is checked and in its place at the end."""
    digest = hashlib.sha256()
    with scratch_folder(job.path, about=order.target) as folder:
        path = folder / job.file(part).name
        encoding = encode(
            film.clip[part.first : part.last],
            film.source,
            path,
            order.target,
            first=part.first,
            zero=part_zero(film, order.target, part.first, zero),
            encoding=order.encoding,
        )
        with encoding as encode_frame:

            def write(frame: vs.VideoFrame) -> None:
                for plane in encode_frame(frame):
                    digest.update(plane)

            yield write
        if not path.is_file() or path.stat().st_size == 0:
            raise UserError(f"{order.target}: nothing was written")
        count = len(packet_times(path))
        if count != len(part):
            raise UserError(f"{order.target}: {count} frames came out of {len(part)}; no option may add or drop frames")
        job.commit(part, path, digest.hexdigest())


def _runs(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Parts that follow one another without a gap."""
    run: list[Part] = []
    for part in parts:
        if run and run[-1].last != part.first:
            yield run
            run = []
        run.append(part)
    if run:
        yield run
