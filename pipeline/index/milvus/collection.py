"""An index in a Milvus database: a server by its address, or milvus-lite in a folder.

    <prefix>                  an alias of the first collection below, moved when all are whole
    <prefix>_<load>_<space>   one collection a space: `row`, `vector` and the columns of ROWS

The name that the alias stands for says which load is in use, and so for all spaces at once. Every
collection carries the property `kdmcse`: schema, model hash, corpus fingerprint, rows of each
space. Vectors are L2-normalised and compared by inner product, so that scores are cosines.

milvus-lite runs in this process and listens on a socket in a folder that no other user can open.
"""

import contextlib
import json
import logging
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from pipeline.core.errors import InputError, PipelineError, ResourceError, StaleArtifactError
from pipeline.core.extras import require_extra
from pipeline.core.files import reports_unwritable
from pipeline.core.progress import log
from pipeline.core.signals import defers_signals
from pipeline.index.layout import (
    ROWS,
    SCHEMA,
    Hit,
    Space,
    Vectors,
    Window,
    normalise,
    require_space,
)

if TYPE_CHECKING:
    from pymilvus import MilvusClient

MilvusKind = Literal["flat", "hnsw", "ivf-sq8", "autoindex"]
"""How Milvus finds neighbours; flat is exact."""
Rows = list[dict[str, Any]]
"""As pymilvus gives them."""
DEFAULT_PREFIX = "kdmcse"
PROPERTY = "kdmcse"
ROW = "row"
VECTOR = "vector"
DEEPEST = 16_384
"""Rows that Milvus ranks at most, offset included."""
CONNECT_SECONDS = 10.0
SECONDS = 60.0
"""For one answer of a server; milvus-lite, in this process, takes the time that it takes."""
_PREFIX = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_SERVER = "use one such as http://localhost:19530."
_MISSING = 100
"""Milvus' code of a collection that is not there."""


@dataclass(frozen=True)
class Address:
    """Where a Milvus database is.

    Attributes:
        uri: `http://host:port` or `https://host:port` with the database's name behind it if it is
            not the default one, or a folder whose name ends in `.db`.
        token_env: the environment variable that holds the token of a server.
        prefix: what the names of all collections begin with.

    Raises:
        InputError: one of them cannot be used.
    """

    uri: str
    token_env: str | None = None
    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise InputError(
                f"--collection-prefix is {self.prefix!r}.",
                "use at most 100 letters, digits and underscores, no digit first.",
            )
        if self.folder is None:
            _check_server(self.uri)
        elif not self.uri.endswith(".db"):
            raise InputError(
                f"{self.uri} is no address of Milvus.",
                "name a folder that ends in .db, or a server such as http://localhost:19530.",
            )

    @property
    def folder(self) -> Path | None:
        """That of milvus-lite; None: a server."""
        return None if "://" in self.uri else Path(self.uri)

    @property
    def token(self) -> str:
        """The server's token; empty where none was named.

        Raises:
            InputError: the variable is not set.
        """
        if self.token_env is None or self.folder is not None:
            return ""
        token = os.environ.get(self.token_env)
        if not token:  # not named: who mistook the option wrote the token itself there
            raise InputError(
                "the environment variable that --token-env names is not set.",
                "set it to the token, or to user:password.",
            )
        return token

    @property
    def seconds(self) -> float | None:
        """The longest that an answer may take."""
        return SECONDS if self.folder is None else None

    @property
    def command(self) -> str:
        """What loads an index there."""
        options = f" --token-env {self.token_env}" if self.token_env else ""
        if self.prefix != DEFAULT_PREFIX:
            options += f" --collection-prefix {self.prefix}"
        return f"run `python -m stages.index --to milvus --uri {self.uri}{options}`."


def _check_server(uri: str) -> None:
    """Refuse what is no address, or holds a password, which then is not shown."""
    try:
        parts = urlsplit(uri)
        valid = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise InputError(
            "--uri is no address.", "use one such as http://localhost:19530."
        ) from None
    if parts.username is not None or parts.query or parts.fragment:
        raise InputError(
            "--uri holds more than an address.",
            "put user:password into an environment variable and name that by --token-env.",
        )
    if not valid or parts.scheme not in {"http", "https"} or uri.endswith(".db"):
        raise InputError(f"{uri} is no address of a Milvus server.", _SERVER)


@dataclass(frozen=True)
class About:
    """What a load says of itself.

    Attributes:
        schema: version of the contract.
        model: hash of the student.
        corpus: fingerprint of the pairs.
        load: tells this load from others.
        kind: of index.
        rows: of each space.
        tuning: what a search in each space is told beside the number of rows.
    """

    schema: int
    model: str
    corpus: str
    load: str
    kind: MilvusKind
    rows: dict[Space, int]
    tuning: dict[Space, dict[str, int]]

    @classmethod
    def read(cls, text: str) -> "About":
        """From what `write` gave.

        Raises:
            ValueError: it is something else.
        """
        try:
            about = cls(**json.loads(text))
            list(about.rows), list(about.tuning)
        except TypeError as error:
            raise ValueError(str(error)) from None
        return about

    def write(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    def collection(self, prefix: str, space: Space) -> str:
        """The name of one space's collection."""
        return f"{prefix}_{self.load}_{space}"


@dataclass(frozen=True)
class MilvusIndex:
    """An index in Milvus, opened; an `Index`."""

    client: "MilvusClient"
    address: Address
    about: About
    loaded: set[Space] = field(default_factory=set)
    """What the server is known to hold in memory."""

    @classmethod
    @contextlib.contextmanager
    def open(cls, address: Address) -> Iterator["MilvusIndex"]:
        """Connect; milvus-lite is stopped at the end.

        Args:
            address: of the database.

        Raises:
            InputError: there is no such database, or no index of that prefix in it.
            StaleArtifactError: another version of the project made it.
            ResourceError: the server does not answer, or another process uses the folder.
        """
        with connect(address) as client:
            yield cls(client, address, read_about(client, address))

    @property
    def spaces(self) -> Collection[Space]:
        """The vectors it holds."""
        return list(self.about.rows)

    def require_fit(self, folder: Path) -> None:
        """Refuse vectors of another student or corpus than the queries are for.

        Args:
            folder: the index of the queries.

        Raises:
            StaleArtifactError: they are.
        """
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        own = {"model": self.about.model, "corpus": self.about.corpus}
        for key, what in (("model", "another student"), ("corpus", "another corpus")):
            if manifest[key] != own[key]:
                raise StaleArtifactError(
                    f"{self.address.uri} holds the vectors of {what} than {folder}.",
                    self.address.command,
                )

    def search(self, space: Space, queries: Vectors, window: Window) -> list[list[Hit]]:
        """As `Index.search`.

        Raises:
            InputError: the window is deeper than Milvus allows.
            ResourceError: the server does not answer.
        """
        require_space(space, self.spaces)
        depth = window.offset + window.k
        if depth > DEEPEST:
            raise InputError(
                f"offset and k ask for rank {depth:,}; Milvus ranks {DEEPEST:,} rows at most.",
                "ask for fewer, or search the index in files.",
            )
        vectors, at_once = normalise(queries), max(1, DEEPEST // depth)
        with reports_refusals(self.address):
            self._load(space)
            found = [
                one
                for start in range(0, len(vectors), at_once)
                for one in self._nearest(space, vectors[start : start + at_once], window)
            ]
        return [_as_hits(one, window) for one in found]

    def _load(self, space: Space) -> None:
        """Have the server hold a space in memory."""
        if space in self.loaded:
            return
        name = self.about.collection(self.address.prefix, space)
        state = self.client.get_load_state(name, timeout=self.address.seconds)
        if state["state"].name != "Loaded":
            self.client.load_collection(name, timeout=self.address.seconds)
        require_rows(self.client, self.address, name, self.about.rows[space])
        self.loaded.add(space)

    def _nearest(
        self, space: Space, vectors: Vectors, window: Window
    ) -> list[list[dict[str, Any]]]:
        tuning = dict(self.about.tuning.get(space, {}))
        if "ef" in tuning:
            tuning["ef"] = max(tuning["ef"], window.offset + window.k)
        found = self.client.search(
            self.about.collection(self.address.prefix, space),
            data=list(vectors),
            anns_field=VECTOR,
            limit=window.k,
            output_fields=ROWS.names,
            search_params={"metric_type": "IP", "offset": window.offset, "params": tuning},
            timeout=self.address.seconds,
        )
        return [list(one) for one in found]


def _as_hits(found: Rows, window: Window) -> list[Hit]:
    """Rows of one query, best first, the lower row first where scores are equal."""
    ranked = sorted(found, key=lambda one: (-one["distance"], one[ROW]))
    return [
        Hit(rank=rank, score=float(one["distance"]), **one["entity"])
        for rank, one in enumerate(ranked, start=window.offset + 1)
        if one["distance"] >= window.min_score
    ]


def require_rows(client: "MilvusClient", address: Address, name: str, rows: int) -> None:
    """Refuse a collection that is not whole.

    Raises:
        ResourceError: it has another number of rows.
    """
    found = client.query(
        name, output_fields=["count(*)"], consistency_level="Strong", timeout=address.seconds
    )[0]["count(*)"]
    if found != rows:
        raise ResourceError(f"{address.uri} holds {found:,} of {rows:,} rows.", address.command)


def read_about(client: "MilvusClient", address: Address) -> About:
    """What is loaded under a prefix.

    Raises:
        InputError: nothing is, or something else.
        StaleArtifactError: another version of the project made it.
    """
    with reports_refusals(address):
        if not client.has_collection(address.prefix, timeout=address.seconds):
            raise InputError(
                f"{address.uri} holds no index named {address.prefix}.", address.command
            )
        described = client.describe_collection(address.prefix, timeout=address.seconds)
    text = described.get("properties", {}).get(PROPERTY, "")
    try:
        about = About.read(text)
    except ValueError:
        raise InputError(
            f"{address.prefix} in {address.uri} is no index of this project.",
            "name another --collection-prefix.",
        ) from None
    if about.schema != SCHEMA:
        raise StaleArtifactError(
            f"{address.uri} was loaded by another version of the project.", address.command
        )
    return about


@contextlib.contextmanager
def connect(address: Address, *, create: bool = False) -> Iterator["MilvusClient"]:
    """A client of a server, or of milvus-lite, which is started and stopped for it.

    Args:
        address: of the database.
        create: make the folder of milvus-lite where it is not there.

    Raises:
        InputError: there is no such database, or the token is refused.
        ResourceError: pymilvus is not installed, the server does not answer, or another process
            uses the folder.
    """
    require_extra("milvus", "Milvus", "pymilvus", "milvus_lite", "grpc")
    from pymilvus import MilvusClient

    for name in ("pymilvus", "milvus_lite"):  # they log tracebacks of what is reported here
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    _warn_of_listeners(address)
    with contextlib.ExitStack() as stack:
        uri = address.uri
        if address.folder is not None:
            uri = stack.enter_context(_serve(address.folder, create=create))
        with reports_refusals(address), _in_one_piece():
            client = MilvusClient(
                uri=uri, token=address.token, timeout=CONNECT_SECONDS, dedicated=True
            )
        whole = cast("MilvusClient", _InOnePiece(client))
        stack.callback(whole.close)
        yield whole


@contextlib.contextmanager
def _in_one_piece() -> Iterator[None]:
    """Hold signals back: gRPC, left by an exception between its locks, may never end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with defers_signals() as came:
        yield
    number = came()
    if number is not None:
        signal.raise_signal(number)


@dataclass(frozen=True)
class _InOnePiece:
    """A client whose calls end, by their answer or their time, before a signal is heard."""

    client: "MilvusClient"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)

        def call(*values: Any, **options: Any) -> Any:
            with _in_one_piece():
                return method(*values, **options)

        return call


def _warn_of_listeners(address: Address) -> None:
    parts = urlsplit(address.uri)
    is_local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    if address.token and parts.scheme == "http" and not is_local:
        log.warning("the token goes to %s unencrypted; use https where you can", parts.hostname)


@contextlib.contextmanager
def _serve(folder: Path, *, create: bool) -> Iterator[str]:
    """Run milvus-lite over a folder; yields its address, which only this user can reach."""
    import grpc
    from milvus_lite.adapter.grpc.servicer import MilvusServicer
    from pymilvus.grpc_gen import milvus_pb2_grpc

    with (
        _open_database(folder, create=create) as database,
        tempfile.TemporaryDirectory(prefix="kdmcse-") as private,
        ThreadPoolExecutor(os.cpu_count()) as threads,
    ):
        any_size = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
        server = grpc.server(threads, options=any_size)
        milvus_pb2_grpc.add_MilvusServiceServicer_to_server(MilvusServicer(database), server)
        uri = f"unix:{private}/milvus"
        try:
            server.add_insecure_port(uri)
        except RuntimeError:
            raise ResourceError(
                f"no socket could be made in {private}.", "set TMPDIR to a folder of a short name."
            ) from None
        server.start()
        try:
            yield uri
        finally:
            with _in_one_piece():
                server.stop(grace=None).wait()


@contextlib.contextmanager
def _open_database(folder: Path, *, create: bool) -> Iterator[Any]:
    from milvus_lite.db import MilvusLite
    from milvus_lite.exceptions import DataDirLockedError

    _check_folder(folder, create=create)
    try:
        with reports_unwritable(folder):
            database = MilvusLite(str(folder))
    except DataDirLockedError:
        raise ResourceError(
            f"{folder} is in use by another process.",
            "wait for its end: milvus-lite serves one process at a time, a server serves many.",
        ) from None
    with contextlib.closing(database):
        yield database


def _check_folder(folder: Path, *, create: bool) -> None:
    if not folder.parent.is_dir():
        raise InputError(f"{folder.parent} is no folder.", "make it, or name another --uri.")
    if not folder.exists():
        if create:
            return
        raise InputError(f"{folder} does not exist.", Address(str(folder)).command)
    if not folder.is_dir() or not ((folder / "collections").is_dir() or _is_empty(folder)):
        raise InputError(
            f"{folder} is no database of milvus-lite 3.", "name another --uri, or delete it."
        )


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


@contextlib.contextmanager
def reports_refusals(address: Address) -> Iterator[None]:
    """Turn what Milvus refuses into an error with a remedy, without its tracebacks."""
    import grpc
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
        raise _Refusal(address, error).as_error() from None


@dataclass(frozen=True)
class _Refusal:
    """What a server, or the way to it, said instead of an answer."""

    address: Address
    error: BaseException

    def as_error(self) -> PipelineError:
        uri = self.address.uri
        if self._has("unauthenticated", "permissiondenied", "permission deny", "auth check fail"):
            how = "to this token" if self.address.token_env else "without a token"
            return InputError(
                f"{uri} refuses to answer {how}.",
                "set the variable that --token-env names to a token that may do this.",
            )
        if self._has("unavailable", "deadlineexceeded", "fail connecting"):
            return ResourceError(f"{uri} does not answer.", "check the address and the server.")
        if getattr(self.error, "code", None) == _MISSING:
            return StaleArtifactError(
                f"{uri}: a collection went away; another load took its place.",
                "run the same command again.",
            )
        fix = "look into its log, and run the same command again."
        if self.address.folder is not None:
            fix = f"if it is damaged, delete it and {self.address.command}"
        return self._of_disk() or ResourceError(f"{uri}: Milvus says: {self._message}", fix)

    def _of_disk(self) -> PipelineError | None:
        """What the operating system said to milvus-lite, which passes it on in Python's words."""
        number = re.search(r"\[Errno (\d+)\]", self._message)
        if number is None or self.address.folder is None:
            return None
        reason = os.strerror(int(number[1])).lower()
        return ResourceError(
            f"{self.address.folder} could not be written or read: {reason}.",
            "free some space or mend the disk, and run the same command again.",
        )

    def _has(self, *words: str) -> bool:
        details = self._details.lower().replace("_", "")
        return any(word in details for word in words)

    @cached_property
    def _details(self) -> str:
        """The error and what it came from; pymilvus hides the status behind its own words."""
        texts: list[str] = []
        error: BaseException | None = self.error
        while error is not None and len(texts) < 8:  # noqa: PLR2004  # a chain may be a ring
            texts.append(str(error))
            error = error.__cause__ or error.__context__
        return " ".join(texts)

    @property
    def _message(self) -> str:
        """One line, without the token."""
        text = str(getattr(self.error, "message", "") or self.error)
        token = os.environ.get(self.address.token_env or "") or None
        if token is not None:
            text = text.replace(token, "***")
        return " ".join(text.split())[:300]
