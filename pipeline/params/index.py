"""The `index` block: what can be searched, and how."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.params.block import UNIQUE, Block, Number, distinct
from pipeline.params.places import PathText

Item = Literal["captions", "images", "sentences", "texts"]
Kind = Literal["flat", "hnsw", "ivf-sq8", "ivf-pq"]


class IndexParams(Block):
    """Settings of the search index."""

    items: Annotated[list[Item], Field(min_length=1), AfterValidator(distinct), UNIQUE] = [
        "captions",
        "images",
    ]
    """What can be found."""
    texts: PathText | None = None
    """A file of your own texts, UTF-8, one a line; null where `items` does not name texts."""
    kind: Literal["auto", "flat", "hnsw", "ivf-sq8", "ivf-pq"] = "auto"
    """FAISS index; `auto` measures recall and takes the cheapest."""
    target_recall: Annotated[Number, Field(gt=0, le=1)] = 0.99
    """Share of the 10 nearest rows that the index must find, where it is not flat."""
    max_bytes: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    """The most bytes of one file of vectors; null: no limit."""
    exact_until: Annotated[int, Field(ge=0, le=10**12)] = 50000
    """Rows up to which `auto` searches exactly without trying anything else."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of clusters and of the queries that recall is measured with; no unit."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    """Texts a forward pass."""

    @model_validator(mode="after")
    def _names_its_texts(self) -> "IndexParams":
        if ("texts" in self.items) != (self.texts is not None):
            msg = "`texts` names a file where items has texts, and only there"
            raise ValueError(msg)
        return self
