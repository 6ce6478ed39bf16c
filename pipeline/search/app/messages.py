"""The requests and answers of the API, as /openapi.json describes them."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pipeline.index.format import Hit, Target, VectorSpace

MAX_RESULTS = 100
MAX_OFFSET = 10_000
MAX_TEXTS = 64


class Problem(BaseModel):
    """Why there is no answer."""

    error: str
    """What is wrong."""
    fix: str
    """What to do about it."""


class Asked(BaseModel):
    """Who is asked; unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid")

    system: str | None = None
    """Name of the model and index to ask; without it, the first."""


class Wanted(Asked):
    """Which results are wanted."""

    target: Target = "texts"
    """What is ranked."""
    k: Annotated[int, Field(ge=1, le=MAX_RESULTS)] = 10
    """Results at most."""
    offset: Annotated[int, Field(ge=0, le=MAX_OFFSET)] = 0
    """Results left out before them."""
    min_score: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] = -1.0
    """The lowest cosine."""


class WantedByText(Wanted):
    """A search for a text."""

    q: str
    """The query, of 1 to 10,000 characters."""


class Texts(Asked):
    """Texts that are wanted as vectors."""

    texts: Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
    """Each of 1 to 10,000 characters."""
    space: VectorSpace = "text"
    """Sentence embeddings, or the space that texts share with pictures."""


class Embedded(BaseModel):
    """Vectors, one a text, or one of a picture."""

    system: str
    space: VectorSpace
    vectors: list[list[float]]


@dataclass(frozen=True)
class Result(Hit):
    """One result."""

    picture: str | None
    """Address of the picture on this server: a JPEG, larger with `?size=large`."""


class Results(BaseModel):
    """The results of one query."""

    system: str
    target: Target
    query: str | None
    """The text; null where a picture was the query."""
    results: list[Result]
    more: bool
    """Whether there are results after these."""


class SystemInfo(BaseModel):
    """A model with its index."""

    name: str
    by_text: list[Target]
    """What can be ranked for a text."""
    by_picture: list[Target]
    """What can be ranked for a picture."""


class Limits(BaseModel):
    """The largest values that are accepted."""

    query_characters: int
    results: int
    offset: int
    texts: int
    upload_bytes: int


class About(BaseModel):
    """What can be searched."""

    systems: list[SystemInfo]
    images: int
    """Rows of the corpus."""
    captions: int
    examples: list[str]
    """Captions to start with."""
    limits: Limits
