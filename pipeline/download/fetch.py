"""Fetching a public file: stream, resume, verify, rename.

A transfer that breaks leaves `NAME.part`, and the next one from the same address asks for the rest
of it (HTTP Range, if the file there is still the same). The sha256 of every file is recorded at
first use in `checksums.json` beside it, with the address it came from, less its secrets; the same
address must give the same bytes ever after, and at once those on record elsewhere, if any are. An
address that cannot be reached is named, and the next one is tried. Several runs may want the same
file: they take turns.

requests streams, urllib3's Retry repeats and waits. huggingface_hub's downloader, used for files of
the Hub, resumes without If-Range and not in a later run.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from filelock import FileLock, Timeout
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse
from urllib3.util import Retry

from pipeline.core.checksums import CHECKSUMS, hash_file, read_checksums
from pipeline.core.errors import DownloadError, InputError
from pipeline.core.files import atomic_file, read_json, reports_unwritable, write_json
from pipeline.core.progress import counter, log
from pipeline.core.redact import one_line, redact
from pipeline.download.sources import RemoteFile
from pipeline.params.places import is_address, why_missing

MIRROR_VARIABLE = "DATA_MIRROR"
WEB = ("http://", "https://")

_HUB = "hf://"
_TIMEOUT = (20, 60)
_CHUNK = 1 << 16
_BREAKS = 5
_PATIENCE = 3600
"""Seconds that a server may ask to wait."""


class _UnreachableError(DownloadError):
    """An address does not give its file; another one may."""


def fetch(file: RemoteFile, folder: Path, mirror: str | None) -> Path:
    """Bring a public file, or what serves as well, into `folder`, or find it there.

    A mirror is a folder or base URL that holds the file by its public name.
    """
    with reports_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _turn(folder, file.name):
        candidates: dict[str, _Candidate] = {}
        for one in file.candidates():
            address = _address(one, mirror)
            candidates.setdefault(address, _Candidate(one, address, folder / one.name))
        for candidate in candidates.values():
            if candidate.is_there():
                return candidate.target
        return _fetch_first([*candidates.values()], is_public=not mirror)


@dataclass(frozen=True)
class _Candidate:
    """A file, one address of it, and the place that it is to come to."""

    file: RemoteFile
    address: str
    target: Path

    def is_there(self) -> bool:
        """Whether an earlier run fetched it from this address; it must be the same still."""
        expected = self._checksums().get(self._entry)
        if expected is None or not self.target.is_file():
            return False
        fix = f"delete {self.target} to fetch it again."
        _verify(self.target, hash_file(self.target), expected, fix)
        return True

    def fetch(self, *, is_public: bool) -> Path:
        """Fetch it; a public address must give the bytes that are on record elsewhere."""
        log.info("fetching %s from %s", self.file.name, self.address)
        part = self.target.with_name(f"{self.file.name}.part")
        if self.address.startswith(_HUB):
            _transfer_from_hub(self.address, part)
        elif self.address.startswith(WEB):
            _transfer_over_http(self.address, part)
        else:
            _copy(Path(self.address), part)
        digest, expected = hash_file(part), self._checksums().get(self._entry)
        if is_public:
            self._check_record(part, digest)
        if expected not in {None, digest}:
            part.unlink()
        checksums = self.target.with_name(CHECKSUMS)
        accept = f"to accept that, remove the entry of {self.file.name} from {checksums}."
        _verify(self.address, digest, expected, f"the source changed; {accept}")
        part.replace(self.target)
        _note_of(part).unlink(missing_ok=True)
        known = self._checksums().items()
        others = {key: value for key, value in known if not key.startswith(f"{self.file.name} ")}
        write_json(checksums, {**others, self._entry: digest})
        return self.target

    @property
    def _entry(self) -> str:
        return f"{self.file.name} {redact(self.address)}"

    def _checksums(self) -> dict[str, str]:
        return read_checksums(self.target.parent, f"delete {self.target.with_name(CHECKSUMS)}.")

    def _check_record(self, part: Path, digest: str) -> None:
        size, record = part.stat().st_size, self.file
        if (record.size or size, record.sha256 or digest) != (size, digest):
            part.unlink()
            _note_of(part).unlink(missing_ok=True)
            hashed = f" with sha256 {record.sha256[:12]}" if record.sha256 else ""
            raise _UnreachableError(
                f"{self.address} gave {size:,} bytes with sha256 {digest[:12]}, but the file on "
                f"record has {record.size or 0:,} bytes{hashed}.",
                f"fetch {record.name} by hand into a folder, and name that in {MIRROR_VARIABLE}.",
            )


def _fetch_first(candidates: Sequence[_Candidate], *, is_public: bool) -> Path:
    """Fetch the first candidate that can be reached; the log names those before it."""
    failures = []
    for candidate in candidates:
        try:
            return candidate.fetch(is_public=is_public)
        except _UnreachableError as error:
            failures.append(error)
            if len(candidates) > 1:
                log.warning("%s", error.what)
    raise failures[0]


@contextlib.contextmanager
def _turn(folder: Path, name: str) -> Iterator[None]:
    """Wait until no other run transfers the file, on file systems that know locks."""
    path = folder / f".{name}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.info("another run fetches %s; waiting for it", name)
        lock.acquire()
    except OSError:
        log.warning("no locks here: let one run at a time fetch %s", name)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _address(file: RemoteFile, mirror: str | None) -> str:
    if not mirror:
        return file.address
    if mirror.startswith(WEB):
        return f"{mirror.rstrip('/')}/{quote(file.name)}"
    if is_address(mirror):
        raise DownloadError(*why_missing(mirror, MIRROR_VARIABLE))
    return str(Path(mirror) / file.name)


def _verify(name: Path | str, digest: str, expected: str | None, fix: str) -> None:
    if expected not in {None, digest}:
        raise DownloadError(
            f"{name} has sha256 {digest[:12]}, but {expected:.12} was recorded at its first use.",
            fix,
        )


def _copy(source: Path, part: Path) -> None:
    """Take a file of a mirror folder."""
    if not source.parent.is_dir():
        raise DownloadError(*why_missing(str(source.parent), MIRROR_VARIABLE, "is not a folder"))
    if not source.is_file():
        raise _UnreachableError(
            f"{MIRROR_VARIABLE} holds no {source.name} ({source} does not exist).",
            f"put the file there, or unset {MIRROR_VARIABLE} to fetch it from its source.",
        )
    with atomic_file(part) as temporary:
        shutil.copyfile(source, temporary)


def _transfer_from_hub(address: str, part: Path) -> None:
    from huggingface_hub import hf_hub_download

    kind, owner, named, file = address.removeprefix(_HUB).split("/", 3)
    name, _, revision = named.partition("@")
    try:
        cached = hf_hub_download(
            f"{owner}/{name}", file, repo_type=kind.removesuffix("s"), revision=revision or None
        )
    except Exception as error:  # noqa: BLE001  # its transport's errors come through as they are
        raise _unreachable(address, error) from None
    log.info("%s is at revision %s", file, Path(cached).parent.name)
    _copy(Path(cached), part)


def _transfer_over_http(address: str, part: Path) -> None:
    """Stream into `part`, resuming after a break."""
    if _read_note(part).get("address") != redact(address):
        part.unlink(missing_ok=True)  # of another address, or an unknown one
    breaks = 0
    while True:
        before = _size(part)
        try:
            total = _append(address, part)
            break
        except requests.RequestException as error:
            breaks = 0 if _size(part) > before else breaks + 1
            # Asking again does not help with a refusal, or what is not an address (ValueError).
            final = isinstance(error, requests.HTTPError | requests.TooManyRedirects | ValueError)
            if breaks >= _BREAKS or final:
                raise _unreachable(address, error) from None
            log.warning("the transfer broke at %s bytes, resuming", f"{_size(part):,}")
    if total is not None and _size(part) != total:
        part.unlink(missing_ok=True)
        raise _UnreachableError(
            f"{address} gave another number of bytes than the {total:,} it announced.",
            "run the same command again, or fetch the file by hand into a mirror folder.",
        )
    with part.open("rb") as stream:
        os.fsync(stream.fileno())


def _append(address: str, part: Path) -> int | None:
    """Ask for the bytes that are missing and append them; returns the whole size."""
    offset, headers = _size(part), {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if validator := _read_note(part).get("validator"):
            headers["If-Range"] = str(validator)  # else the whole file comes
    with _session().get(address, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _whole_size(response, offset)
        response.raise_for_status()
        start = offset if response.status_code == HTTPStatus.PARTIAL_CONTENT else 0
        said = response.headers.get("Content-Range", "")
        if start and not said.startswith(f"bytes {offset}-"):
            raise DownloadError(
                f"{response.url} sent another part of the file than was asked for.",
                "fetch the file by hand into a mirror folder.",
            )
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        write_json(_note_of(part), {"address": redact(address), "validator": validator})
        total = _whole_size(response, start)
        with (
            reports_unwritable(part),
            part.open("ab" if start else "wb") as stream,
            counter(part.stem, "B", total, done=start) as bar,
        ):
            for chunk in response.iter_content(_CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
    return total


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> dict[str, Any]:
    """Where a part is from, and what names that version of the file; empty if that is unknown."""
    try:
        return read_json(_note_of(part))
    except InputError:
        return {}


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
    retry = _Patient(
        total=4,
        backoff_factor=0.5,
        status_forcelist=(429, 500, 502, 503, 504),
        retry_after_max=sys.maxsize,
    )
    session = requests.Session()
    for scheme in WEB:
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unreachable(address: str, error: Exception) -> _UnreachableError:
    reason = one_line(" ".join(str(error).split()), 200)
    return _UnreachableError(
        f"{address} could not be downloaded: {reason}",
        f"check the network, or put the file into a folder and name that in {MIRROR_VARIABLE}; "
        "what was already transferred is kept.",
    )
