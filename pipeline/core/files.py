"""Files and folders written whole or not at all, and clear errors where the system refuses."""

import contextlib
import ctypes
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

from pipeline.core.errors import InputError, MissingArtifactError, ResourceError
from pipeline.core.signals import require_running

_AGAIN = "run the same command again"
_REMEDIES = {
    errno.ENOSPC: f"free some space and {_AGAIN}; finished work is kept.",
    errno.EDQUOT: f"free some space and {_AGAIN}; finished work is kept.",
    errno.EFBIG: f"raise the file size limit and {_AGAIN}.",
    errno.EACCES: "make the folder writable, or name another place.",
    errno.EPERM: "make the folder writable, or name another place.",
    errno.EROFS: "name a place on a disk that can be written.",
    errno.EEXIST: "name another place; a part of this path is a file.",
    errno.EISDIR: "name a file; there is a folder of this name.",
    errno.ENOTDIR: "name another place; a part of this path is a file.",
}


@contextlib.contextmanager
def reports_unwritable(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into a ResourceError with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise ResourceError(
            f"{target} could not be written: {os.strerror(error.errno).lower()}.",
            _REMEDIES[error.errno],
        ) from error


@contextlib.contextmanager
def reports_unreadable(name: Path | str) -> Iterator[None]:
    """Turn the operating system's refusals to read into a ResourceError that names the file."""
    try:
        yield
    except OSError as error:
        raise refusal(name, error) from error


def refusal(name: Path | str, error: OSError) -> ResourceError:
    """The error for a file that the operating system does not let us read."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    has_too_many = error.errno in {errno.EMFILE, errno.ENFILE}
    remedy = "raise `ulimit -n`" if has_too_many else "make it readable"
    return ResourceError(f"{name} cannot be read: {reason.lower()}.", f"{remedy} and {_AGAIN}.")


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that becomes it when the block succeeds.

    The bytes are synced before the rename, so `target` is whole or absent, also after
    a kill or a power cut. On failure nothing is left behind.

    Raises:
        ResourceError: the disk is full, or the place cannot be written.
    """
    with reports_unwritable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
    with _becomes(target, Path(name), 0o666, Path.replace) as temporary:
        yield temporary


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `target`, whatever is there; as `atomic_file`."""
    with reports_unwritable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.")
    with _becomes(target, Path(name), 0o777, _swap) as temporary:
        yield temporary


@contextlib.contextmanager
def _becomes(
    target: Path, temporary: Path, mode: int, replace: Callable[[Path, Path], object]
) -> Iterator[Path]:
    try:
        with reports_unwritable(target):
            yield temporary
            for path in filter(Path.is_file, [temporary, *temporary.rglob("*")]):
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
            os.umask(mask := os.umask(0))
            temporary.chmod(mode & ~mask)
            require_running()
            replace(temporary, target)
    finally:
        _remove(temporary)


def _swap(temporary: Path, target: Path) -> None:
    """Replace an old folder, which stays whole until then, by a finished one.

    Where another process does the same at this moment, the last one stays.
    """
    old = temporary.with_name(temporary.name + ".old")
    while True:
        try:
            temporary.replace(target)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise
        else:
            return
        if _exchange(temporary, target):
            return
        with contextlib.suppress(FileNotFoundError):
            target.replace(old)
        _remove(old)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths atomically, so that both exist at every moment; whether that worked.

    It does not where one of them is gone, or where the system or its disk lacks the call.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    at_fdcwd, rename_exchange = -100, 2
    return hasattr(libc, "renameat2") and not libc.renameat2(
        at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange
    )


def _remove(path: Path) -> None:
    """Remove a folder, a file or a link, which may be gone."""
    with contextlib.suppress(OSError):
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


class _Output:
    """A file that remembers why it could not be written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.flush = stream.flush
        self.refusal: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self._stream.write(content)
        except OSError as error:
            self.refusal = error
            raise


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[_Output]:
    """A new file for the writers of FAISS, numpy and torch, which hide why they failed.

    Raises:
        OSError: the system's own, such as a full disk, whatever the library made of it.
    """
    with path.open("wb") as stream:
        output = _Output(stream)
        try:
            yield output
        except Exception:
            if output.refusal is not None:
                raise output.refusal from None
            raise


def save_array(path: Path, array: "NDArray[Any]") -> None:
    """Write an array as .npy; errors as `output_file`."""
    import numpy as np

    with output_file(path) as stream:
        np.save(cast(IO[bytes], stream), array, allow_pickle=False)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON with sorted keys, atomically; NaN is refused."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_csv(path: Path, table: "pd.DataFrame", float_format: str | None = None) -> None:
    """Write a table as CSV without its index, atomically."""
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False, float_format=float_format)


def read_json(path: Path, made_by: str | None = None) -> dict[str, Any]:
    """Read the JSON object in a file, which the stage `made_by` writes, if any does.

    Raises:
        MissingArtifactError: the stage has not written it yet.
        InputError: it cannot be read, or holds something else.
    """
    if made_by is not None and not path.is_file():
        raise MissingArtifactError(path, made_by)
    fix = f"run `dvc repro -f {made_by}`." if made_by else "leave it out, or write it again."
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as JSON: {reason}.", fix) from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object.", fix)
    return content
