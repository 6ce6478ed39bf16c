"""How long the stages took: files of their own beside the reports, unknown to DVC and git.

A metric is the same in every run that changed nothing; a time is not. What a run took is therefore
in `reports/times`, under the name of the stage's report:

    report     sha256 of the report that the run wrote
    seconds    of the whole command, with what a stopped run took before it
    ...        what else the stage measured, such as rates

DVC skips a stage or takes its results from a cache without touching that file. By the hash it is
known whether the report that is there now is that of the run that was timed.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.core.checksums import hash_file
from pipeline.core.files import write_json

FOLDER = "times"
"""In the folder of reports."""


def write_times(reports: Path, report: Path, seconds: float, measured: dict[str, Any]) -> None:
    """Write what a run took; a report that is not in the folder of reports has no such file.

    Args:
        reports: the folder of reports.
        report: what the run wrote.
        seconds: that it took.
        measured: what else is to be told.

    Raises:
        ResourceError: the place cannot be written.
    """
    if reports in report.parents:
        content = {**measured, "seconds": round(seconds, 1), "report": hash_file(report)}
        write_json(_path(reports, report), content)


def read_seconds(reports: Path, report: Path) -> float | None:
    """What the run took that wrote this very report; None where that is not known."""
    try:
        content = json.loads(_path(reports, report).read_text(encoding="utf-8"))
        return float(content["seconds"]) if content["report"] == hash_file(report) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _path(reports: Path, report: Path) -> Path:
    return reports / FOLDER / report.relative_to(reports)
