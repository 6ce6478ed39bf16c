"""The model card that travels with a student."""

from collections.abc import Mapping

from pipeline.params.teacher import TeacherParams
from pipeline.train.run_params import RunParams

_TEMPLATE = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, kdmcse]
---

# A {objective} sentence encoder

Made from `{encoder}` with {pooling} pooling by the KDMCSE pipeline: {method}

```python
from sentence_transformers import SentenceTransformer

SentenceTransformer("this folder").encode(["a red circle above a blue square"])
```

| | |
|---|---|
| teacher | `{teacher}` |
| steps, batch size, learning rate, seed | {steps}, {batch_size}, {learning_rate:g}, {seed} |
| margin, text margin (radians) | {margin:g}, {text_margin:g} |
| temperature, weight (lambda) | {temperature:g}, {weight:g} |
| noise filter | {filter} |
| STS dev, Spearman x100: before, after | {dev_before:.2f}, {dev_best:.2f} |

Embeddings are the pooled token vectors, before any head and not normalised; compare them by
cosine. `heads.safetensors` holds the grounding heads, which bring texts and the teacher's image
features into one space.
"""

_METHODS = {
    "simcse": "contrastive learning on text alone, two dropout masks as two views.",
    "mcse": "contrastive learning on text, and on images through the teacher's features.",
    "kdmcse": "contrastive learning on text, and distillation of the teacher's image and caption "
    "features with an adaptive angular margin.",
}


def model_card(
    params: RunParams, teacher: TeacherParams, seed: int, metrics: Mapping[str, float | int]
) -> str:
    """The README of a student directory: what it is, how it was made, how it scores."""
    train, loss = params.train, params.loss
    tag = f" ({teacher.pretrained})" if teacher.pretrained else ""
    return _TEMPLATE.format(
        objective=train.objective,
        method=_METHODS[train.objective],
        encoder=params.student.encoder,
        pooling=params.student.pooling,
        teacher="none" if train.objective == "simcse" else teacher.model + tag,
        filter=loss.filter.kind,
        **train.model_dump(include={"batch_size", "learning_rate"}),
        seed=seed,
        **loss.model_dump(include={"margin", "text_margin", "temperature", "weight"}),
        **{key: metrics[key] for key in ("steps", "dev_before", "dev_best")},
    )
