"""The endpoints of the API: searches, pictures, and what can be searched."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import PurePath
from typing import Annotated, get_args

import numpy as np
from fastapi import Path, Query
from fastapi.responses import Response
from starlette.requests import Request

from pipeline.core.errors import ModelError
from pipeline.download.records import Pairs
from pipeline.features.teacher import Teacher
from pipeline.index.format import Hit, Target
from pipeline.search.app.concurrency import ConcurrencyLimiter
from pipeline.search.app.messages import (
    MAX_OFFSET,
    MAX_RESULTS,
    About,
    Health,
    Limits,
    Result,
    Results,
    SystemInfo,
    Wanted,
    WantedByText,
)
from pipeline.search.app.pictures import Pictures, Size
from pipeline.search.app.problems import UnknownError
from pipeline.search.app.upload import MAX_UPLOAD_BYTES, read_upload
from pipeline.search.searcher import (
    MAX_QUERY_CHARACTERS,
    Searcher,
    check_query,
    grounded_space,
)

_SEARCHES, _UPLOADS, _PICTURES = 256, 48, 2048
"""Requests of a kind at a time, waiting or served; an upload that waits holds up to 16 MiB."""
_EXAMPLES = 4
_SPREAD = 32
"""Captions that the examples are chosen from."""
_SHORTEST_EXAMPLE = 12
"""Characters."""
_VERSION = 12
"""Digits of the corpus' fingerprint in a picture's address."""
_FOREVER = "private, max-age=31536000, immutable"


@dataclass(frozen=True)
class System:
    """A model with its index, under the name that users see."""

    name: str
    searcher: Searcher

    def describe(self) -> SystemInfo:
        """What it can rank."""
        spaces, targets = self.searcher.index.spaces, get_args(Target)
        return SystemInfo(
            name=self.name,
            by_text=[target for target in targets if target in spaces],
            by_picture=[target for target in targets if grounded_space(target) in spaces],
        )


class Service:
    """The endpoints.

    Args:
        systems: by name; the first is asked by default.
        teacher: loads the teacher for pictures as queries; called when first needed.
        pairs: the corpus of all of them.
    """

    def __init__(
        self, systems: Mapping[str, System], teacher: Callable[[], Teacher] | None, pairs: Pairs
    ) -> None:
        self._systems = systems
        self._teacher = cache(teacher or _no_teacher)  # called by one thread, that of uploads
        self._version = pairs.fingerprint()[:_VERSION]
        self._pictures = Pictures(pairs)
        self._about = About(
            systems=[system.describe() for system in systems.values()],
            images=len(pairs.images),
            captions=len(pairs.captions),
            examples=_pick_examples(pairs),
            limits=Limits(
                query_characters=MAX_QUERY_CHARACTERS,
                results=MAX_RESULTS,
                offset=MAX_OFFSET,
                upload_bytes=MAX_UPLOAD_BYTES,
            ),
        )
        threads = os.cpu_count() or 1
        self._searches = ConcurrencyLimiter(threads, _SEARCHES)
        self._uploads = ConcurrencyLimiter(1, _UPLOADS)
        self._thumbnails = ConcurrencyLimiter(threads, _PICTURES)

    async def health(self) -> Health:
        """Say that the server answers."""
        return Health()

    async def about(self) -> About:
        """What can be searched, and the limits."""
        return self._about

    async def search(self, wanted: Annotated[WantedByText, Query()]) -> Results:
        """The best texts or pictures for a text."""
        check_query(wanted.q)
        system = self._system(wanted)
        with self._searches.place():
            (hits,) = await self._searches.run(
                lambda: system.searcher.search(
                    [wanted.q], target=wanted.target, window=wanted.window
                )
            )
        return self._as_results(hits, wanted, system, wanted.q)

    async def search_by_image(
        self, wanted: Annotated[Wanted, Query()], request: Request
    ) -> Results:
        """The best texts, or the most similar pictures, for a picture, which is not stored."""
        system = self._system(wanted)
        with self._uploads.place():
            picture = await read_upload(request)
            hits = await self._uploads.run(
                lambda: system.searcher.search_by_image(
                    picture, self._teacher(), target=wanted.target, window=wanted.window
                )
            )
        return self._as_results(hits, wanted, system, None)

    async def image(
        self,
        version: Annotated[str, Path(max_length=_VERSION)],
        image_id: Annotated[int, Path(ge=0, lt=2**63)],
        size: Annotated[Size, Query()] = "small",
    ) -> Response:
        """The picture of a result, as a JPEG of at most 384 or 1,600 pixels a side."""
        if version != self._version:
            raise UnknownError("this picture is of another corpus.", "search again.")
        with self._thumbnails.place():
            content = await self._thumbnails.run(lambda: self._pictures.jpeg(image_id, size))
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": _FOREVER})

    def _system(self, wanted: Wanted) -> System:
        name = wanted.system if wanted.system is not None else next(iter(self._systems))
        if name not in self._systems:
            raise UnknownError(
                f"there is no system {name[:80]!r}.", f"name one of: {', '.join(self._systems)}."
            )
        return self._systems[name]

    def _as_results(
        self, hits: Sequence[Hit], wanted: Wanted, system: System, query: str | None
    ) -> Results:
        return Results(
            system=system.name,
            target=wanted.target,
            query=query,
            results=[self._as_result(hit) for hit in hits[: wanted.k]],
            more=len(hits) > wanted.k,
        )

    def _as_result(self, hit: Hit) -> Result:
        image = self._pictures.image_of(hit)
        picture = None if image is None else f"/image/{self._version}/{image}"
        fields = asdict(hit) | {"archive": PurePath(hit.archive).name}  # shards have whole paths
        return Result(**fields, picture=picture)


def _no_teacher() -> Teacher:
    raise ModelError("this server has no teacher for pictures.", "search for a text.")


def _pick_examples(pairs: Pairs) -> list[str]:
    """The shortest of some captions from all over the corpus."""
    captions = pairs.captions["caption"]
    rows = np.linspace(0, len(captions) - 1, num=_SPREAD, dtype=np.int64)
    texts = dict.fromkeys(captions.iloc[rows].str.strip())
    return sorted((one for one in texts if len(one) >= _SHORTEST_EXAMPLE), key=len)[:_EXAMPLES]
