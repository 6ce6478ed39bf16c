"""Source `hub`: a data set of the Hugging Face Hub, in webdataset shards or Parquet files.

Shards are read in the Hub's cache and images of Parquet files are packed once. `load_dataset` would
write all of it to a second cache, and has no members that could be read in place.
"""

import contextlib
import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.core.checksums import hash_strings
from pipeline.core.errors import DownloadError, InputError
from pipeline.core.progress import log, progress
from pipeline.download.archives import MAX_MEMBER_BYTES, Packer, pack
from pipeline.download.folder import IMAGE_ENDINGS
from pipeline.download.pairing import (
    SPLIT_OF_NAME,
    PairRows,
    draw_split,
    named_split,
    read_captions,
)
from pipeline.download.parquet import ParquetRows, has_images, has_text
from pipeline.download.webdataset import Shard, add_shards
from pipeline.params.download import HubParams
from pipeline.params.places import expanded

_KEY = "download.hub"
_TARS = (".tar", ".tar.gz", ".tgz")
_PARQUET = ".parquet"
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_OF_NAME)})(?![a-z])", re.IGNORECASE)
_SPLIT_FOLDER = re.compile(rf"(partial-)?({'|'.join(SPLIT_OF_NAME)})[-_]?\d*", re.IGNORECASE)
_SHOWN = 5
_LONGEST_NAME = 200


def write_hub_pairs(rows: PairRows, params: HubParams) -> None:
    """Add the images and captions of a data set: of its shards if it has any, else of its Parquet.

    Shards stay in the Hub's cache; the images of each Parquet file become a zip. Where neither
    column nor file name gives the split of an image, it is drawn.
    """
    from huggingface_hub import HfApi, hf_hub_download

    name, api = str(params.dataset), HfApi()
    with _reports_refusal(name, params.revision):
        commit = str(api.dataset_info(name, revision=params.revision).sha)
        files = sorted(api.list_repo_files(name, repo_type="dataset", revision=commit))
    log.info("%s is at revision %s", name, commit)

    def fetch(file: str) -> Path:
        with _reports_refusal(name, commit):
            path = hf_hub_download(name, file, repo_type="dataset", revision=commit)
        return Path(path).absolute()

    def shard(file: str) -> Shard:
        path = fetch(file)
        return Shard(path, split_in_name(file), f"delete {path.resolve()} to fetch it again.")

    if tars := _chosen(files, params, _TARS):
        add_shards(rows, map(shard, tars), total=len(tars))
    elif tables := _chosen(files, params, (_PARQUET,)):
        add_tables(rows, (ParquetRows(fetch(file), file) for file in tables), params)
    else:
        shown = ", ".join(files[:_SHOWN]) or "none"
        wanted = "" if params.files is None else f" that match {_KEY}.files, {params.files}"
        raise InputError(
            f"{name} has no .parquet or .tar files{wanted}, but {shown}.",
            f"check {_KEY}.dataset and .files; many have a revision refs/convert/parquet.",
        )


@contextlib.contextmanager
def _reports_refusal(name: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub import errors

    login = "run `hf auth login` or set HF_TOKEN."
    refusals: dict[type[Exception], tuple[str, str]] = {
        errors.GatedRepoError: (
            "is open only to those who accepted its terms",
            f"accept them on its page, then {login}",
        ),
        errors.RepositoryNotFoundError: (
            "is not there, or not open to you",
            f"check {_KEY}.dataset; for a private one {login}",
        ),
        errors.RevisionNotFoundError: (
            f"has no revision {revision}",
            f"check {_KEY}.revision; null is the newest.",
        ),
        errors.HFValidationError: ("has an invalid name", f"write {_KEY}.dataset as ORG/NAME."),
        errors.OfflineModeIsEnabled: (
            "could not be downloaded: HF_HUB_OFFLINE is set",
            "unset HF_HUB_OFFLINE and run it again.",
        ),
    }
    try:
        yield
    except tuple(refusals) as error:
        why, fix = next(said for kind, said in refusals.items() if isinstance(error, kind))
        if Path(expanded(name)).exists():
            fix = "for data on this machine set download.pairs to folder or webdataset."
        raise DownloadError(f"the data set {name} {why}.", fix) from None
    except Exception as error:  # noqa: BLE001  # errors of the transport are not wrapped
        reason = " ".join((str(error) or type(error).__name__).split()).rstrip(".")[:300]
        raise DownloadError(
            f"the data set {name} could not be downloaded: {reason}.",
            "check the network and HF_ENDPOINT, and run it again; what was transferred is kept.",
        ) from None


def _chosen(files: Sequence[str], params: HubParams, endings: tuple[str, ...]) -> list[str]:
    """The files of these endings that `params.files` names, else all of them, of one config."""
    files = [file for file in files if file.lower().endswith(endings)]
    if params.files is not None:
        return [file for file in files if fnmatch.fnmatchcase(file, params.files)]
    if len(configs := configs_of(files)) > 1:
        shown = ", ".join(configs[:_SHOWN]) + (", ..." if len(configs) > _SHOWN else "")
        raise InputError(
            f"{params.dataset} has files of several configs: {shown}; they may hold the same "
            "pictures in other splits.",
            f"choose with {_KEY}.files, such as {configs[-1]}/**; ** takes all.",
        )
    return files


def configs_of(files: Sequence[str]) -> list[str]:
    """The configs that files are of: their folders, without those that only name a split.

    The Hub's own branch refs/convert/parquet has CONFIG/SPLIT/0000.parquet; others have
    data/train-00000-of-00003.parquet, CONFIG/train-0.parquet or train/0.parquet. `.` is the top.
    """
    folders = (PurePosixPath(file).parent.parts for file in files)
    kept = (filter(lambda part: not _SPLIT_FOLDER.fullmatch(part), parts) for parts in folders)
    return sorted({str(PurePosixPath(*parts)) for parts in kept})


def split_in_name(file: str) -> str | None:
    """The split in a file's name, or else in the nearest of its folders that names one.

    `data/train-00000-of-00003.parquet` is train, `test/0.tar` is test; None: no part names one.
    """
    for part in reversed(PurePosixPath(file).parts):
        if found := _SPLIT.search(part):
            return SPLIT_OF_NAME[found[0].lower()]
    return None


def add_tables(rows: PairRows, tables: Iterable[ParquetRows], params: HubParams) -> None:
    """Repack the images of every table into its own zip, and add them with their captions."""
    rows.left_out.update(files=0, samples_without_image=0)
    for table in tables:
        table.require(f"{_KEY}.image_column", params.image_column, has_images)
        table.require(f"{_KEY}.caption_column", params.caption_column, has_text)
        with pack(rows.folder / archive_of(table.name)) as packer:
            _repack(table, packer, rows, params)
        rows.left_out["files"] += 1
        rows.left_out["samples_without_image"] += table.count - packer.members
    if not rows.images:
        raise InputError(
            f"{params.dataset} holds no image bytes in column {params.image_column}.",
            f"set {_KEY}.image_column to a column with the images themselves, not their addresses.",
        )


def archive_of(file: str) -> str:
    """The name of the zip for a Parquet file's images; no two files have the same."""
    name = file.removesuffix(_PARQUET).replace("/", "--")
    if len(name.encode()) <= _LONGEST_NAME and name.replace("--", "/") + _PARQUET == file:
        return f"{name}.zip"
    return f"{name[-40:]}-{hash_strings([file])[:12]}.zip"


def _repack(table: ParquetRows, packer: Packer, rows: PairRows, params: HubParams) -> None:
    """Pack the images by the number of their row."""
    archive, split_of_file = archive_of(table.name), split_in_name(table.name)
    split_column = params.split_column if table.has(params.split_column, has_text) else None
    columns = [params.image_column, params.caption_column, *filter(None, [split_column])]
    every = table.rows(columns, at_once=64)
    for row, cells in progress(every, what=archive, unit="row", total=table.count):
        content, ending = _image(cells[params.image_column])
        if not content or len(content) > MAX_MEMBER_BYTES:
            continue
        where, member = f"{table.name} row {row:,}", f"{row:08d}{ending}"
        # Drawn by its bytes: paths are often missing or alike, and rows move between files.
        split = split_of_file or draw_split(content, rows.splits)
        if split_column:
            split = named_split(cells[split_column], where)
        packer.add(member, content)
        captions = read_captions(cells[params.caption_column], f"{where}: {params.caption_column}")
        rows.add(split, archive, member, captions)


def _image(cell: Any) -> tuple[bytes | None, str]:
    """The bytes of an image, and the ending of its path where that is an image's."""
    if not isinstance(cell, dict):
        return cell, ""
    ending = PurePosixPath(str(cell.get("path") or "")).suffix.lower()
    return cell["bytes"], ending if ending.removeprefix(".") in IMAGE_ENDINGS else ""
