"""Source `hub`: a data set of the Hugging Face Hub, in webdataset shards or Parquet files.

It may also be a file or folder of this machine, as `hf download` leaves it. Shards are read in the
Hub's cache and images of Parquet files are packed once. `load_dataset` would write all of it to a
second cache, and has no members that could be read in place.
"""

import contextlib
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.core.errors import DownloadError, InputError
from pipeline.core.progress import log
from pipeline.download.image_tables import (
    PARQUET,
    add_tables,
    local_files,
    require_one_config,
    split_in_name,
)
from pipeline.download.pairing import PairRows
from pipeline.download.parquet import ParquetRows
from pipeline.download.webdataset import Shard, add_shards
from pipeline.params.download import HubParams

_KEY = "download.hub"
_Files = tuple[list[str], Callable[[str], Path]]
"""The names of a data set's files, and what gets one."""


def write_hub_pairs(rows: PairRows, params: HubParams) -> None:
    """Add the images and captions of a data set: of its shards if it has any, else of its Parquet.

    Shards stay in the Hub's cache; the images of each Parquet file become a zip. Where neither
    column nor file name gives the split of an image, it is drawn.
    """
    name = str(params.dataset)
    is_here = Path(name).is_absolute() or Path(name).exists()
    files, fetch = _on_this_machine(name, params) if is_here else _on_the_hub(name, params)

    def chosen(*endings: str) -> Sequence[str]:
        found = [file for file in files if file.lower().endswith(endings)]
        if params.files is not None:
            found = fnmatch.filter(found, params.files)
        else:
            fix = f"choose with {_KEY}.files, such as {{}}/**; ** takes all."
            require_one_config(found, name, fix)
        return found if is_here else rows.to_fetch(found)

    def shard(file: str) -> Shard:
        path = fetch(file)
        again = "get it again" if is_here else f"delete {path.resolve()} to fetch it again"
        return Shard(path, split_in_name(file), f"{again}.")

    if tars := chosen(".tar", ".tar.gz", ".tgz"):
        add_shards(rows, map(shard, tars), total=len(tars))
    elif tables := chosen(PARQUET):
        add_tables(rows, (ParquetRows(fetch(file), file) for file in tables), params)
    else:
        shown = ", ".join(files[:5]) or "none"
        wanted = "" if params.files is None else f" that match {_KEY}.files, {params.files}"
        raise InputError(
            f"{name} has no .parquet or .tar files{wanted}, but {shown}.",
            f"check {_KEY}.dataset and .files; many have a revision refs/convert/parquet.",
        )


def _on_this_machine(name: str, params: HubParams) -> _Files:
    if params.revision is not None:
        raise InputError(
            f"{name} is of this machine, where {_KEY}.revision has no meaning.",
            f"set {_KEY}.revision to null, or {_KEY}.dataset to a name of the Hub.",
        )
    folder, files = local_files(name, f"{_KEY}.dataset")
    log.info("%s is read on this machine", folder)
    return files, lambda file: folder / file


def _on_the_hub(name: str, params: HubParams) -> _Files:
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi()
    with _reports_refusal(name, params.revision):
        commit = str(api.dataset_info(name, revision=params.revision).sha)
        files = sorted(api.list_repo_files(name, repo_type="dataset", revision=commit))
    log.info("%s is at revision %s", name, commit)

    def fetch(file: str) -> Path:
        with _reports_refusal(name, commit):
            path = hf_hub_download(name, file, repo_type="dataset", revision=commit)
        return Path(path).absolute()

    return files, fetch


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
    except Exception as error:  # noqa: BLE001  # errors of the transport are not wrapped
        reason = " ".join((str(error) or type(error).__name__).split()).rstrip(".")[:300]
        other = (
            f"could not be downloaded: {reason}",
            "check the network and HF_ENDPOINT, and run it again; what was transferred is kept.",
        )
        known = (said for kind, said in refusals.items() if isinstance(error, kind))
        why, fix = next(known, other)
        raise DownloadError(f"the data set {name} {why}.", fix) from None
