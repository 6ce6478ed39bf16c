"""The model card of a published student: its facts, as Hugging Face metadata and as text.

`pipeline/publish/collect.py` collects the facts; here they are only worded. provenance.json holds
the same facts for machines.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pipeline.download.sources import SCENES
from pipeline.evaluate.score import AVERAGE
from pipeline.student.settings import Pooling

NOT_RECORDED = "not recorded"
HUB_DATASET = "hf://datasets/"
_SHOWN_FILES = 10
"""Changed files that the card names; provenance.json names all."""


@dataclass(frozen=True)
class Selection:
    """Which seed was published, and why."""

    seed: int
    named: bool
    """Whether the user named it; otherwise it has the best dev score."""
    dev_best: Mapping[int, float]
    """Best STS dev score x100 of every seed's run."""


@dataclass(frozen=True)
class StudentFacts:
    """The published encoder."""

    objective: str
    encoder: str
    """What its training started from."""
    hub_encoder: bool
    """Whether `encoder` is a name on the hub."""
    pooling: Pooling
    max_length: int
    """Tokens that it reads, special tokens included."""
    head_dims: tuple[int, ...]
    """Widths of its embeddings, of the teacher's features and of the space they share."""
    matryoshka: tuple[int, ...]
    weights: str
    """sha256 over its weights, as in the evaluation report."""
    files: str
    """sha256 over all files that change an embedding."""


@dataclass(frozen=True)
class Corpus:
    """One of the corpora of a run."""

    part: str
    """pairs | text | evaluation"""
    name: str
    licence: str
    citation: str
    addresses: tuple[str, ...]

    @property
    def hub_datasets(self) -> list[str]:
        """The `ORG/NAME` of its files that come from the hub."""
        paths = [
            address.removeprefix(HUB_DATASET)
            for address in self.addresses
            if address.startswith(HUB_DATASET)
        ]
        return list(dict.fromkeys("/".join(path.split("/")[:2]) for path in paths))


@dataclass(frozen=True)
class Revision:
    """The state of the project that made the student."""

    commit: str
    experiment: str | None
    """The DVC experiment whose dvc.lock is that of the working folder, if any."""
    experiment_commit: str | None
    changed: tuple[str, ...]
    """Files that differ from the commit, or from that of the experiment."""


@dataclass(frozen=True)
class ScoreRow:
    """One headline number of the published student, and of all seeds."""

    score: str
    """Its name in reports, such as `sts.avg`."""
    part: str
    task: str
    measure: str
    split: str
    value: float | None
    low: float | None
    high: float | None
    """95 % bootstrap interval over pairs."""
    count: int
    unseen: Mapping[str, Any] | None
    """value, low, high and count over the pairs that share no sentence with the training text."""
    seeds: Mapping[str, Any] | None
    """n, mean, sd and interval over the seeds, from reports/summary.json."""
    unseen_seeds: Mapping[str, Any] | None
    """The same over unseen pairs."""


@dataclass(frozen=True)
class Facts:
    """Everything that a card and its provenance.json say."""

    selection: Selection
    student: StudentFacts
    teacher: Mapping[str, str] | None
    """Its identity in the feature file; None: not recorded."""
    corpora: tuple[Corpus, ...]
    parameters: Mapping[str, Any]
    """By dotted key."""
    parameters_unrecorded: tuple[str, ...]
    """Keys that dvc.lock lacks, whose values are those of params.yaml."""
    revision: Revision | None
    stages: Mapping[str, Mapping[str, Mapping[str, str]] | None]
    """md5 of deps and outs by stage; None: not recorded."""
    scores: tuple[ScoreRow, ...]
    baselines: Mapping[str, float]
    """STS average of the other systems of the report."""
    seeds: tuple[Mapping[str, Any], ...]
    """seed, dev_best and sts_avg of every run."""
    matryoshka: Mapping[str, Mapping[str, float]] | None
    licence: str | None
    repository: str | None
    """ORG/NAME on the hub, where it is pushed."""

    @property
    def sees_images(self) -> bool:
        """Whether training used pictures."""
        return self.student.objective != "simcse"

    def rows(self, part: str) -> list[ScoreRow]:
        """The scores of a part."""
        return [row for row in self.scores if row.part == part]


METHODS = {
    "simcse": "contrastive learning on text alone, two dropout masks of a sentence as its views "
    "([SimCSE](https://arxiv.org/abs/2104.08821))",
    "mcse": "contrastive learning on text, and on captions with their pictures through a frozen "
    "CLIP teacher's features ([MCSE](https://arxiv.org/abs/2204.10931))",
    "kdmcse": "contrastive learning on text, and distillation of a frozen CLIP teacher's features "
    "with angular margins "
    "([KDMCSE](https://arxiv.org/abs/2403.17486))",
}


def make_card(facts: Facts) -> ModelCard:
    """The README of a published student.

    Raises:
        ValueError: the hub's library refuses the metadata.
    """
    metadata: Any = _metadata(facts)  # the hub's library is not typed throughout
    card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{_text(facts)}")
    read_back: Any = card.data
    if read_back.to_dict() != metadata.to_dict():
        msg = "the metadata is read back as another than was written"
        raise ValueError(msg)
    return card


def _metadata(facts: Facts) -> ModelCardData:
    student = facts.student
    return ModelCardData(
        language="en",
        license=facts.licence,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "kdmcse", student.objective],
        base_model=student.encoder if student.hub_encoder else None,
        datasets=_training_datasets(facts) or None,
        metrics=["spearmanr"],
        model_name=_name(facts),
        eval_results=_eval_results(facts) or None,
    )


def _name(facts: Facts) -> str:
    return (facts.repository or f"{facts.student.objective}-student").rpartition("/")[2]


def _training_datasets(facts: Facts) -> list[str]:
    names = [n for c in facts.corpora if c.part != "evaluation" for n in c.hub_datasets]
    return list(dict.fromkeys(names))


def _eval_results(facts: Facts) -> list[EvalResult]:
    """The STS test tasks; correlations from -1 to 1, as sentence-transformers reports them."""
    named = [name for c in facts.corpora if c.part == "evaluation" for name in c.hub_datasets]
    return [
        EvalResult(
            task_type="semantic-similarity",
            task_name="Semantic Similarity",
            dataset_type=named[0] if named else "unknown",
            dataset_name=row.task,
            dataset_config=row.task,
            dataset_split=row.split,
            metric_type="spearman_cosine",
            metric_name="Spearman Cosine",
            metric_value=round(row.value / 100, 6),
        )
        for row in facts.rows("sts")
        if row.value is not None and row.split != "dev" and row.task != AVERAGE
    ]


def _text(facts: Facts) -> str:
    sections = [
        _introduction(facts),
        _use(facts),
        _scores(facts),
        _data(facts),
        _teacher(facts),
        _parameters(facts),
        _reproduce(facts),
        _limits(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _introduction(facts: Facts) -> str:
    student = facts.student
    return f"""# {_name(facts)}

An English sentence encoder, trained from `{student.encoder}` with {student.pooling} pooling by
{METHODS[student.objective]}. It gives vectors of {student.head_dims[0]} numbers, which are compared
by cosine.

{_chosen(facts.selection)} {_licence(facts)}"""


def _chosen(selection: Selection) -> str:
    dev = ", ".join(f"{seed}: {score:.2f}" for seed, score in selection.dev_best.items())
    how = (
        "was named by the publisher"
        if selection.named
        else "is the one with the best score on STS dev; test scores had no part in the choice"
    )
    return f"Seed {selection.seed} {how} (Spearman x100 on STS dev by seed: {dev})."


def _licence(facts: Facts) -> str:
    stated = f"Licence: {facts.licence}." if facts.licence else "No licence was stated."
    return f"{stated} Data, teacher and first weights keep their own."


_MEAN = """mask = tokens["attention_mask"].unsqueeze(-1)
embeddings = (hidden * mask).sum(dim=1) / mask.sum(dim=1)"""
_POOLING: Mapping[Pooling, str] = {"mean": _MEAN, "cls": "embeddings = hidden[:, 0]"}


def _use(facts: Facts) -> str:
    student = facts.student
    return f"""## Use

```python
{_folder_line(facts)}
sentences = ["a red circle above a blue square", "a blue square below a red circle"]
```

With sentence-transformers{_truncated(student)}:

```python
from sentence_transformers import SentenceTransformer

embeddings = SentenceTransformer(folder).encode(sentences)
```

With transformers, where the pooling ({student.pooling}) is yours to do:

```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
tokens = tokenizer(
    sentences, padding=True, truncation=True, max_length={student.max_length}, return_tensors="pt"
)
with torch.inference_mode():
    hidden = encoder(**tokens).last_hidden_state
{_POOLING[student.pooling]}
```

{_heads(facts)}"""


def _folder_line(facts: Facts) -> str:
    if facts.repository is None:
        return 'folder = "."  # where this card lies'
    return (
        "from huggingface_hub import snapshot_download\n\n"
        f'folder = snapshot_download("{facts.repository}")'
    )


def _truncated(student: StudentFacts) -> str:
    if not student.matryoshka:
        return ""
    sizes = " or ".join(map(str, student.matryoshka))
    return f" (`SentenceTransformer(folder, truncate_dim=N)` for the first {sizes} dimensions)"


def _heads(facts: Facts) -> str:
    if not facts.sees_images:
        return (
            "`heads.safetensors` holds the projection heads. Training saw no pictures, so that only"
            " the one called `text` was trained; embeddings are taken before it."
        )
    _, teacher, shared = facts.student.head_dims
    return f"""`heads.safetensors` holds the grounding heads. They bring texts and the teacher's
image features (`encode_image` of the teacher below in open_clip: rows of {teacher} numbers, of any
scale) into one space of {shared} dimensions:

```python
from safetensors.torch import load_file
from torch.nn import functional as F

heads = load_file(f"{{folder}}/heads.safetensors")


def project(head, vectors):
    weight, bias = heads[f"{{head}}.0.weight"], heads[f"{{head}}.0.bias"]
    return F.normalize(torch.tanh(F.linear(vectors, weight, bias)), dim=-1)


def unit_rms(features):
    return F.normalize(features, dim=-1) * features.shape[-1] ** 0.5


texts = project("grounding", embeddings)  # the pooled vectors of above, as tensors
images = project("image", unit_rms(image_features))
similarity = texts @ images.T
```

The head `caption` takes the teacher's text features in the same way; `text` served training
alone."""


def _scores(facts: Facts) -> str:
    parts = [
        f"## Scores\n\nAll x100, but median ranks. {_how_spread(facts)}",
        _sts(facts),
        _baselines(facts),
        _matryoshka(facts),
        _plain_scores(facts, "transfer", "Transfer, accuracy"),
        _plain_scores(facts, "retrieval", "Retrieval of pictures by captions, and the reverse"),
        _seeds(facts),
    ]
    return "\n\n".join(part for part in parts if part)


def _how_spread(facts: Facts) -> str:
    brackets = "Brackets: 95 % bootstrap interval over the pairs of the task."
    if len(facts.seeds) == 1:
        return f"One seed was trained. {brackets}"
    return f"All seeds: mean ± standard deviation over {len(facts.seeds)}. {brackets}"


def _sts(facts: Facts) -> str:
    rows = facts.rows("sts")
    if not rows:
        return ""
    seed = f"seed {facts.selection.seed}"
    header = ["STS, Spearman", "all seeds", seed, "pairs", f"{seed}, unseen pairs", "unseen pairs"]
    table = _table(header, [_sts_cells(row) for row in rows])
    return f"{table}\n\n{_leak(facts, rows)}"


def _leak(facts: Facts, rows: Sequence[ScoreRow]) -> str:
    """How much of the tests the training text gave away."""
    own = facts.parameters.get("download.evaluation") == SCENES
    average = next((row for row in rows if row.task == AVERAGE), None)
    if average is None or average.unseen is None:
        return "How much of the training text appears in these tasks was not measured."
    why = "" if own else ": these tasks took captions from public data sets of pictures"
    return f"""Training captions and sentences can appear in STS tests too{why}. Here that concerns
{average.count - average.unseen["count"]} of {average.count} test pairs.
*Unseen* pairs are those neither of whose sentences occurs in the training text; where the two
columns differ, go by the unseen one. `-dev` chose the checkpoint and is no test score."""


def _sts_cells(row: ScoreRow) -> list[str]:
    unseen = row.unseen or {}
    own = _interval(row.value, row.low, row.high)
    shown = _interval(unseen["value"], unseen["low"], unseen["high"]) if unseen else "-"
    if row.unseen_seeds:
        shown += f"; all seeds {_spread(row.unseen_seeds)}"
    counts = [f"{row.count}", f"{unseen.get('count', '-')}"]
    return [row.task, _spread(row.seeds), own, counts[0], shown, counts[1]]


def _baselines(facts: Facts) -> str:
    if not facts.baselines:
        return ""
    rows = [[name, f"{value:.2f}"] for name, value in facts.baselines.items()]
    return "What it is measured beside:\n\n" + _table(["system", "STS average"], rows)


def _matryoshka(facts: Facts) -> str:
    if not facts.student.matryoshka or not facts.matryoshka:
        return ""
    names = list(dict.fromkeys(name for block in facts.matryoshka.values() for name in block))
    rows = [
        [size, *(_number(block.get(name)) for name in names)]
        for size, block in sorted(facts.matryoshka.items(), key=lambda item: -int(item[0]))
    ]
    return _table(["first dimensions", *names], rows)


def _plain_scores(facts: Facts, part: str, title: str) -> str:
    rows = facts.rows(part)
    if not rows:
        return ""
    cells = [
        [
            _plain_name(row),
            _spread(row.seeds),
            _interval(row.value, row.low, row.high),
            f"{row.count}",
        ]
        for row in rows
    ]
    return _table([title, "all seeds", f"seed {facts.selection.seed}", "count"], cells)


def _plain_name(row: ScoreRow) -> str:
    return row.task if row.part == "transfer" else f"{row.task}, {row.measure}"


def _seeds(facts: Facts) -> str:
    rows = [
        [f"{one['seed']}", _number(one["dev_best"]), _number(one["sts_avg"])] for one in facts.seeds
    ]
    return _table(["seed", "best STS dev", "STS average"], rows)


_PARTS = {
    "pairs": "images with captions",
    "text": "text-only sentences",
    "evaluation": "evaluation",
}


def _data(facts: Facts) -> str:
    rows = [[_role(facts, c), c.name, c.licence, c.citation, _links(c)] for c in facts.corpora]
    header = ["part", "corpus", "licence", "citation", "source"]
    return "## Data\n\n" + _table(header, rows)


def _role(facts: Facts, corpus: Corpus) -> str:
    is_text = corpus.part == "pairs" and not facts.sees_images
    return _PARTS[corpus.part] + (" (captions read as text)" if is_text else "")


def _links(corpus: Corpus) -> str:
    hub = [f"https://huggingface.co/datasets/{name}" for name in corpus.hub_datasets]
    others = [a for a in corpus.addresses if not a.startswith(HUB_DATASET)]
    return "<br>".join(f"<{url}>" for url in (*hub, *others)) or "-"


def _teacher(facts: Facts) -> str:
    if not facts.sees_images:
        return "## Teacher\n\nNone: training saw no pictures."
    if facts.teacher is None:
        name = facts.parameters.get("teacher.model", NOT_RECORDED)
        return f"## Teacher\n\n`{name}`; the hash of its weights was {NOT_RECORDED}."
    rows = [[key, _code(value)] for key, value in facts.teacher.items() if value]
    text = "Frozen; its features were computed once. `weights` is the sha256 of what was loaded."
    return f"## Teacher\n\n{text}\n\n" + _table(["", ""], rows)


def _parameters(facts: Facts) -> str:
    rows = [[f"`{key}`", _code(value)] for key, value in facts.parameters.items()]
    missing = ", ".join(f"`{key}`" for key in facts.parameters_unrecorded)
    note = f"\n\nTaken from params.yaml, as dvc.lock lacks them: {missing}." if missing else ""
    return f"## Parameters\n\n{_table(['key', 'value'], rows)}{note}"


def _reproduce(facts: Facts) -> str:
    commands = "\n".join(_commands(facts))
    tables = "\n\n".join(_stage_table(name, stage) for name, stage in facts.stages.items())
    return f"""## Reproduce

{_state(facts.revision)}

```
{commands}
```

<details><summary>md5 of what each stage read and wrote (dvc.lock)</summary>

{tables}

</details>

`provenance.json` holds all of this card for machines."""


def _commands(facts: Facts) -> Iterable[str]:
    if facts.revision is not None:
        yield f"git checkout {facts.revision.commit}"
        if facts.revision.experiment:
            yield f"dvc exp apply {facts.revision.experiment}"
    yield "dvc repro"
    yield f"python -m stages.publish --seed {facts.selection.seed}"


def _state(revision: Revision | None) -> str:
    if revision is None:
        return f"The git commit was {NOT_RECORDED}."
    made = f"Published at commit `{revision.commit}`"
    if revision.experiment:
        made += f", DVC experiment `{revision.experiment}` (`{revision.experiment_commit}`)"
    if not revision.changed:
        return f"{made}, without uncommitted changes."
    named = ", ".join(f"`{name}`" for name in revision.changed[:_SHOWN_FILES])
    more = len(revision.changed) - _SHOWN_FILES
    rest = f" and {more} more" if more > 0 else ""
    return f"{made}, with changes that are in no commit: {named}{rest}."


def _stage_table(name: str, stage: Mapping[str, Mapping[str, str]] | None) -> str:
    if stage is None:
        return f"`{name}`: {NOT_RECORDED}."
    rows = [
        [kind.removesuffix("s"), f"`{path}`", f"`{md5}`"]
        for kind, entries in stage.items()
        for path, md5 in entries.items()
    ]
    return f"`{name}`\n\n" + _table(["", "path", "md5"], rows)


def _limits(facts: Facts) -> str:
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limit_lines(facts))


def _limit_lines(facts: Facts) -> Iterable[str]:
    yield "English only: training text and tests are English, and nothing else was measured."
    yield _domain(facts)
    cut = facts.parameters.get("student.max_length", NOT_RECORDED)
    yield (
        f"Training cut sentences to {cut} tokens; it reads up to {facts.student.max_length}. Long "
        "texts and search in documents were not measured."
    )
    if missing := [part for part in ("sts", "transfer", "retrieval") if not facts.rows(part)]:
        yield f"Not measured: {', '.join(missing)}."
    if len(facts.seeds) == 1:
        yield "One seed was trained: the spread between training runs is not known."
    yield "What it learned about people, social bias above all, was not measured."


def _domain(facts: Facts) -> str:
    names = [c.name for c in facts.corpora if c.part in {"pairs", "text"}]
    if set(names) == {SCENES}:
        return (
            "Trained on the rendered world *scenes* alone, short sentences about coloured shapes: "
            "it shows that the method works and is of no use for other text."
        )
    used = " and ".join(dict.fromkeys(names))
    return f"Trained on {used}: other domains may score lower than the tables say."


def _spread(over_seeds: Mapping[str, Any] | None) -> str:
    if over_seeds is None:
        return "-"
    sd = over_seeds.get("sd")
    return _number(over_seeds["mean"]) + ("" if sd is None else f" ± {sd:.2f}")


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    bounds = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return _number(value) + bounds


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _code(value: object) -> str:
    """A value in a table's cell; a line break or bar would end the cell."""
    text = value if isinstance(value, str) else json.dumps(value)
    cell = " ".join(text.split()).replace("|", "\\|")
    return f"`{cell}`"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
