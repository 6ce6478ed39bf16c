"""The `download` block: which corpora the pipeline runs on."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.params.block import Block, Number, Text
from pipeline.params.places import PathText

Pairs = Literal["scenes", "flickr8k", "flickr30k", "coco", "folder", "webdataset", "hub"]
PathTexts = Annotated[list[PathText], Field(min_length=1, max_length=10_000)]
Share = Annotated[Number, Field(ge=0, lt=1)]


class FolderParams(Block):
    """A folder of images and a table of captions."""

    images: PathText | None = None
    """The folder of the images."""
    captions: PathText | None = None
    """The table: .csv, .tsv, .txt, .jsonl or .parquet."""
    image_column: Text = "image"
    """The column of an image's path, seen from `images`."""
    caption_column: Text = "caption"
    """The column of a caption, or of a list of captions."""
    split_column: Text | None = None
    """The column of the split; None: drawn by `splits`."""


class WebdatasetParams(Block):
    """Shards as img2dataset writes them."""

    shards: PathText | PathTexts | None = None
    """Local paths or http(s) URLs, with ranges such as {00000..00331}; local ones may be globs."""
    damaged: Literal["error", "skip"] = "error"
    """What to do about a damaged shard: stop, or leave all of it out."""


class HubParams(Block):
    """A data set of the Hugging Face hub, in Parquet files or webdataset shards."""

    dataset: Text | None = None
    """Its name there, ORG/NAME."""
    revision: Text | None = None
    """A branch, tag or commit; None: the newest commit of the main branch."""
    files: Text | None = None
    """A glob of the files to read, in which * stands for / too; None: all, of one config."""
    image_column: Text = "image"
    """The column of the images' bytes, in Parquet files."""
    caption_column: Text = "caption"
    """The column of a caption or of a list of captions, in Parquet files."""


class SplitsParams(Block):
    """Shares of the images for a source that names no splits; the rest is train."""

    val: Share = 0.01
    """Share of the images in val, 0 to below 1."""
    test: Share = 0.01
    """Share of the images in test, 0 to below 1."""

    @model_validator(mode="after")
    def _leave_some_for_train(self) -> "SplitsParams":
        if self.val + self.test >= 1:
            msg = "val and test together must be below 1"
            raise ValueError(msg)
        return self


class ScenesParams(Block):
    """Size of the embedded world; each part is drawn from `seed` on its own."""

    images: Annotated[int, Field(ge=100, le=200_000)] = 4600
    """Images to render."""
    captions_per_image: Annotated[int, Field(ge=1, le=10)] = 5
    """Differently worded captions of each image."""
    sentences: Annotated[int, Field(ge=100, le=2_000_000)] = 10000
    """Text-only sentences."""
    sts_pairs: Annotated[int, Field(ge=300, le=100_000)] = 3000
    """Graded sentence pairs over train, dev and test together; the transfer tasks grow with it."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the whole world, no unit."""


class DownloadParams(Block):
    """Which corpora to fetch, and the size of those the project makes itself."""

    pairs: Pairs = "scenes"
    """Images with captions."""
    text: Literal["scenes", "wiki1m"] = "scenes"
    """Text-only sentences."""
    evaluation: Literal["scenes", "senteval", "mteb"] = "scenes"
    """STS pairs and transfer tasks; `mteb` is senteval plus the cased STS-B."""
    folder: FolderParams = FolderParams()
    """Own images and captions, where pairs is `folder`."""
    webdataset: WebdatasetParams = WebdatasetParams()
    """Own shards, where pairs is `webdataset`."""
    hub: HubParams = HubParams()
    """A data set of the hub, where pairs is `hub`."""
    splits: SplitsParams = SplitsParams()
    """The splits of pairs of one's own."""
    scenes: ScenesParams = ScenesParams()
    """The embedded world, where one of the three above asks for it."""

    @model_validator(mode="after")
    def _name_what_is_read(self) -> "DownloadParams":
        keys = [f"{self.pairs}.{key}" for key in _NEEDED.get(self.pairs, ())]
        missing = [key for key in keys if self._value(key) is None]
        if missing:
            msg = f"pairs is {self.pairs}, which needs {' and '.join(missing)}"
            raise ValueError(msg)
        return self

    def _value(self, dotted_key: str) -> object:
        block, key = dotted_key.split(".")
        return getattr(getattr(self, block), key)


_NEEDED = {"folder": ("images", "captions"), "webdataset": ("shards",), "hub": ("dataset",)}
"""The keys that must not be null, by kind of pairs."""
