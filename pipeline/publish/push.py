"""The published folder: the model, its card and provenance.json; and its upload to the hub."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, get_token, is_offline_mode

from pipeline.core.errors import ModelError, ParamsError
from pipeline.core.files import atomic_folder, write_json
from pipeline.core.redact import one_line
from pipeline.publish.card import make_card
from pipeline.publish.collect import Facts
from pipeline.publish.disclosure import describe_contamination, describe_to_mteb

PROVENANCE = "provenance.json"
SCHEMA = 1


def check_names(licence: str | None, repository: str | None) -> None:
    """Refuse a licence or repository that cannot be one, before any work.

    Raises:
        ParamsError: naming the option.
    """
    if licence is not None and not re.fullmatch("[a-z0-9][a-z0-9.-]*", licence):
        raise ParamsError(
            f"--licence {licence} is not a licence identifier of the hub.",
            "write it as the hub does, such as apache-2.0 or cc-by-nc-4.0.",
        )
    if repository is not None and not re.fullmatch(r"(?=.{3,96}$)\w[\w.-]*/\w[\w.-]*", repository):
        raise ParamsError(
            f"--push {repository} is not a repository name.",
            "write ORG/NAME: letters, digits, '-', '_' and '.', at most 96 of them.",
        )


def write_folder(out: Path, facts: Facts, write_model: Callable[[Path], Facts]) -> None:
    """Write the model, its card, what others ask about its data, and provenance.json as `out`.

    An empty folder, or an earlier publication of the same student (objective, initial encoder and
    seed), is replaced.

    Args:
        out: the folder.
        facts: of the card.
        write_model: fills a folder, and says what it wrote, as further facts.

    Raises:
        ParamsError: there is something else at `out`.
        ResourceError: the place cannot be written.
    """
    _check_replaceable(out, facts)
    with atomic_folder(out) as folder:
        facts = facts | write_model(folder)
        (folder / "README.md").write_text(f"{make_card(facts)}\n", encoding="utf-8")
        (folder / "CONTAMINATION.md").write_text(describe_contamination(facts), encoding="utf-8")
        (folder / "mteb_model.py").write_text(describe_to_mteb(facts), encoding="utf-8")
        write_json(folder / PROVENANCE, {"schema": SCHEMA, **facts})


def copy_student(folder: Path, student: Path) -> None:
    """Copy a student directory without its card."""
    shutil.copytree(
        student,
        folder,
        ignore=shutil.ignore_patterns("README.md"),
        copy_function=shutil.copyfile,  # files of DVC's cache are read-only
        dirs_exist_ok=True,
    )


def _check_replaceable(out: Path, facts: Facts) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        found = _which(json.loads((out / PROVENANCE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ParamsError(
            f"--out {out} already exists and was not written by this command: it has no usable "
            f"{PROVENANCE}.",
            "name another folder, or move this one away.",
        ) from None
    if found != (this := _which(facts)):
        raise ParamsError(
            f"--out {out} holds another student, {found}; this one is {this}.",
            "name another folder, or delete this one.",
        )


def _which(facts: Facts) -> str:
    """A student as people tell it from others; training it again does not change this."""
    student, seed = facts["student"], facts["selection"]["seed"]
    return f"{student['objective']} from {student['encoder']} with seed {seed}"


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a published folder to the model hub, at HF_ENDPOINT where that is set.

    Args:
        folder: what `write_folder` wrote; it stays, whatever happens.
        repository: ORG/NAME; it is created where it does not exist.
        private: whether it must be private.

    Returns:
        Its address.

    Raises:
        ModelError: it cannot be uploaded, for example without a token, network or write access.
    """
    if is_offline_mode():
        why, fix = "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE and run it again."
    elif (token := get_token()) is None:
        why, fix = "there is no access token", "run `hf auth login`, or set HF_TOKEN."
    else:
        api = HfApi(token=token)
        try:
            address = str(api.create_repo(repository, private=private or None, exist_ok=True))
            if not private or api.model_info(repository).private:  # an old one may be public
                message = f"Publish {folder.name}"
                api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
                return address
        except Exception as error:  # noqa: BLE001  # errors of the hub's transport come as they are
            reason = one_line(str(error).strip() or type(error).__name__, 300).rstrip(".")
            why = f"{api.endpoint} did not accept it ({reason})"
            fix = (
                "check the token's write access (`hf auth login`), the name, "
                "the network and HF_ENDPOINT."
            )
        else:
            why = "the repository exists and is public"
            fix = "make it private on the hub, name another one, or omit --private."
    raise ModelError(f"{folder} was written, but not pushed to {repository}: {why}.", fix)
