"""An index in a Milvus database: a server by its address, or milvus-lite in a folder.

    <prefix>                  an alias of the first collection below, moved when all are complete
    <prefix>_<load>_<space>   one collection a space: `row`, `vector` and the columns of ROWS

The collection that the alias points to names the load in use, for all spaces at once. Each
collection carries the property `kdmcse`: schema, model hash, corpus fingerprint, rows per space.
Vectors are L2-normalised and compared by inner product, so that scores are cosines.

pymilvus runs milvus-lite in this process; while it is open it listens on a port of localhost.
"""

import contextlib
import functools
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import HttpUrl, TypeAdapter, ValidationError

from pipeline.core.errors import InputError, PipelineError, ResourceError, StaleArtifactError
from pipeline.core.extras import require_extra
from pipeline.core.files import read_json, reports_unwritable
from pipeline.core.progress import log
from pipeline.core.signals import defers_signals
from pipeline.index.format import (
    MANIFEST,
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
DEFAULT_PREFIX = "kdmcse"
PROPERTY = "kdmcse"
ROW = "row"
VECTOR = "vector"
DEEPEST = 16_384
"""The lowest rank that Milvus returns, offset included."""
CONNECT_SECONDS = 10.0
CALL_SECONDS = 60.0
"""For one answer of a server; milvus-lite has no limit."""
_COLLECTION_NOT_FOUND = 100


@dataclass(frozen=True)
class Address:
    """Where a Milvus database is; an InputError where it cannot be one."""

    uri: str
    """`http://host:port` or `https://host:port`, followed by the database's name if it is not the
    default one; or a folder whose name ends in `.db`."""
    token_env: str | None = None
    """The environment variable that holds the token of a server."""
    prefix: str = DEFAULT_PREFIX
    """Of the names of all collections."""

    def __post_init__(self) -> None:
        is_server = self.folder is None
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,99}", self.prefix):
            what = f"--collection-prefix is {self.prefix!r}."
            raise InputError(
                what, "use at most 100 letters, digits and underscores, no digit first."
            )
        if is_server and re.search("[@?#]", self.uri):  # may be a password: not shown
            fix = "put user:password into an environment variable and name it with --token-env."
            raise InputError("--uri holds more than an address.", fix)
        try:
            if is_server:
                TypeAdapter(HttpUrl).validate_python(self.uri)
            is_usable = is_server != self.uri.endswith(".db")
        except ValidationError:
            is_usable = False
        if not is_usable:
            fix = "name a folder that ends in .db, or a server such as http://localhost:19530."
            raise InputError(f"{self.uri} is not an address of Milvus.", fix)

    @property
    def folder(self) -> Path | None:
        """The folder of milvus-lite; None for a server."""
        return None if "://" in self.uri else Path(self.uri)

    @property
    def token(self) -> str:
        """The server's token; empty where none was named, an InputError where it is not set."""
        if self.token_env is None or self.folder is not None:
            return ""
        if token := os.environ.get(self.token_env):
            return token
        raise InputError(  # without the variable's name, which may be the token itself by mistake
            "the environment variable that --token-env names is not set.",
            "set it to the token, or to user:password.",
        )

    @property
    def command(self) -> str:
        """The command that loads an index there."""
        options = f" --token-env {self.token_env}" if self.token_env else ""
        if self.prefix != DEFAULT_PREFIX:
            options += f" --collection-prefix {self.prefix}"
        return f"run `python -m stages.index --to milvus --uri {self.uri}{options}`."


@dataclass(frozen=True)
class About:
    """The description of a load, as the property of its collections holds it."""

    schema: int
    model: str
    """Hash of the student."""
    corpus: str
    """Fingerprint of the pairs."""
    load: str
    """Identifies the load."""
    rows: dict[Space, int]
    tuning: dict[Space, dict[str, int]]
    """Search parameters of each space."""

    def collection(self, prefix: str, space: Space) -> str:
        """The name of one space's collection."""
        return f"{prefix}_{self.load}_{space}"


@dataclass(frozen=True)
class MilvusIndex:
    """An open index in Milvus; an `Index`."""

    client: "MilvusClient"
    address: Address
    about: About
    loaded: set[Space] = field(default_factory=set)
    """Spaces that the server is known to hold in memory."""

    @classmethod
    @contextlib.contextmanager
    def open(cls, address: Address) -> Iterator["MilvusIndex"]:
        """Connect for the length of a `with` block.

        Raises:
            InputError: there is no such database, or no index of that prefix in it.
            StaleArtifactError: another version of the project made it.
            ResourceError: the server does not answer, or another process uses the folder.
        """
        with connect(address) as client:
            if not client.has_collection(address.prefix):
                what = f"{address.uri} holds no index named {address.prefix}."
                raise InputError(what, address.command)
            described = client.describe_collection(address.prefix)
            content = described.get("properties", {}).get(PROPERTY, "")
            try:
                about = TypeAdapter(About).validate_json(content)
            except ValidationError:
                raise not_an_index(address) from None
            if about.schema != SCHEMA:
                what = f"{address.uri} was loaded by another version of the project."
                raise StaleArtifactError(what, address.command)
            yield cls(client, address, about)

    @property
    def spaces(self) -> Collection[Space]:
        """The vectors it holds."""
        return list(self.about.rows)

    def require_fit(self, folder: Path) -> None:
        """Refuse vectors of another student or corpus than those of the index folder."""
        manifest = read_json(folder / MANIFEST, made_by="index")
        for key, what in (("model", "student"), ("corpus", "corpus")):
            if manifest[key] != getattr(self.about, key):
                raise StaleArtifactError(
                    f"{self.address.uri} holds the vectors of another {what} than {folder}.",
                    self.address.command,
                )

    def search(self, space: Space, queries: Vectors, window: Window) -> list[list[Hit]]:
        """As `Index.search`; hits of equal score are in the order of their rows.

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
        name = self.about.collection(self.address.prefix, space)
        if space not in self.loaded:
            self.client.load_collection(name)
            require_rows(self.client, self.address, name, self.about.rows[space])
            self.loaded.add(space)
        params = dict(self.about.tuning.get(space, {}))
        if "ef" in params:
            params["ef"] = max(params["ef"], depth)
        at_once = max(1, DEEPEST // depth)
        answers: list[list[dict[str, Any]]] = []
        for start in range(0, len(queries), at_once):
            answers += self.client.search(
                name,
                data=list(normalise(queries[start : start + at_once])),
                anns_field=VECTOR,
                limit=window.k,
                output_fields=ROWS.names,
                search_params={"metric_type": "IP", "offset": window.offset, "params": params},
            )
        return [
            [
                Hit(rank=rank, score=float(one["distance"]), **one["entity"])
                for rank, one in enumerate(
                    sorted(found, key=lambda one: (-one["distance"], one[ROW])), window.offset + 1
                )
                if one["distance"] >= window.min_score
            ]
            for found in answers
        ]


def require_rows(client: "MilvusClient", address: Address, name: str, rows: int) -> None:
    """Refuse a collection that is not complete, with a ResourceError."""
    counted = client.query(name, output_fields=["count(*)"], consistency_level="Strong")
    if (found := counted[0]["count(*)"]) != rows:
        raise ResourceError(f"{address.uri} holds {found:,} of {rows:,} rows.", address.command)


def not_an_index(address: Address) -> InputError:
    """The error for a name that belongs to somebody else."""
    return InputError(
        f"{address.prefix} in {address.uri} is not an index of this project.",
        "name another --collection-prefix.",
    )


@contextlib.contextmanager
def connect(address: Address, *, create: bool = False) -> Iterator["MilvusClient"]:
    """A client of a server, or of milvus-lite, which is started and stopped with it.

    Each call of a server has a time limit by default. All raise errors of this project, and end
    before a signal is handled.

    Args:
        address: where it is.
        create: make the folder of milvus-lite if it does not exist.

    Raises:
        InputError: there is no such database, or the token is refused.
        ResourceError: pymilvus is not installed, the server does not answer, or another process
            uses the folder.
    """
    require_extra("milvus", "Milvus", "pymilvus", "milvus_lite")
    from milvus_lite import server_manager_instance
    from pymilvus import MilvusClient

    for name in ("grpc", "pymilvus", "milvus_lite"):  # they log tracebacks of what is reported here
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    folder, token, parts = address.folder, address.token, urlsplit(address.uri)
    if folder is not None:
        _check_folder(folder, create=create)
    if token and parts.scheme == "http" and parts.hostname not in {"localhost", "127.0.0.1", "::1"}:
        log.warning("the token goes to %s unencrypted; use https where you can", parts.hostname)
    try:
        client = _call(
            address,
            MilvusClient,
            uri=address.uri,
            token=token,
            timeout=CONNECT_SECONDS,
            dedicated=True,
            grpc_options={"grpc.enable_http_proxy": int(folder is None)},
        )
        try:
            yield cast("MilvusClient", _Calls(client, address))
        finally:
            client.close()
    finally:
        if folder is not None:
            server_manager_instance.release_server(str(folder))


@dataclass(frozen=True)
class _Calls:
    """A client whose methods are called by `_call`, with a time limit if it is of a server."""

    client: "MilvusClient"
    address: Address

    def __getattr__(self, name: str) -> Callable[..., Any]:
        seconds = CALL_SECONDS if self.address.folder is None else None
        return functools.partial(_call, self.address, getattr(self.client, name), timeout=seconds)


def _call(address: Address, method: Callable[..., Any], *values: Any, **options: Any) -> Any:
    """Call pymilvus; signals wait, as gRPC may hang if an exception interrupts it."""
    import grpc
    from pymilvus import MilvusException

    is_main = threading.current_thread() is threading.main_thread()
    deferred = defers_signals() if is_main else contextlib.nullcontext(lambda: None)
    try:
        with deferred as first_signal:
            return method(*values, **options)
    except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
        raise _explain(address, error) from None
    finally:
        if (number := first_signal()) is not None:
            signal.raise_signal(number)


def _check_folder(folder: Path, *, create: bool) -> None:
    """Refuse a folder that milvus-lite cannot open, or should not."""
    from milvus_lite import DataDirLockedError, MilvusLite

    if not folder.parent.is_dir():
        raise InputError(f"{folder.parent} is not a folder.", "make it, or name another --uri.")
    is_new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_new and not (folder / "collections").exists():
        what = f"{folder} is not a database of milvus-lite 3."
        raise InputError(what, "name another --uri, or delete it.")
    if not folder.exists() and not create:
        raise InputError(f"{folder} does not exist.", Address(str(folder)).command)
    try:
        with reports_unwritable(folder):
            MilvusLite(str(folder)).close()
    except DataDirLockedError:
        raise ResourceError(
            f"{folder} is in use by another process.",
            "wait for its end: milvus-lite serves one process at a time, a server serves many.",
        ) from None


def _explain(address: Address, error: Exception) -> PipelineError:
    """What Milvus, or the way to it, said instead of an answer, as an error with a remedy."""
    # pymilvus puts its own words over the cause
    said = f"{error} {error.__cause__} {error.__context__}".lower().replace("_", "")
    if re.search("unauthenticated|permissiondenied|permission deny|auth check fail", said):
        how = "to this token" if address.token_env else "without a token"
        fix = "set the variable that --token-env names to a token that may do this."
        return InputError(f"{address.uri} refuses to answer {how}.", fix)
    if re.search("unavailable|deadlineexceeded|fail connecting", said):
        return ResourceError(f"{address.uri} does not answer.", "check the address and the server.")
    if getattr(error, "code", None) == _COLLECTION_NOT_FOUND:
        what = f"{address.uri}: a collection is gone; another load took its place."
        return StaleArtifactError(what, "run the same command again.")
    fix = "see its log, and run the same command again."
    if address.folder is not None:
        fix = f"free some space; if the database is damaged, delete it and {address.command}"
    message = " ".join(str(getattr(error, "message", "") or error).split())
    message = message.replace(os.environ.get(address.token_env or "") or "\n", "***")
    return ResourceError(f"{address.uri}: Milvus says: {message[:300]}", fix)
