"""The `download` block: which corpora the pipeline runs on."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.params.block import Block, Number, Text
from pipeline.params.places import PathText

Pairs = Literal[
    "scenes", "flickr8k", "flickr30k", "coco", "coco-train2014", "folder", "webdataset", "hub"
]
PathTexts = Annotated[list[PathText], Field(min_length=1, max_length=10_000)]
Columns = Text | Annotated[list[Text], Field(min_length=1, max_length=1000)]
"""A column, a pattern such as caption_*, or a list of these."""
Fraction = Annotated[Number, Field(ge=0, lt=1)]


def _one_character(value: str) -> str:
    if value != "tab" and (len(value) > 1 or value in '"\r\n\0'):
        msg = "separator must be one character other than a quote, or tab"
        raise ValueError(msg)
    return value


Separator = Annotated[str, Field(min_length=1, max_length=3), AfterValidator(_one_character)]


class FolderParams(Block):
    """A folder of images and a table of captions."""

    images: PathText | None = None
    """The folder of the images; None: `captions` is a Parquet file, or a folder of them, that holds
    the images."""
    captions: PathText | None = None
    """The table: .csv, .tsv, .txt, .token, .json, .jsonl or .parquet; None: a .txt beside each
    image."""
    separator: Separator | None = None
    """Separates the fields of a .csv, .tsv or .txt: a character, or `tab`; None: the one of comma,
    tab, semicolon and bar by which the header has the columns."""
    image_column: Text = "image"
    """The column of an image's path, relative to `images`, or of the images' bytes."""
    caption_column: Columns = "caption"
    """The column or columns of a caption, or of a list of captions; caption_* takes all such."""
    split_column: Text | None = None
    """The column of the split; None: drawn by `splits`."""


class WebdatasetParams(Block):
    """Shards as img2dataset writes them."""

    shards: PathText | PathTexts | None = None
    """Local paths or http(s) URLs, with ranges such as {00000..00331}; local ones may be globs."""
    damaged: Literal["error", "skip"] = "error"
    """What to do about a damaged shard: stop, or leave out the whole shard."""


class HubParams(Block):
    """A data set of the Hugging Face Hub, in Parquet files or webdataset shards."""

    dataset: PathText | None = None
    """Its name there, ORG/NAME; or a file or folder of this machine."""
    revision: Text | None = None
    """A branch, tag or commit; None: the newest commit of the main branch."""
    files: Text | None = None
    """A glob of the files to read, in which * stands for / too; None: all, of one config."""
    image_column: Text = "image"
    """The column of the images' bytes, in Parquet files."""
    caption_column: Columns = "caption"
    """The column or columns of a caption or of a list of captions, in Parquet files."""
    split_column: Text | None = "split"
    """The column of the split, where a Parquet file has it as text; else, or where None, the name
    of the file decides, or the split is drawn by `splits`."""


class SplitsParams(Block):
    """Fractions of the images for a source that names no splits; the rest is train."""

    val: Fraction = 0.01
    """Fraction of the images in val, 0 to below 1."""
    test: Fraction = 0.01
    """Fraction of the images in test, 0 to below 1."""

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
    """Graded sentence pairs of train, dev and test together; the transfer tasks grow with it."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the whole world, no unit."""


class DownloadParams(Block):
    """Which corpora to fetch, and the size of those the project makes itself."""

    pairs: Pairs = "scenes"
    """Images with captions."""
    text: Literal["scenes", "wiki1m", "file", "none"] = "scenes"
    """Text-only sentences; none: training reads captions alone."""
    text_file: PathText | PathTexts | None = None
    """Your sentences, where text is `file`: .txt with one a line, .csv, .tsv, .json, .jsonl or
    .parquet; or a list of such files."""
    text_column: Text = "text"
    """The column of a sentence, or of a list of sentences, in files other than .txt."""
    evaluation: Literal["scenes", "senteval", "mteb", "mteb-sts"] = "scenes"
    """STS and transfer tasks; `mteb` is senteval plus the cased STS-B, `mteb-sts` the STS tasks
    alone, from the Hub's mteb/* data sets."""
    folder: FolderParams = FolderParams()
    """Your images and captions, where pairs is `folder`."""
    webdataset: WebdatasetParams = WebdatasetParams()
    """Your shards, where pairs is `webdataset`."""
    hub: HubParams = HubParams()
    """A data set of the Hub, where pairs is `hub`."""
    splits: SplitsParams = SplitsParams()
    """The splits of your own pairs."""
    scenes: ScenesParams = ScenesParams()
    """The embedded world, where one of the three above asks for it."""

    @model_validator(mode="after")
    def _name_what_is_read(self) -> "DownloadParams":
        keys = _NEEDED.get(self.pairs, ())
        if keys and all(getattr(getattr(self, self.pairs), key) is None for key in keys):
            needed = " or ".join(f"{self.pairs}.{key}" for key in keys)
            msg = f"pairs is {self.pairs}, which needs {needed}"
            raise ValueError(msg)
        if (self.text == "file") != (self.text_file is not None):
            msg = "`text_file` names a file where text is `file`, and only there"
            raise ValueError(msg)
        return self


_NEEDED = {"folder": ("images", "captions"), "webdataset": ("shards",), "hub": ("dataset",)}
"""The keys of which one must not be null, by kind of pairs."""
