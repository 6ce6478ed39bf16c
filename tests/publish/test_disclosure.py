"""CONTAMINATION.md and mteb's ModelMeta say what the facts of a run say."""

from pathlib import Path
from types import ModuleType
from typing import get_args

import mteb
import pytest
import scipy.stats
import torch
from datasets import Dataset, DatasetDict
from mteb.abstasks.sts import AbsTaskSTS
from mteb.types import _metadata

from pipeline.evaluate.mteb_names import RETRIEVAL_NAMES, STS_NAMES
from pipeline.publish import disclosure
from pipeline.publish.disclosure import describe_contamination, describe_to_mteb
from pipeline.student.encoder import GroundingHeads, SentenceEncoder, Student, save_student
from tests.conftest import ROOT


def leak(task: str, subset: str, samples: int, seen: int, part: str = "sts") -> dict:
    counts = {"samples": samples, "seen": seen, "sentences": 2 * samples, "seen_sentences": seen}
    return {"part": part, "task": task, "subset": subset, **counts}


LEAK = [
    leak("STS15", "images", 750, 746),
    leak("STS15", "headlines", 750, 1),
    leak("STS13", "FNWN", 1500, 14),
    leak("STS-B", "", 1379, 121),
    leak("CR", "", 100, 50, "transfer"),
]


def facts(pairs: str = "flickr30k", text: str = "wiki1m", **changes: object) -> dict:
    student = {
        "objective": "kdmcse",
        "weights": "5ee4" * 16,
        "parameters": 3_000_000,
        "token_parameters": 1_000_000,
        "max_length": 256,
        "head_dims": (64, 24, 16),
        "matryoshka": (32, 16),
        "encoder": "org/bert",
        "hub_encoder": True,
    }
    score = {"part": "sts", "task": "STS15", "split": "test", "value": 85.0, "count": 1500}
    score["unseen"] = {"value": 83.25, "count": 753}
    corpora = [("pairs", pairs), ("text", text), ("evaluation", "senteval")]
    return {
        "student": student,
        "repository": "org/name",
        "licence": "cc-by-nc-4.0",
        "corpora": [{"part": part, "name": name} for part, name in corpora],
        "leak": LEAK,
        "scores": [score],
        **changes,
    }


def load(folder: Path, given: dict) -> mteb.models.ModelMeta:
    """The `model` of the file, in a folder."""
    module = ModuleType("mteb_model")
    module.__file__ = str(folder / "mteb_model.py")
    exec(describe_to_mteb(given), module.__dict__)  # noqa: S102
    return module.model


FLICKR = {"Flickr30kI2TRetrieval", "Flickr30kT2IRetrieval"}
COCO = {"MSCOCOI2TRetrieval", "MSCOCOT2IRetrieval"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (facts(), {*FLICKR, "STS15", "STSBenchmark"}),
        (facts("coco"), {*COCO, "STS15", "STSBenchmark"}),
        (facts("coco-train2014"), {*COCO, "STS15", "STSBenchmark"}),
        (facts("scenes", "scenes", leak=[leak("SCENES", "", 10, 9)]), set()),
        (facts("flickr8k", leak=[leak("STS12", "x", 99, 1)]), {"STS12"}),
        (facts("flickr8k", leak=[leak("STS12", "x", 101, 1)]), set()),
        (facts("own pairs (folder)"), None),
        (facts("org/pairs"), None),
        (facts(leak=None), None),
    ],
)
def test_training_datasets_are_those_of_the_corpora_and_of_the_leak(tmp_path, given, expected):
    model = load(tmp_path, given)
    assert model.training_datasets == expected
    said = describe_contamination(given)
    if expected is None:
        assert "`training_datasets=None`, not known" in said
        return
    assert ", ".join(sorted(expected)) or "none" in said
    marked = model.is_zero_shot_on(["STS15", "STSBenchmark", "Flickr30kI2TRetrieval"])
    assert marked is not bool(expected & {"STS15", *FLICKR})


def test_the_model_is_described(tmp_path):
    model = load(tmp_path, facts())
    hub = "https://huggingface.co/org/name"
    assert (model.name, model.revision) == ("org/name", ("5ee4" * 16)[:40])
    assert (model.license, model.reference, model.adapted_from) == ("cc-by-nc-4.0", hub, "org/bert")
    assert (model.embed_dim, model.max_tokens, model.n_active_parameters) == (
        [64, 32, 16],
        256,
        2e6,
    )
    student = facts()["student"] | {"matryoshka": (), "hub_encoder": False}
    bare = load(tmp_path, facts(repository=None, licence="its-own", student=student))
    assert (bare.name, bare.license, bare.reference) == ("kdmcse/kdmcse-student", None, None)
    assert (bare.embed_dim, bare.adapted_from) == (64, None)


def test_text_of_a_run_cannot_become_code(tmp_path):
    student = facts()["student"] | {"encoder": 'x"\nraise SystemExit\n#'}
    given = facts(leak=[leak("x\nraise SystemExit", "", 1, 1)], student=student)
    assert load(tmp_path, given).adapted_from == student["encoder"]


def test_contamination_has_every_sub_set_and_what_it_does():
    text = describe_contamination(facts())
    assert "| sts | STS15 | images | 750 | 746 | 99.5 % | 1500 | 746 |" in text
    assert "| transfer | CR | - | 100 | 50 | 50.0 % | 200 | 50 |" in text
    assert "| STS15 | 85.00 | 83.25 | 1500 | 753 |" in text
    assert "(flickr30k, wiki1m)" in text
    assert "Not measured" in describe_contamination(facts(leak=None))


def test_names_and_licences_are_mteb_s():
    wanted = set(STS_NAMES.values()).union(*(one.values() for one in RETRIEVAL_NAMES.values()))
    assert {mteb.get_task(name).metadata.name for name in wanted} == wanted
    assert set(get_args(_metadata.Licenses)) >= disclosure._LICENCES


def test_mteb_scores_the_folder_of_the_file(tmp_path):
    """The published student, read by mteb and sentence-transformers alone, as a whole run."""
    encoder = SentenceEncoder.load(ROOT / "data/demo/student", "mean")
    heads = GroundingHeads(encoder.dim, 24, 16)
    save_student(tmp_path, Student(encoder.eval(), heads.eval(), "kdmcse", 0), "card")

    class Task(AbsTaskSTS):
        metadata = mteb.TaskMetadata(
            name="Shapes", description="-", type="STS", eval_langs=["eng-Latn"],
            main_score="cosine_spearman", dataset={"path": "-", "revision": "-"},
        )  # fmt: skip

    rows = [("a red circle", f"a {colour} {shape}", score) for colour, shape, score in PAIRS]
    columns = dict(zip(("sentence1", "sentence2", "score"), zip(*rows, strict=True), strict=True))
    task = Task()
    task.dataset = DatasetDict(
        {"test": Dataset.from_dict({k: list(v) for k, v in columns.items()})}
    )
    task.data_loaded = True
    model = load(tmp_path, facts())
    cache = mteb.ResultCache(tmp_path / "results")
    score = mteb.evaluate(model, task, cache=cache, show_progress_bar=False).task_results[0]
    texts = [*columns["sentence1"][:1], *columns["sentence2"]]
    vectors = torch.from_numpy(encoder.encode(texts, batch_size=8))
    cosines = torch.nn.functional.cosine_similarity(vectors[:1], vectors[1:]).double()
    expected = scipy.stats.spearmanr(cosines, columns["score"]).statistic
    assert score.get_score() == pytest.approx(expected, abs=1e-4)
    path = cache.get_task_result_path("Shapes", model)
    assert path.parent.name == model.revision
    assert path.is_file()


PAIRS = [
    ("red", "circle", 5.0),
    ("red", "square", 3.0),
    ("blue", "circle", 2.5),
    ("blue", "square", 1.0),
    ("green", "star", 0.5),
    ("small grey", "triangle", 0.0),
]
