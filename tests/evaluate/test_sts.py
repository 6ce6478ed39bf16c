"""STS scores, recomputed pair by pair and sub-set by sub-set."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import pearsonr, rankdata

from pipeline.core.errors import InputError, ModelError
from pipeline.evaluate.correlation import Bootstrap, bootstrap_spearman
from pipeline.evaluate.embeddings import Embeddings, embed
from pipeline.evaluate.score import Score
from pipeline.evaluate.sts import normalise, score_sts, sts_tasks

BOOTSTRAP = Bootstrap(resamples=100, seed=0)
COLUMNS = ["task", "subset", "split", "sentence1", "sentence2", "score"]
WORDS = [f"word {number}" for number in range(400)]


def vector(sentence: str) -> np.ndarray:
    """A fixed random vector for every sentence."""
    return np.random.default_rng(list(sentence.encode())).standard_normal(4).astype(np.float32)


def make_table(tasks: dict[str, Sequence[str]], *, pairs: int = 40, seed: int = 0) -> pd.DataFrame:
    """Random pairs of every split in every sub-set of every task."""
    rng = np.random.default_rng(seed)
    rows = [
        (task, subset, split, *rng.choice(WORDS, 2), float(rng.integers(0, 6)))
        for task, subsets in tasks.items()
        for number, subset in enumerate(subsets)
        for split in ("train", "dev", "test")
        for _ in range(pairs + 7 * number)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def score(table: pd.DataFrame, convention="senteval", seen=frozenset()) -> list[Score]:
    sentences = sorted({*table["sentence1"], *table["sentence2"]})
    embeddings = Embeddings(sentences, np.stack([vector(sentence) for sentence in sentences]))
    return score_sts(embeddings, sts_tasks(table, convention), BOOTSTRAP, seen=seen)


def value(scores: list[Score], task: str, measure: str = "spearman", **about) -> float:
    wanted = {"split": "test", "aggregation": "", "subset": "", "unseen": False, **about}
    found = [
        s.value
        for s in scores
        if (s.task, s.measure) == (task, measure)
        and all(getattr(s, key) == want for key, want in wanted.items())
    ]
    assert len(found) == 1, (task, measure, about, found)
    return found[0]


def cosines(rows: pd.DataFrame) -> list[float]:
    pairs = [(vector(r.sentence1), vector(r.sentence2)) for r in rows.itertuples()]
    doubles = [(u.astype(float), v.astype(float)) for u, v in pairs]
    return [sum(u * v) / (sum(u * u) * sum(v * v)) ** 0.5 for u, v in doubles]


def spearman(rows: pd.DataFrame) -> float:
    return 100 * pearsonr(rankdata(cosines(rows)), rankdata(rows["score"])).statistic


def pearson(rows: pd.DataFrame) -> float:
    return 100 * pearsonr(cosines(rows), rows["score"]).statistic


YEAR = make_table({"STS12": ("first", "second", "third"), "STS-B": ("news", "captions")})


def rows_of(task: str, split: str = "test", table: pd.DataFrame = YEAR) -> pd.DataFrame:
    return table[(table["task"] == task) & (table["split"] == split)]


@pytest.mark.parametrize(("measure", "recomputed"), [("spearman", spearman), ("pearson", pearson)])
def test_every_aggregation_of_a_year_is_recomputed(measure, recomputed):
    scores, year = score(YEAR), rows_of("STS12")
    subsets = [rows for _, rows in year.groupby("subset", sort=False)]
    each = [recomputed(rows) for rows in subsets]
    expected = {
        "all": recomputed(year),
        "mean": np.mean(each),
        "wmean": sum(v * len(rows) for v, rows in zip(each, subsets, strict=True)) / len(year),
    }
    for aggregation, wanted in expected.items():
        found = value(scores, "STS12", measure, aggregation=aggregation)
        assert found == pytest.approx(wanted, abs=1e-6), aggregation
    for rows, wanted in zip(subsets, each, strict=True):
        found = value(scores, "STS12", measure, subset=rows["subset"].iloc[0])
        assert found == pytest.approx(wanted, abs=1e-6)


def test_sub_sets_stand_in_the_order_of_the_file_and_whole_grades_are_grades():
    table = make_table({"STS12": ("second", "first", "third")})
    scores = score(table)
    subsets = [s.subset for s in scores if s.subset and s.measure == "pearson"]
    assert subsets == ["second", "first", "third"]
    assert score(table.assign(score=table["score"].astype(int))) == scores
    assert {s.aggregation for s in score(YEAR) if s.task == "STS-B"} == {"all", ""}


def test_dev_stands_beside_the_average_and_train_nowhere():
    scores = score(YEAR)
    dev = value(scores, "STS-B", split="dev", aggregation="all")
    assert dev == pytest.approx(spearman(rows_of("STS-B", "dev")), abs=1e-6)
    assert "dev" not in {s.split for s in scores if s.task == "STS12"}
    assert "train" not in {s.split for s in scores}
    tested = [value(scores, task, aggregation="all") for task in ("STS12", "STS-B")]
    assert value(scores, "avg", aggregation="all") == pytest.approx(np.mean(tested), abs=1e-9)


def test_the_interval_of_the_average_is_that_of_the_mean_of_all_tasks_resamples():
    samples = [
        bootstrap_spearman(np.array(cosines(rows)), rows["score"].to_numpy(), BOOTSTRAP)
        for rows in (rows_of("STS12"), rows_of("STS-B"))
    ]
    average = next(s for s in score(YEAR) if s.task == "avg" and not s.unseen)
    expected = np.percentile(np.mean(samples, axis=0), [2.5, 97.5])
    assert (average.low, average.high) == pytest.approx(expected, abs=1e-3)


def lengthy_table() -> pd.DataFrame:
    """Sentences of 2 to 9 words, in sets of more than one batch of 128."""
    table = make_table({"STS13": ("long", "longer"), "STS-B": ("x",)}, pairs=150)
    rng = np.random.default_rng(0)
    for side in ("sentence1", "sentence2"):
        table[side] += [" on" * count for count in rng.integers(8, size=len(table))]
    return table


def sorted_by_length(rows: pd.DataFrame) -> pd.DataFrame:
    keys = [
        (len(r.sentence1.split()), len(r.sentence2.split()), r.score) for r in rows.itertuples()
    ]
    return rows.iloc[sorted(range(len(keys)), key=keys.__getitem__)]


def geometry(sets: list[pd.DataFrame]) -> tuple[float, float]:
    """Alignment and uniformity, the plain means over the batches of all sets."""
    aligned, uniform = [], []
    for batch in (rows[start : start + 128] for rows in sets for start in range(0, len(rows), 128)):
        sides = [np.stack([vector(s) for s in batch[f"sentence{n}"]]).astype(float) for n in (1, 2)]
        one, two = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
        positive = (batch["score"] >= 4).to_numpy()
        distances = [sum((a - b) ** 2) for a, b in zip(one[positive], two[positive], strict=True)]
        aligned.append(np.mean(distances) if distances else 0)
        squared = pdist(np.concatenate([one, two]), "sqeuclidean")
        uniform.append(np.log(np.mean(np.exp(-2 * squared))))
    return float(np.mean(aligned)), float(np.mean(uniform))


def test_geometry_is_over_a_years_sets_sorted_by_length_and_other_tasks_in_file_order():
    table = lengthy_table()
    scores = score(table)
    years = [rows for _, rows in rows_of("STS13", table=table).groupby("subset", sort=False)]
    benchmark = rows_of("STS-B", table=table)
    expected = {
        "STS13": geometry([sorted_by_length(rows) for rows in years]),
        "STS-B": geometry([benchmark]),
    }
    for task, wanted in expected.items():
        found = [value(scores, task, measure) for measure in ("alignment", "uniformity")]
        assert found == pytest.approx(wanted, abs=1e-9)
    assert geometry(years) != pytest.approx(expected["STS13"], abs=1e-5)
    assert geometry([sorted_by_length(benchmark)]) != pytest.approx(expected["STS-B"], abs=1e-5)


def test_unseen_pairs_are_those_without_a_training_sentence():
    table = make_table({"STS12": ("one",), "STS-B": ("two",)}, pairs=100)
    common = WORDS[:40]
    scores = score(table, seen=frozenset(normalise(f"{word.title()} !") for word in common))
    for task in ("STS12", "STS-B"):
        rows = rows_of(task, table=table)
        left = rows[~(rows["sentence1"].isin(common) | rows["sentence2"].isin(common))]
        found = next(s for s in scores if s.task == task and s.unseen and s.split == "test")
        assert found.count == len(left) < len(rows)
        assert found.value == pytest.approx(spearman(left), abs=1e-6)
    both = [value(scores, task, aggregation="all", unseen=True) for task in ("STS12", "STS-B")]
    assert value(scores, "avg", aggregation="all", unseen=True) == pytest.approx(np.mean(both))
    assert score(table, seen=None) == [s for s in scores if not s.unseen]


def test_normalised_sentences_are_words_in_lower_case():
    assert normalise("The CAT's  straße , No.7!") == "the cat s straße no 7"


def disjoint_table() -> pd.DataFrame:
    """Twenty pairs of each task; no sentence stands in two of them."""
    rng = np.random.default_rng(0)
    rows = [
        (task, "x", "test", f"The {task} no. {n} , a", f"the {task} no. {n} , b", rng.uniform(0, 5))
        for task in ("STS12", "STS-B")
        for n in range(20)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize(("left", "has_number"), [(10, True), (9, False)])
def test_below_ten_unseen_pairs_neither_task_nor_average_has_a_number(side, left, has_number):
    """Training text is compared by its words: neither case nor punctuation tells it apart."""
    seen = frozenset(normalise(f"the sts12 no {n} {side}") for n in range(left, 20))
    scores = score(disjoint_table(), seen=seen)
    counts = {s.task: s.count for s in scores if s.unseen}
    assert counts == {"STS12": left, "STS-B": 20, "avg": left + 20}
    for task, is_defined in {"STS12": has_number, "STS-B": True, "avg": has_number}.items():
        found = next(s for s in scores if s.unseen and s.task == task)
        assert (found.value is not None) == (found.low is not None) == is_defined


def test_a_constant_sub_set_has_no_number_and_leaves_none_to_the_means():
    table = YEAR.copy()
    table.loc[table["subset"] == "second", "score"] = 3.0
    scores = score(table)
    assert value(scores, "STS12", subset="second") is None
    assert value(scores, "STS12", aggregation="mean") is None
    assert value(scores, "STS12", aggregation="all") is not None


CONVENTIONS = make_table(
    {"STS12": ("x",), "STS-B": ("x",), "STS-B-cased": ("y",), "SICK-R": ("z",)}
)


def test_senteval_scores_test_splits_of_its_own_text():
    scores = score(CONVENTIONS, "senteval")
    for task in ("STS-B", "SICK-R"):
        expected = spearman(rows_of(task, table=CONVENTIONS))
        assert value(scores, task, aggregation="all") == pytest.approx(expected, abs=1e-6)
    assert "STS-B-cased" not in {s.task for s in scores}


def test_mteb_scores_all_of_sick_and_the_cased_benchmark():
    scores = score(CONVENTIONS, "mteb")
    sick = CONVENTIONS[CONVENTIONS["task"] == "SICK-R"]
    assert value(scores, "SICK-R", split="all", aggregation="all") == pytest.approx(
        spearman(sick), abs=1e-6
    )
    cased = rows_of("STS-B-cased", table=CONVENTIONS)
    assert value(scores, "STS-B", aggregation="all") == pytest.approx(spearman(cased), abs=1e-6)
    parts = [value(scores, task, aggregation="all") for task in ("STS12", "STS-B")]
    parts.append(value(scores, "SICK-R", split="all", aggregation="all"))
    assert value(scores, "avg", aggregation="all") == pytest.approx(np.mean(parts))
    without = CONVENTIONS[CONVENTIONS["task"] != "STS-B-cased"]
    names = [(task.name, task.split) for task in sts_tasks(without, "mteb")]
    assert names == [("STS12", "test"), ("SICK-R", "all"), ("STS-B", "dev")]


def test_what_has_no_correlation_is_refused():
    with pytest.raises(InputError, match="no test pairs"):
        sts_tasks(rows_of("STS-B", "dev"), "senteval")
    with pytest.raises(InputError, match="gold scores are equal"):
        score(YEAR.assign(score=3.0))
    constant = Embeddings(WORDS, np.ones((len(WORDS), 3), dtype=np.float32))
    with pytest.raises(ModelError, match="STS12: all pairs have the same cosine"):
        score_sts(constant, sts_tasks(YEAR, "senteval"), BOOTSTRAP)


class CountingEncoder:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, sentences, *, batch_size, show_progress):
        self.asked += sentences
        return np.stack([vector(sentence) for sentence in sentences])


def test_each_distinct_sentence_is_encoded_once_and_nulls_never():
    encoder = CountingEncoder()
    columns = [YEAR["sentence1"], YEAR["sentence2"], pd.Series([None, WORDS[0]], dtype="str")]
    embeddings = embed(encoder, columns, batch_size=3)
    assert sorted(encoder.asked) == sorted({*YEAR["sentence1"], *YEAR["sentence2"], WORDS[0]})
    np.testing.assert_array_equal(embeddings.of([WORDS[0]])[0], vector(WORDS[0]))
    with pytest.raises(KeyError, match="never seen"):
        embeddings.of([WORDS[0], "never seen"])


def test_a_sentence_paired_with_itself_ties_whatever_its_vector():
    """Rounding in the last bit must not rank pairs whose cosine is exactly 1."""
    same = rows_of("STS-B").head(20)
    table = pd.concat([rows_of("STS-B"), same.assign(sentence2=same["sentence1"])])
    rng = np.random.default_rng(0)
    vectors = np.stack([vector(word) for word in WORDS])
    scaled = vectors * rng.uniform(0.5, 2, (len(WORDS), 1)).astype(np.float32)
    one, two = (
        score_sts(Embeddings(WORDS, rows), sts_tasks(table, "senteval"), BOOTSTRAP)
        for rows in (vectors, scaled)
    )
    assert value(one, "STS-B", aggregation="all") == pytest.approx(
        value(two, "STS-B", aggregation="all"), abs=1e-3
    )
