"""How long the stages took: separate files beside the reports, which DVC and git do not track.

A metric is the same in every run that changed nothing; a time is not. Times are therefore in
`reports/times`, under the name of the stage's report: the `seconds` of the whole command, with
those of a stopped run that it resumed, other measurements, and the sha256 of the `report`. DVC
skips a stage, or takes its results from a cache, without touching that file; the hash tells whether
the current report is that of the run that was timed.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.core.checksums import hash_file
from pipeline.core.files import write_json


def write_times(reports: Path, report: Path, seconds: float, measured: dict[str, Any]) -> None:
    """Write how long a run took; a report outside the folder of reports gets no such file."""
    if reports in report.parents:
        content = {**measured, "seconds": round(seconds, 1), "report": hash_file(report)}
        write_json(_path(reports, report), content)


def read_seconds(reports: Path, report: Path) -> float | None:
    """The time of the run that wrote this very report; None where it is not known."""
    try:
        content = json.loads(_path(reports, report).read_text(encoding="utf-8"))
        return float(content["seconds"]) if content["report"] == hash_file(report) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _path(reports: Path, report: Path) -> Path:
    return reports / "times" / report.relative_to(reports)
