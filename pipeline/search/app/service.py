"""The endpoints of the API: searches, pictures, and what can be searched."""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import PurePath
from typing import Annotated, TypeVar, get_args

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import Path, Query
from fastapi.responses import Response
from starlette.requests import Request

from pipeline.core.errors import ModelError
from pipeline.download.records import Pairs
from pipeline.features.teacher import Teacher
from pipeline.index.format import Hit, Space, Target, Window
from pipeline.search.app.messages import (
    MAX_OFFSET,
    MAX_RESULTS,
    MAX_TEXTS,
    About,
    Asked,
    Embedded,
    Limits,
    Result,
    Results,
    SystemInfo,
    Wanted,
    WantedByText,
)
from pipeline.search.app.pictures import Pictures, Size
from pipeline.search.app.problems import RequestError
from pipeline.search.app.upload import MAX_UPLOAD_BYTES, read_texts, read_upload
from pipeline.search.searcher import MAX_QUERY_CHARACTERS, Searcher, grounded_space

T = TypeVar("T")

_SEARCHES, _UPLOADS, _PICTURES = 256, 48, 2048
"""Requests of a kind at a time, waiting or served; an upload that waits holds up to 16 MiB."""
_SHORTEST_EXAMPLE = 12
"""Characters."""
_VERSION = 12
"""Digits of the corpus' fingerprint in a picture's address."""
_FOREVER = "private, max-age=31536000, immutable"


class ConcurrencyLimiter:
    """Serves requests in threads, behind a queue of limited length; for one event loop.

    Args:
        threads: requests served at a time.
        places: requests waiting or served at a time; more are refused.
    """

    def __init__(self, threads: int, places: int) -> None:
        self._limiter = CapacityLimiter(threads)
        self._places = places
        self._taken = 0

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places.

        Raises:
            RequestError: all are taken (503).
        """
        if self._taken >= self._places:
            what = f"{self._taken} requests are waiting."
            raise RequestError(503, what, "ask again in a moment.")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """Run it in a thread as soon as one is free; the caller holds a place."""
        return await to_thread.run_sync(work, limiter=self._limiter)


class Service:
    """The endpoints; see `create_app`."""

    def __init__(
        self, systems: Mapping[str, Searcher], teacher: Callable[[], Teacher] | None, pairs: Pairs
    ) -> None:
        self._systems = systems
        self._teacher = cache(teacher or _no_teacher)  # called by one thread, that of uploads
        self._version = pairs.fingerprint()[:_VERSION]
        self._pictures = Pictures(pairs)
        self._about = About(
            systems=[_describe(name, one.index.spaces) for name, one in systems.items()],
            images=len(pairs.images),
            captions=len(pairs.captions),
            examples=_pick_examples(pairs),
            limits=Limits(
                query_characters=MAX_QUERY_CHARACTERS,
                results=MAX_RESULTS,
                offset=MAX_OFFSET,
                texts=MAX_TEXTS,
                upload_bytes=MAX_UPLOAD_BYTES,
            ),
        )
        threads = os.cpu_count() or 1
        self._searches = ConcurrencyLimiter(threads, _SEARCHES)
        self._uploads = ConcurrencyLimiter(1, _UPLOADS)
        self._thumbnails = ConcurrencyLimiter(threads, _PICTURES)

    async def health(self) -> dict[str, str]:
        """Say that the server answers."""
        return {"status": "ok"}

    async def about(self) -> About:
        """What can be searched, and the limits."""
        return self._about

    async def search(self, wanted: Annotated[WantedByText, Query()]) -> Results:
        """The best texts or pictures for a text."""
        name = self._name(wanted)

        def search(window: Window) -> list[Hit]:
            return self._systems[name].search([wanted.q], target=wanted.target, window=window)[0]

        with self._searches.place():
            return await self._results(self._searches, search, wanted, name)

    async def search_by_image(
        self, wanted: Annotated[Wanted, Query()], request: Request
    ) -> Results:
        """The best texts, or the most similar pictures, for a picture, which is not stored."""
        name = self._name(wanted)
        with self._uploads.place():
            picture = await read_upload(request)

            def search(window: Window) -> list[Hit]:
                return self._systems[name].search_by_image(
                    picture, self._teacher(), target=wanted.target, window=window
                )

            return await self._results(self._uploads, search, wanted, name)

    async def embed(self, request: Request) -> Embedded:
        """The vectors of texts."""
        with self._searches.place():
            wanted = await read_texts(request)
            name = self._name(wanted)
            vectors = await self._searches.run(
                lambda: self._systems[name].embed(wanted.texts, wanted.space)
            )
        return Embedded(system=name, space=wanted.space, vectors=vectors.tolist())

    async def embed_image(self, wanted: Annotated[Asked, Query()], request: Request) -> Embedded:
        """The vector of a picture, which is not stored, in the space that it shares with texts."""
        name = self._name(wanted)
        with self._uploads.place():
            picture = await read_upload(request)
            vectors = await self._uploads.run(
                lambda: self._systems[name].embed_image(picture, self._teacher())
            )
        return Embedded(system=name, space="shared", vectors=vectors.tolist())

    async def image(
        self,
        version: Annotated[str, Path(max_length=_VERSION)],
        image_id: Annotated[int, Path(ge=0, lt=2**63)],
        size: Annotated[Size, Query()] = "small",
    ) -> Response:
        """The picture of a result, as a JPEG of at most 384 or 1,600 pixels a side."""
        if version != self._version:
            raise RequestError(404, "this picture is of another corpus.", "search again.")
        with self._thumbnails.place():
            content = await self._thumbnails.run(lambda: self._pictures.jpeg(image_id, size))
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": _FOREVER})

    def _name(self, wanted: Asked) -> str:
        name = wanted.system if wanted.system is not None else next(iter(self._systems))
        if name not in self._systems:
            fix = f"name one of: {', '.join(self._systems)}."
            raise RequestError(404, f"there is no system {name[:80]!r}.", fix)
        return name

    async def _results(
        self,
        limiter: ConcurrencyLimiter,
        search: Callable[[Window], list[Hit]],
        wanted: Wanted,
        system: str,
    ) -> Results:
        """Search for one result more than wanted, which tells whether there are more."""
        window = Window(wanted.k + 1, wanted.offset, wanted.min_score)
        hits = await limiter.run(lambda: search(window))
        return Results(
            system=system,
            target=wanted.target,
            query=wanted.q if isinstance(wanted, WantedByText) else None,
            results=[self._as_result(hit) for hit in hits[: wanted.k]],
            more=len(hits) > wanted.k,
        )

    def _as_result(self, hit: Hit) -> Result:
        image = self._pictures.image_of(hit)
        picture = None if image is None else f"/image/{self._version}/{image}"
        fields = asdict(hit) | {"archive": PurePath(hit.archive).name}  # shards have whole paths
        return Result(**fields, picture=picture)


def _describe(name: str, spaces: Collection[Space]) -> SystemInfo:
    targets = get_args(Target)
    return SystemInfo(
        name=name,
        by_text=[target for target in targets if target in spaces],
        by_picture=[target for target in targets if grounded_space(target) in spaces],
    )


def _no_teacher() -> Teacher:
    raise ModelError("this server has no teacher for pictures.", "search for a text.")


def _pick_examples(pairs: Pairs) -> list[str]:
    """The four shortest of some captions from all over the corpus."""
    captions = pairs.captions["caption"]
    rows = np.linspace(0, len(captions) - 1, num=32, dtype=np.int64)
    texts = dict.fromkeys(captions.iloc[rows].str.strip())
    return sorted((one for one in texts if len(one) >= _SHORTEST_EXAMPLE), key=len)[:4]
