"""Fetching a public file: stream, resume, verify, rename.

A transfer that breaks leaves `NAME.part`, and the next one from the same address asks for the rest
of it (HTTP Range, if the file there is still the same). The sha256 of every file is recorded at
first use in `checksums.json` beside it, with the address it came from, less its secrets; the same
address must give the same bytes ever after. Several runs may want the same file: they take turns.
"""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO
from urllib.parse import quote

import requests
from pydantic import TypeAdapter, ValidationError
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse
from urllib3.util import Retry

from pipeline.core.checksums import hash_file
from pipeline.core.errors import DownloadError
from pipeline.core.files import atomic_file, reports_unwritable, write_json
from pipeline.core.progress import bytes_counter, log
from pipeline.core.redact import one_line, redact
from pipeline.download.sources import RemoteFile
from pipeline.params.places import is_address, why_missing

MIRROR_VARIABLE = "DATA_MIRROR"
CHECKSUMS = "checksums.json"

_HUB = "hf://"
_TIMEOUT = (20, 60)
_CHUNK = 1 << 16
_BREAKS = 5
_PATIENCE = 3600
"""Seconds that a server may ask to wait."""


@dataclass(frozen=True)
class Fetched:
    """A file at hand, with where it came from."""

    path: Path
    sha256: str
    address: str


def fetch(file: RemoteFile, folder: Path, mirror: str | None) -> Fetched:
    """Bring a public file into `folder`, or find it there from an earlier run.

    Args:
        file: what to fetch.
        folder: where files are kept between runs.
        mirror: a folder or base URL that holds the file by its public name, or None.

    Raises:
        DownloadError: it cannot be had, or its bytes are not those of the first time.
        ResourceError: the disk is full.
    """
    address = _address(file, mirror)
    target, part = folder / file.name, folder / f"{file.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    with _turn(folder, file.name):
        return _find_or_transfer(address, target, part)


@contextlib.contextmanager
def _turn(folder: Path, name: str) -> Iterator[None]:
    """Wait until no other run transfers the file, on file systems that know locks."""
    path = folder / f".{name}.lock"
    with reports_unwritable(path):
        lock = path.open("ab")
    with lock:
        _take(lock, name)
        if not _is_at(lock, path):  # the run before us was the last and took the file away
            with _turn(folder, name):
                yield
            return
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _take(lock: IO[bytes], name: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("another run fetches %s; waiting for it", name)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        log.warning("no locks here: let one run at a time fetch %s", name)


def _is_at(lock: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _find_or_transfer(address: str, target: Path, part: Path) -> Fetched:
    folder, name = target.parent, target.name
    known = _read_checksums(folder).get(name)
    expected = known.sha256 if known is not None and known.address == redact(address) else None
    if target.is_file() and expected is not None:
        _verify(target, hash_file(target), expected, f"delete {target} to fetch it again.")
        return Fetched(target, expected, address)
    _transfer(address, name, part)
    digest = hash_file(part)
    if expected is not None and digest != expected:
        part.unlink()
        _verify(address, digest, expected, _ACCEPT.format(folder / CHECKSUMS, name))
    part.replace(target)
    _note_of(part).unlink(missing_ok=True)
    checksums = _read_checksums(folder) | {name: _Checksum(digest, redact(address))}
    write_json(folder / CHECKSUMS, {name: asdict(one) for name, one in checksums.items()})
    return Fetched(target, digest, address)


_ACCEPT = "the source changed; to accept that, remove the entry of {1} from {0}."


def _address(file: RemoteFile, mirror: str | None) -> str:
    if not mirror:
        return file.address
    if mirror.startswith(("http://", "https://")):
        return f"{mirror.rstrip('/')}/{quote(file.name)}"
    if is_address(mirror):
        raise DownloadError(*why_missing(mirror, MIRROR_VARIABLE))
    return str(Path(mirror) / file.name)


@dataclass(frozen=True)
class _Checksum:
    sha256: str
    address: str


_CHECKSUMS = TypeAdapter(dict[str, _Checksum])


def _read_checksums(folder: Path) -> dict[str, _Checksum]:
    path = folder / CHECKSUMS
    try:
        return _CHECKSUMS.validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return {}
    except ValidationError:
        raise DownloadError(f"{path} is no table of checksums.", "delete it.") from None
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error.strerror}.", "delete it.") from None


def _verify(path: Path | str, digest: str, expected: str, fix: str) -> None:
    if digest != expected:
        raise DownloadError(
            f"{path} has sha256 {digest[:12]}, but {expected[:12]} was recorded at its first use.",
            fix,
        )


def _transfer(address: str, name: str, part: Path) -> None:
    """Bring the whole file to `part`."""
    log.info("fetching %s from %s", name, address)
    if address.startswith(_HUB):
        _transfer_from_hub(address, part)
    elif address.startswith(("http://", "https://")):
        _transfer_over_http(address, part)
    else:
        _copy(Path(address), part)


def _copy(source: Path, part: Path) -> None:
    """Take a file of a mirror folder."""
    if not source.parent.is_dir():
        raise DownloadError(*why_missing(str(source.parent), MIRROR_VARIABLE, "is no folder"))
    if not source.is_file():
        raise DownloadError(
            f"{MIRROR_VARIABLE} holds no {source.name} ({source} does not exist).",
            f"put the file there, or unset {MIRROR_VARIABLE} to fetch it from its source.",
        )
    with atomic_file(part) as temporary:
        shutil.copyfile(source, temporary)


def _transfer_from_hub(address: str, part: Path) -> None:
    from huggingface_hub import hf_hub_download

    kind, owner, name, file = address.removeprefix(_HUB).split("/", 3)
    try:
        cached = hf_hub_download(f"{owner}/{name}", file, repo_type=kind.removesuffix("s"))
    except Exception as error:  # noqa: BLE001  # the hub's library lets its transport's errors pass
        raise _unreachable(address, error) from None
    log.info("%s is of revision %s", file, Path(cached).parent.name)
    _copy(Path(cached), part)


def _transfer_over_http(address: str, part: Path) -> None:
    """Stream into `part`, going on after a break where it stopped."""
    _drop_foreign_part(part, address)
    breaks = 0
    while True:
        before = _size(part)
        try:
            total = _append(address, part)
            break
        except requests.RequestException as error:
            breaks = 0 if _size(part) > before else breaks + 1
            if breaks >= _BREAKS or _is_final(error):
                raise _unreachable(address, error) from None
            log.warning("the transfer broke at %s bytes, going on", f"{_size(part):,}")
    if total is not None and _size(part) != total:
        part.unlink(missing_ok=True)
        raise DownloadError(
            f"{address} gave another number of bytes than the {total:,} it announced.",
            "run the same command again, or fetch the file by hand into a mirror folder.",
        )
    with part.open("rb") as stream:
        os.fsync(stream.fileno())


def _append(address: str, part: Path) -> int | None:
    """Ask for the bytes behind those at hand and append them; returns the whole size."""
    offset = _size(part)
    with _session().get(
        address, headers=_headers(part, offset), stream=True, timeout=_TIMEOUT
    ) as response:
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _whole_size(response, offset)
        response.raise_for_status()
        start = offset if _continues(response, offset) else 0
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        write_json(_note_of(part), {"address": redact(address), "validator": validator})
        total = _whole_size(response, start)
        with reports_unwritable(part), part.open("ab" if start else "wb") as stream:
            for chunk in _watched(response, part.stem, total, start):
                stream.write(chunk)
    return total


def _headers(part: Path, offset: int) -> dict[str, str]:
    """Ask for the bytes from `offset`, if the file is still the one that `part` began."""
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if validator := _read_note(part).get("validator"):
            headers["If-Range"] = validator
    return headers


def _continues(response: requests.Response, offset: int) -> bool:
    """Whether the answer is the rest of the file rather than all of it."""
    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
        return False
    if not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
        raise DownloadError(
            f"{response.url} sent another part of the file than was asked for.",
            "fetch the file by hand into a mirror folder.",
        )
    return True


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


_NOTE = TypeAdapter(dict[str, str | None])


def _read_note(part: Path) -> dict[str, str | None]:
    try:
        return _NOTE.validate_json(_note_of(part).read_bytes(), strict=True)
    except (OSError, ValidationError):
        return {}


def _drop_foreign_part(part: Path, address: str) -> None:
    """A part of another address, or of nobody knows which, cannot be continued."""
    if _read_note(part).get("address") != redact(address):
        part.unlink(missing_ok=True)


def _watched(
    response: requests.Response, name: str, total: int | None, start: int
) -> Iterator[bytes]:
    with bytes_counter(name, total, start) as bar:
        for chunk in response.iter_content(_CHUNK):
            yield chunk
            bar.update(len(chunk))


def _whole_size(response: requests.Response, offset: int) -> int | None:
    content_range = response.headers.get("Content-Range", "")
    if (total := content_range.rpartition("/")[2]).isdigit():
        return int(total)
    length = response.headers.get("Content-Length", "")
    return offset + int(length) if length.isdigit() else None


class _Patient(Retry):
    """Waits as long as a server asks for, and says so; gives up where that is over an hour."""

    def sleep_for_retry(self, response: BaseHTTPResponse) -> bool:
        """As urllib3's; raises DownloadError."""
        seconds = self.get_retry_after(response) or 0
        if seconds >= _PATIENCE:
            raise DownloadError(
                f"the server is busy and asks to be left alone for {seconds:,.0f} s.",
                "run the same command again after that; what was already transferred is kept.",
            )
        if seconds:
            log.info("the server is busy and asks to wait %.0f s", seconds)
        return super().sleep_for_retry(response)


def _session() -> requests.Session:
    """A session that waits and retries on busy servers, honouring Retry-After."""
    retry = _Patient(
        total=4,
        backoff_factor=0.5,
        status_forcelist=(429, 500, 502, 503, 504),
        retry_after_max=sys.maxsize,
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _is_final(error: requests.RequestException) -> bool:
    """A refusal or an address that is no address: asking again cannot help."""
    return isinstance(error, requests.HTTPError | requests.TooManyRedirects | ValueError)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unreachable(address: str, error: Exception) -> DownloadError:
    reason = one_line(" ".join(str(error).split()), 200)
    return DownloadError(
        f"{address} cannot be fetched: {reason}",
        f"check the network, or put the file into a folder and name that in {MIRROR_VARIABLE}; "
        "what was already transferred is kept.",
    )
