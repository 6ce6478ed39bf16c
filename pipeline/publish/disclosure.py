"""What others ask about the data of a student: CONTAMINATION.md, and mteb's `ModelMeta`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.evaluate.mteb_names import RETRIEVAL_NAMES, STS_NAMES
from pipeline.publish.collect import Facts

CONTAMINATED = 0.01
"""Share of a task's pairs with a sentence of the training text, from which on mteb is told."""
_TRAINED_ON: Mapping[str, frozenset[str]] = {
    "flickr30k": frozenset(RETRIEVAL_NAMES["mieb-flickr30k"].values()),
    "coco": frozenset(RETRIEVAL_NAMES["mieb-coco"].values()),
    "coco-train2014": frozenset(RETRIEVAL_NAMES["mieb-coco"].values()),
    **dict.fromkeys(("flickr8k", "wiki1m", "scenes"), frozenset()),
}
"""mteb's tasks that were made of a corpus, whatever the split; own corpora are not known to it."""
_LICENCES = {
    *("mit", "apache-2.0", "bsd-3-clause", "gpl-3.0", "mpl-2.0", "cc0-1.0", "openrail"),
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
}
"""Identifiers that mteb takes too."""
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701  # neither file is HTML
)


def describe_contamination(facts: Facts) -> str:
    """CONTAMINATION.md: how much of each test occurs in the training text."""
    return _render("contamination.md", facts, shares=_shares(facts), tasks=_tasks(facts))


def describe_to_mteb(facts: Facts) -> str:
    """A Python file with mteb's `ModelMeta` as `model`, which loads the folder that it is in."""
    name = facts["repository"] or f"kdmcse/{facts['student']['objective']}-student"
    licence = facts["licence"] if facts["licence"] in _LICENCES else None
    shares = _shares(facts)
    return _render(
        "mteb_model.jinja", facts, name=name, licence=licence, shares=shares, tasks=_tasks(facts)
    )


def _render(template: str, facts: Facts, **more: Any) -> str:
    corpora = [one["name"] for one in facts["corpora"] if one["part"] != "evaluation"]
    known = {**facts, **more, "trained_on": list(dict.fromkeys(corpora)), "limit": CONTAMINATED}
    return _TEMPLATES.get_template(template).render(known)


def _shares(facts: Facts) -> dict[str, float]:
    """The share of each STS task's pairs with a sentence of the training text, by our name."""
    counts: dict[str, list[tuple[int, int]]] = {}
    for row in facts["leak"] or []:
        if row["part"] == "sts":
            counts.setdefault(row["task"], []).append((row["seen"], row["samples"]))
    sums = {task: map(sum, zip(*rows, strict=True)) for task, rows in counts.items()}
    return {task: seen / samples for task, (seen, samples) in sums.items()}


def _tasks(facts: Facts) -> list[str] | None:
    """The tasks of mteb that the student has read parts of; None where it is not known."""
    corpora = {one["name"] for one in facts["corpora"] if one["part"] != "evaluation"}
    if facts["leak"] is None or not corpora <= _TRAINED_ON.keys():
        return None
    leaked = {task for task, share in _shares(facts).items() if share >= CONTAMINATED}
    named = {STS_NAMES[task] for task in leaked & STS_NAMES.keys()}
    return sorted(named.union(*(_TRAINED_ON[corpus] for corpus in corpora)))
