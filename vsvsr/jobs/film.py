"""A film from an order to its final name: plan, make what is missing, join."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from vsvsr.errors import UserError, WrongArgumentError
from vsvsr.files import explain, final_name, replace_file, scratch_beside
from vsvsr.jobs.cluster import Cluster
from vsvsr.jobs.folder import JobFolder, beside, held
from vsvsr.jobs.identity import identify
from vsvsr.jobs.order import Order
from vsvsr.jobs.parts import Part, divide
from vsvsr.jobs.work import Here
from vsvsr.video.encoder import wants_rgb
from vsvsr.video.ffmpeg import picture_size
from vsvsr.video.film import Film, Written, check_paths, refuse_truncated, write_pictures
from vsvsr.video.join import check_beside, film_zero, join, keeps_hdr, part_suffix


class Progress(Protocol):
    """What hears how far a film is."""

    def indexing(self, percent: int) -> None:
        """The source is read for the first time."""
        ...

    def frames(self, done: int, total: int) -> None:
        """So many frames are there; the first call tells what was there before."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should know."""
        ...


def make_film(
    order: Order,
    *,
    overwrite: bool,
    job: Path | None,
    keep_job: bool,
    progress: Progress,
    cluster: Cluster | None = None,
) -> Written:
    """Make a film; its file appears when it is whole. A film, as opposed to pictures, goes on where it was.

    Args:
        order: what to make.
        overwrite: replace what is there.
        job: the job's folder, instead of one beside the target.
        keep_job: leave that folder where it is.
        progress: hears how far it is.
        cluster: makes the parts, instead of this process.

    Raises:
        UserError: something about the files, the filter, the job or ffmpeg. If the source is truncated, after what
            there is of it has been written.
    """
    order.check()
    check_paths(order.source, order.target, overwrite=overwrite)
    if wants_rgb(order.target):
        if cluster is not None:
            raise WrongArgumentError(f"{order.target}: pictures are made by one device; leave out --devices and --ray")
        if job is not None or keep_job:
            raise WrongArgumentError(f"{order.target}: pictures are made in one go; leave out --job and --keep-job")
        return _make_pictures(order, overwrite=overwrite, progress=progress)
    if job is not None:  # beside the target the job's folder itself shows whether it can be written
        with scratch_beside(order.target):
            pass
    with _job_folder(order, job) as folder:
        workers = Here(order) if cluster is None else cluster.workers(order)
        opened = workers.plan.open(progress.indexing)
        film, segments, _ = opened
        starts = segments.starts(film.frames.start, film.frames.stop)
        parts = divide(starts, film.frames.stop, film.source.timestamps)
        identity = identify(order, opened, workers.device)
        folder.begin(identity, parts)
        missing = _missing(folder, parts, progress)
        tell_what_is_left_out(order, film, progress, encodes=bool(missing) and cluster is None)
        done, total = len(film.frames) - sum(map(len, missing)), len(film.frames)
        progress.frames(done, total)

        def on_frames(made: int) -> None:
            progress.frames(done + made, total)

        if missing:
            workers.make(film, folder, missing, zero=film_zero(film), identity=identity, on_frames=on_frames)
        written = _join(order, film, folder, parts, progress, overwrite=overwrite)
        if not keep_job:
            folder.remove()
    refuse_truncated(film, order.target)
    return written


def _make_pictures(order: Order, *, overwrite: bool, progress: Progress) -> Written:
    film = order.open(progress.indexing).film
    written = write_pictures(film, order.target, encoding=order.encoding, overwrite=overwrite, on_frame=progress.frames)
    refuse_truncated(film, order.target)
    return written


@contextmanager
def _job_folder(order: Order, path: Path | None) -> Iterator[JobFolder]:
    """The job's folder, for this process alone; what the disk says about it is one line about the target."""
    folder = path or beside(order.target)
    if final_name(order.target).parent == final_name(folder):
        raise UserError(f"{order.target} is in the folder of its job; give --job a folder of its own")
    try:
        with held(folder, part_suffix(order.target), path or order.target) as job:
            yield job
    except OSError as error:
        if not str(error.filename).startswith(str(folder)):
            raise
        raise UserError(explain(error, order.target)) from None


def _missing(folder: JobFolder, parts: list[Part], progress: Progress) -> list[Part]:
    """Parts that are still to be made; finished ones that are not what they were are named and made again."""
    missing = []
    for part in parts:
        if not folder.file(part).exists():
            missing.append(part)
        elif not folder.is_sound(part):
            progress.note(f"{folder.file(part)} is not what was written ({part}): it is made again")
            missing.append(part)
    if len(missing) < len(parts):
        progress.note(f"{len(parts) - len(missing)} of {len(parts)} parts are there, from {folder.path}")
    return missing


def tell_what_is_left_out(order: Order, film: Film, progress: Progress, *, encodes: bool) -> None:
    """Name what of the source the film goes without.

    Args:
        order: what is made.
        film: what it opened.
        progress: hears it.
        encodes: whether this process encodes; a frame is tried then.

    Raises:
        UserError: the container refuses what it should hold.
    """
    carried = check_beside(film, order.target, order.encoding, encodes=encodes)
    if carried.left_out:
        named = ", ".join(map(str, carried.left_out))
        progress.note(f"a {order.target.suffix or 'file without an ending'} cannot hold and goes without: {named}")
    if film.source.left_out:
        progress.note(f"goes without {' and '.join(film.source.left_out)}")


def _join(
    order: Order, film: Film, folder: JobFolder, parts: list[Part], progress: Progress, *, overwrite: bool
) -> Written:
    """The film from its parts, under its final name."""
    files = [(folder.file(part), part.first) for part in parts]
    with _place(order.target, folder) as place:
        path = place / f"joined{order.target.suffix}"
        join(film, files, path, order.target, order.encoding)
        width, height = picture_size(path)
        if not keeps_hdr(film, path):
            progress.note("goes without mastering display and light levels of HDR, which the encoder does not write")
        check_paths(order.source, order.target, overwrite=overwrite)  # it may have come to be meanwhile
        replace_file(path, final_name(order.target))
    return Written(frames=len(film.frames), width=width or film.clip.width, height=height or film.clip.height)


@contextmanager
def _place(target: Path, folder: JobFolder) -> Iterator[Path]:
    """Where the joined film is written: in the job's folder, or beside the target if that is another disk."""
    if folder.path.stat().st_dev == final_name(target).parent.stat().st_dev:
        yield folder.path
    else:
        with scratch_beside(target) as scratch:
            yield scratch
