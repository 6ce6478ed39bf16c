"""Reader of the Karpathy splits: one json a data set, packed or plain; images in archives."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.core.plaintext import decode
from pipeline.core.redact import first_fault, one_line
from pipeline.download.archives import Archive
from pipeline.download.pairing import SPLIT_OF_NAME, clean_caption
from pipeline.download.records import CAPTIONS, IMAGES

_Text = Annotated[str, Field(max_length=1 << 26)]
"""Only where a text is bounded does pydantic refuse half a character (RFC 8259, 8.2)."""


class _Sentence(BaseModel):
    model_config = ConfigDict(strict=True)
    raw: _Text


class _Image(BaseModel):
    model_config = ConfigDict(strict=True)
    imgid: Annotated[int, Field(ge=0, lt=2**63)]
    split: Literal["train", "restval", "val", "test"]
    filename: _Text
    sentences: list[_Sentence]


def read_karpathy(
    splits: Path, dataset: str, archives: Iterable[Path], *, restval: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of images.parquet and captions.parquet.

    An image that is in no archive is kept, with its bare name as member; the features step counts
    it as rejected.

    Args:
        splits: caption_datasets.zip, or the json of the data set alone.
        dataset: `flickr8k`, `flickr30k` or `coco`.
        archives: the image archives; images are found in them by file name.
        restval: whether to take COCO's validation images that Karpathy added to training.
    """
    name = f"dataset_{dataset}.json"
    members = _members_by_name(archives)
    fallback = next(iter(members.values()), ("", ""))[0]
    images: dict[int, tuple[str, str, str]] = {}
    captions: list[tuple[int, str]] = []
    for row, content in enumerate(_read_json(splits, name)):
        where = f"{splits.name}: {name}, image {row}"
        try:
            image = _Image.model_validate(content)
        except ValidationError as error:
            raise _malformed(where, first_fault(error)) from None
        if image.imgid in images:
            raise _malformed(where, f"imgid: {image.imgid} is that of an earlier image")
        if image.split == "restval" and not restval:
            continue
        archive, member = members.get(image.filename, (fallback, image.filename))
        images[image.imgid] = SPLIT_OF_NAME[image.split], archive, member
        captions += [(image.imgid, clean_caption(sentence.raw)) for sentence in image.sentences]
    return (
        pd.DataFrame([(one, *cells) for one, cells in images.items()], columns=IMAGES.names),
        pd.DataFrame([(n, *row) for n, row in enumerate(captions)], columns=CAPTIONS.names),
    )


def _read_json(splits: Path, name: str) -> list[Any]:
    try:
        images = json.loads(decode(_read_bytes(splits, name), f"{splits}: {name}"))["images"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{splits} holds no usable {name}: {one_line(str(error), 120)}.",
            f"fetch {splits.name} again.",
        ) from None
    if not isinstance(images, list) or not images:
        raise InputError(f"{splits}: {name} lists no images.", f"fetch {splits.name} again.")
    return images


def _read_bytes(splits: Path, name: str) -> bytes:
    if splits.suffix == ".json":
        with reports_unreadable(splits):
            return splits.read_bytes()
    with Archive(splits) as archive:
        return archive.read(name)


def _malformed(where: str, what: str) -> InputError:
    return InputError(f"{where} has no usable {what}.", "fetch the splits again from their source.")


def _members_by_name(archives: Iterable[Path]) -> Mapping[str, tuple[str, str]]:
    """Archive and member of each file name; macOS's shadow files are not images."""
    found: dict[str, tuple[str, str]] = {}
    for path in archives:
        with Archive(path) as archive:
            for member in archive.sizes:
                if not member.startswith("__MACOSX/"):
                    found.setdefault(PurePosixPath(member).name, (path.name, member))
    return found
