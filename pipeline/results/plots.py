"""A page for `dvc plots show` that needs no network.

DVC fills a template of its own, whose scripts come from the internet. Ours holds Vega itself, as
the package vl-convert-python brings it along; DVC reads it where `plots.html_template` names it.
"""

import subprocess
import sys
from pathlib import Path

from pipeline.core.errors import InputError, PipelineError
from pipeline.core.extras import require_extra
from pipeline.core.files import atomic_file

FRAME = Path(".dvc/plots/frame.html")
"""The page without its scripts."""
PAGE = Path(".dvc/plots/page.html")
"""The page that DVC fills; git does not know it."""

_EMBED = """
window.vegaEmbed = (place, { $schema, ...chart }) => vegaEmbed(place, chart, {
  mode: "vega-lite",
  renderer: "svg",
  actions: { export: true, source: false, compiled: false, editor: false },
  config: {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: "#ddd" },
    axis: { labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal", gridColor: "#eee" },
    header: { labelFontSize: 12, labelFontWeight: "bold" },
    legend: { labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal" },
    title: { fontSize: 16, subtitleFontSize: 13, subtitleColor: "#555", anchor: "start",
             offset: 14, subtitlePadding: 5 },
    line: { strokeWidth: 1.5 },
  },
});
"""
"""What the page's charts call: as DVC does, with vectors, a look, and no link to an editor."""


def make_page(project: Path = Path()) -> Path:
    """Write the page, and name it in DVC's configuration of this clone, which git does not know.

    Raises:
        InputError: the folder is not a clone of the project.
        PipelineError: DVC refuses the setting.
        ResourceError: the page cannot be written, or a package is not installed.
    """
    require_extra("repro", "the page of plots", "dvc", "vl_convert")
    from vl_convert import javascript_bundle

    frame = project / FRAME
    if not frame.is_file():
        raise InputError(f"{frame} does not exist.", "run in the folder of the project.")
    vega = javascript_bundle(_EMBED).replace("</script", r"<\\/script")
    with atomic_file(project / PAGE) as temporary:
        text = frame.read_text(encoding="utf-8").replace("{vega}", vega)
        temporary.write_text(text, encoding="utf-8")
    setting = ["plots.html_template", str(PAGE.relative_to(".dvc"))]
    command = [sys.executable, "-m", "dvc", "config", "--local", *setting]
    done = subprocess.run(  # noqa: S603  # our own interpreter and words
        command, cwd=project, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise PipelineError(f"DVC refuses its setting: {reason}", "run `dvc doctor`.")
    return project / PAGE
