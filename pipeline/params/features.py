"""The `features` block: how the teacher's features are computed."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.params.block import Block, Number, Text
from pipeline.params.places import PathText

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class ImportParams(Block):
    """Vectors of images and captions that others computed; `features/imported.py` reads them."""

    images: PathText | None = None
    """Image vectors: a .npy or .parquet file, or a folder of them; null: the teacher encodes."""
    captions: PathText | None = None
    """Caption vectors, likewise."""
    image_rows: PathText | None = None
    """Of .npy: the .parquet or .npy, or folder of them, that names the image of each row; null: the
    folder `metadata` beside that of the vectors, as clip-retrieval writes it."""
    caption_rows: PathText | None = None
    """The same of the captions."""
    image_column: Text = "image_path"
    """Parquet column of an image's name, as text, or `image_id`, its number in data/pairs."""
    caption_column: Text = "caption"
    """Parquet column of a caption's text, or `caption_id`, its number in data/pairs."""
    image_vector_column: Text = "embedding"
    """Column of the image vectors, where these are in Parquet."""
    caption_vector_column: Text = "embedding"
    """Column of the caption vectors, where these are in Parquet."""

    @model_validator(mode="after")
    def _both_sides(self) -> "ImportParams":
        if (self.images is None) != (self.captions is None):
            msg = "images and captions go together: name the vectors of both, or of neither"
            raise ValueError(msg)
        return self


class FeaturesParams(Block):
    """Extraction settings; only `precision` changes the features by more than rounding."""

    engine: Literal["local", "ray"] = "local"
    """local: this machine; ray: the cluster that RAY_ADDRESS names, or one started here."""
    precision: Precision = "auto"
    """Type of the forward pass; auto: fp16 on a CUDA GPU, else fp32. Features are kept as fp16."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Images or captions per forward pass."""
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    """Threads that read and decode images; 0: decoded between the forward passes."""
    shard_rows: Annotated[int, Field(ge=1, le=1_048_576)] = 2048
    """Images or captions per shard of the cache: the work that a kill can lose."""
    max_rejected: Annotated[Number, Field(ge=0, le=1)] = 0.01
    """Largest share of images, or of captions, that may be unusable before the stage fails."""
    import_: ImportParams = Field(ImportParams(), alias="import")
    """Vectors that others computed, in place of the teacher's own."""
