"""The model card of a published student: Hugging Face metadata, and the text of `card.md`."""

import json
from pathlib import Path
from typing import cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pipeline.evaluate.score import AVERAGE
from pipeline.publish.collect import Facts

_TEMPLATE = Path(__file__).with_name("card.md")


def make_card(facts: Facts) -> ModelCard:
    """The README of a published student, without a line break at its end."""
    student, corpora = facts["student"], facts["corpora"]
    name = (facts["repository"] or f"{student['objective']}-student").rpartition("/")[2]
    datasets = [n for c in corpora if c["part"] != "evaluation" for n in c["hub_datasets"]]
    metadata = ModelCardData(
        language="en",
        license=facts["licence"],
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "kdmcse", student["objective"]],
        base_model=student["encoder"] if student["hub_encoder"] else None,
        datasets=list(dict.fromkeys(datasets)) or None,
        metrics=["spearmanr"],
        model_name=name,
        eval_results=_eval_results(facts) or None,
    )
    card = ModelCard.from_template(metadata, str(_TEMPLATE), name=name, code=_code, **facts)
    return cast(ModelCard, card)


def _eval_results(facts: Facts) -> list[EvalResult]:
    """The STS test tasks; correlations from -1 to 1, as sentence-transformers reports them."""
    hub = [n for c in facts["corpora"] if c["part"] == "evaluation" for n in c["hub_datasets"]]
    return [
        EvalResult(
            task_type="semantic-similarity",
            task_name="Semantic Similarity",
            dataset_type=hub[0] if hub else "unknown",
            dataset_name=row["task"],
            dataset_config=row["task"],
            dataset_split=row["split"],
            metric_type="spearman_cosine",
            metric_name="Spearman Cosine",
            metric_value=round(row["value"] / 100, 6),
        )
        for row in facts["scores"]
        if row["part"] == "sts" and row["value"] is not None
        if row["split"] != "dev" and row["task"] != AVERAGE
    ]


def _code(value: object) -> str:
    """A value as code in a table cell, which a line break or bar would end."""
    text = value if isinstance(value, str) else json.dumps(value)
    cell = " ".join(text.split()).replace("|", "\\|")
    return f"`{cell}`"
