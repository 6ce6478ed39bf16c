"""The short model card that travels with a student; `stages.publish` writes the whole one."""

from collections.abc import Mapping

from pipeline.params.teacher import TeacherParams
from pipeline.train.run_params import RunParams

_TEMPLATE = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, kdmcse]
---

# A {objective} sentence encoder

Made from `{encoder}` with {pooling} pooling by the KDMCSE pipeline.

```python
from sentence_transformers import SentenceTransformer

SentenceTransformer("this folder").encode(["a red circle above a blue square"])
```

| | |
|---|---|
| teacher | `{teacher}` |
| steps, batch size, learning rate, seed | {steps}, {batch_size}, {learning_rate:g}, {seed} |
| margin and its kind, text margin (radians) | {margin:g} {margin_kind}, {text_margin:g} |
| temperature, weight (lambda), grounded losses | {temperature:g}, {grounding_weight:g}, {terms} |
| positives, weight of the teacher's rows | {positives}, {rows:g} |
| noise filter | {filter} |
| STS dev, Spearman x100: before, after | {dev_before:.2f}, {dev_best:.2f} |

Embeddings are the pooled token vectors, before any head and not normalised; compare them by
cosine. `heads.safetensors` holds the heads into the space shared with the teacher's pictures.
"""


def model_card(
    params: RunParams, teacher: TeacherParams, seed: int, metrics: Mapping[str, float | int]
) -> str:
    """The README of a student directory: what it is, how it was made, how it scores on dev."""
    train, loss = params.train, params.loss
    tag = f" ({teacher.pretrained})" if teacher.pretrained else ""
    settings = {
        "margin",
        "margin_kind",
        "text_margin",
        "temperature",
        "grounding_weight",
        "positives",
    }
    return _TEMPLATE.format(
        objective=train.objective,
        encoder=params.student.encoder,
        pooling=params.student.pooling,
        teacher=teacher.model + tag if loss.terms or loss.distillation.weight else "none",
        filter=loss.filter.kind,
        rows=loss.distillation.weight,
        terms=" and ".join(loss.terms) or "none",
        seed=seed,
        **train.model_dump(include={"batch_size", "learning_rate"}),
        **loss.model_dump(include={*settings, "positives"}),
        **{key: metrics[key] for key in ("steps", "dev_before", "dev_best")},
    )
