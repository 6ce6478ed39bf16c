"""Source `hub`: a data set of the Hugging Face hub, in webdataset shards or Parquet files."""

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.core.checksums import hash_strings
from pipeline.core.errors import DownloadError, InputError
from pipeline.core.progress import log, progress
from pipeline.core.redact import one_line
from pipeline.download.archives import MAX_MEMBER_BYTES
from pipeline.download.captions import read_captions
from pipeline.download.folder import IMAGE_ENDINGS
from pipeline.download.pack import Packer, pack
from pipeline.download.pairing import PairRows
from pipeline.download.parquet import ParquetRows, has_bytes
from pipeline.download.splits import SPLIT_OF_NAME, draw_split
from pipeline.download.webdataset import Shard, add_shards
from pipeline.params.download import HubParams, SplitsParams
from pipeline.params.places import expanded

_KEY = "download.hub"
_TARS = (".tar", ".tar.gz", ".tgz")
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_OF_NAME)})(?![a-z])", re.IGNORECASE)
_SPLIT_FOLDER = re.compile(rf"(partial-)?({'|'.join(SPLIT_OF_NAME)})[-_]?\d*", re.IGNORECASE)
_PARQUET = ".parquet"
_LONGEST_NAME = 200
_BATCH = 64


@dataclass(frozen=True)
class Repository:
    """A data set of the hub at one commit."""

    name: str
    commit: str
    files: tuple[str, ...]

    def fetch(self, file: str) -> Path:
        """The path of a file in the hub's cache, where it is fetched to if it is not there.

        Raises:
            DownloadError: it cannot be fetched.
        """
        from huggingface_hub import HfApi

        try:
            path = HfApi().hf_hub_download(
                self.name, file, repo_type="dataset", revision=self.commit
            )
        except Exception as error:  # noqa: BLE001  # the hub's library lets its transport's errors pass
            raise _refused(error, self.name, self.commit) from None
        return Path(path).absolute()


def write_hub_pairs(target: Path, rows: PairRows, params: HubParams, splits: SplitsParams) -> None:
    """Add the images and captions of a data set: of its shards if it has any, else of its Parquet.

    Args:
        target: gets a zip for each Parquet file; shards stay in the hub's cache.
        rows: gets the rows.
        params: names data set, revision and columns.
        splits: draws the splits of files whose name names none.

    Raises:
        DownloadError: the data set or revision is not there or cannot be fetched.
        InputError: it has no usable file, column or image, or files of several configs.
        ResourceError: the disk is full.
    """
    repository = find_repository(params)
    if tars := _chosen(repository, params, _TARS):
        shards = (Shard(repository.fetch(file), split_in_name(file)) for file in tars)
        add_shards(rows, shards, splits, total=len(tars), on_damage=_refuse)
    elif tables := _chosen(repository, params, (_PARQUET,)):
        _add_tables(target, rows, repository, tables, params, splits)
    else:
        raise _nothing_found(repository, params)


def _nothing_found(repository: Repository, params: HubParams) -> InputError:
    shown = ", ".join(repository.files[:_SHOWN]) or "none"
    if params.files is not None:
        return InputError(
            f"{repository.name} has no .parquet or .tar files that match {params.files}, but "
            f"{shown}.",
            f"check {_KEY}.files; null takes all.",
        )
    return InputError(
        f"{_KEY}.dataset: {repository.name} has neither .parquet nor .tar files, but {shown}.",
        "name another data set; many have a revision refs/convert/parquet.",
    )


_SHOWN = 5


def find_repository(params: HubParams) -> Repository:
    """The data set that the params name, with the files it has at the newest commit there.

    Raises:
        DownloadError: it is not there, not open, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    name, api = str(params.dataset), HfApi()
    try:
        commit = str(api.dataset_info(name, revision=params.revision).sha)
        files = api.list_repo_files(name, repo_type="dataset", revision=commit)
    except Exception as error:  # noqa: BLE001  # the hub's library lets its transport's errors pass
        raise _refused(error, name, params.revision) from None
    log.info("%s is of revision %s", name, commit)
    return Repository(name, commit, tuple(sorted(files)))


def _refused(error: Exception, name: str, revision: str | None) -> DownloadError:
    from huggingface_hub import errors

    refusals: list[tuple[type[Exception], str, str]] = [
        (
            errors.GatedRepoError,
            "is open only to those who accepted its terms",
            "accept them on its page, then run `hf auth login` or set HF_TOKEN.",
        ),
        (
            errors.RepositoryNotFoundError,
            "is not there, or not open to you",
            f"check {_KEY}.dataset; for a private one run `hf auth login` or set HF_TOKEN.",
        ),
        (
            errors.RevisionNotFoundError,
            f"has no revision {revision}",
            f"check {_KEY}.revision; null is the newest.",
        ),
        (errors.HFValidationError, "is no name of the hub", f"write {_KEY}.dataset as ORG/NAME."),
        (
            errors.OfflineModeIsEnabled,
            "cannot be fetched: HF_HUB_OFFLINE is set",
            "unset HF_HUB_OFFLINE and run it again.",
        ),
    ]
    for kind, why, fix in refusals:
        if isinstance(error, kind):
            own = _OWN if Path(expanded(name)).exists() else ""
            return DownloadError(f"the data set {name} {why}.", own or fix)
    reason = " ".join((str(error) or type(error).__name__).split()).rstrip(".")[:300]
    return DownloadError(
        f"the data set {name} cannot be fetched: {reason}.",
        "check the network and HF_ENDPOINT, and run it again; what was transferred is kept.",
    )


_OWN = "for data on this machine set download.pairs to folder or webdataset."


def _refuse(path: Path, error: InputError) -> None:
    raise InputError(error.what, f"delete {path.resolve()} to fetch it again.")


def _chosen(repository: Repository, params: HubParams, endings: tuple[str, ...]) -> list[str]:
    """The files of these endings that `params.files` names, else all of them.

    Raises:
        InputError: it names none, and they are of several configs.
    """
    files = [file for file in repository.files if file.lower().endswith(endings)]
    if params.files is not None:
        return [file for file in files if fnmatch.fnmatchcase(file, params.files)]
    if len(configs := configs_of(files)) > 1:
        shown = ", ".join(configs[:_SHOWN]) + (", ..." if len(configs) > _SHOWN else "")
        raise InputError(
            f"{repository.name} has files of several configs: {shown}; they may hold the same "
            "pictures in other splits.",
            f"choose with {_KEY}.files, such as {configs[-1]}/**; ** takes all.",
        )
    return files


def configs_of(files: Sequence[str]) -> list[str]:
    """The configs that files are of: their folders, without those that only name a split.

    The hub's own branch refs/convert/parquet has CONFIG/SPLIT/0000.parquet; others have
    data/train-00000-of-00003.parquet, CONFIG/train-0.parquet or train/0.parquet. `.` is the top.
    """
    folders = (PurePosixPath(file).parent.parts for file in files)
    kept = (filter(lambda part: not _SPLIT_FOLDER.fullmatch(part), parts) for parts in folders)
    return sorted({str(PurePosixPath(*parts)) for parts in kept})


def split_in_name(file: str) -> str | None:
    """The split that a file's name names, or else the nearest of its folders that names one.

    `data/train-00000-of-00003.parquet` is of train, `test/0.tar` of test; None: no part says.
    """
    for part in reversed(PurePosixPath(file).parts):
        if found := _SPLIT.search(part):
            return SPLIT_OF_NAME[found[0].lower()]
    return None


def _add_tables(
    target: Path,
    rows: PairRows,
    repository: Repository,
    tables: Sequence[str],
    params: HubParams,
    splits: SplitsParams,
) -> None:
    """Repack the images of every Parquet file into a zip of its own."""
    rows.left_out.update(files=len(tables), samples_without_image=0)
    packed = 0
    for file in tables:
        table = open_table(repository.fetch(file), file, params)
        archive = archive_of(file)
        with pack(target / archive) as packer:
            _Table(table, params, splits, split_in_name(file)).repack(archive, packer, rows)
        rows.left_out["samples_without_image"] += table.count - packer.members
        packed += packer.members
    if not packed:
        raise InputError(
            f"{repository.name} holds no image bytes in column {params.image_column}.",
            f"set {_KEY}.image_column to a column with the images themselves, not their addresses.",
        )


def archive_of(file: str) -> str:
    """The name of the zip for a Parquet file's images; no two files have the same."""
    name = file.removesuffix(_PARQUET).replace("/", "--")
    if len(name.encode()) <= _LONGEST_NAME and name.replace("--", "/") + _PARQUET == file:
        return f"{name}.zip"
    return f"{name[-_LONGEST_TAIL:]}-{hash_strings([file])[:12]}.zip"


_LONGEST_TAIL = 40


def open_table(path: Path, file: str, params: HubParams) -> ParquetRows:
    """A Parquet file with a column of images and one of captions.

    Raises:
        InputError: it is damaged or has no such columns.
    """
    columns = {
        f"{_KEY}.image_column": params.image_column,
        f"{_KEY}.caption_column": params.caption_column,
    }
    table = ParquetRows(path, columns, name=file)
    table.require_text(f"{_KEY}.caption_column", params.caption_column)
    kind = table.schema.field(params.image_column).type
    if not has_bytes(kind):
        raise InputError(
            f"{file} has a column {params.image_column} of {one_line(str(kind), 120)}, no images.",
            f"set {_KEY}.image_column to a column of bytes, or of {{bytes, path}}.",
        )
    return table


@dataclass(frozen=True)
class _Table:
    """One Parquet file, and how to read it."""

    rows: ParquetRows
    params: HubParams
    splits: SplitsParams
    split: str | None

    def repack(self, archive: str, packer: Packer, rows: PairRows) -> None:
        """Pack the images under the number of their row, and add them with their captions."""
        for row, cells in progress(self._cells(), what=archive, unit="row", total=self.rows.count):
            content, ending = _image(cells[self.params.image_column])
            if not content or len(content) > MAX_MEMBER_BYTES:
                continue
            member = f"{row:08d}{ending}"
            packer.add(member, content)
            # By its bytes: paths are often missing or alike, and rows move when files are cut anew.
            split = self.split or draw_split(content, self.splits)
            where = f"{self.rows.name} row {row:,}: {self.params.caption_column}"
            captions = read_captions(cells[self.params.caption_column], where)
            rows.add_captions(rows.add_image(split, archive, member), captions)

    def _cells(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for start, batch in self.rows.batches(_BATCH):
            yield from enumerate(batch, start)


def _image(cell: Any) -> tuple[bytes | None, str]:
    """The bytes of an image, and the ending of its path where that is an image's."""
    if not isinstance(cell, dict):
        return cell, ""
    ending = PurePosixPath(str(cell.get("path") or "")).suffix.lower()
    return cell["bytes"], ending if ending.removeprefix(".") in IMAGE_ENDINGS else ""
