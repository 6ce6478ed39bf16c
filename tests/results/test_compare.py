"""Statistics over seeds: every formula again from its definition, every refusal by its words."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import special

from pipeline.core.errors import InputError
from pipeline.results.compare import (
    ComparedScore,
    check_comparable,
    compare,
    holm,
    is_average,
    paired_p,
    rounding_of,
    summarise,
)
from pipeline.results.scores import Configuration, parse_report, read_configuration
from tests.conftest import assert_clear_error, invoke

FIRST = [58.1, 59.0, 58.4, 57.3, 58.9]
SECOND = [57.9, 58.5, 58.3, 57.0, 58.8]
DATA = {"sts": "a" * 64, "transfer": "b" * 64}
SIDES = (["b"], ["a", "b"], ["b", "a"])


def report(value: float = 58.0, seed: int | None = 0, **changes: object) -> dict:
    """A report whose scores all hang on one value; `changes` replace whole parts of it."""
    about = {"model": "m", "seed": seed, "evaluator": "2", "data": DATA}
    return {
        "sts": {
            "STS12": value - 17,
            "STS-B": value - 3,
            "avg": value,
            "pairs": 9,
            "pairs_unseen": 8,
        },
        "retrieval": {"text_to_image": {"recall@1": value / 3, "median_rank": 6}},
        "systems": [{"name": "student", "about": about, "scores": []}],
    } | changes


def about(**changes: object) -> list[dict]:
    return [
        {"name": "student", "about": {"seed": 0, "evaluator": "2", "data": DATA} | changes},
        {"name": "teacher", "about": {"seed": 77, "evaluator": "0"}},
    ]


def write(path: str, content: object) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Two configurations of five seeds; as the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name, values in (("a", FIRST), ("b", SECOND)):
        for seed, value in enumerate(values):
            write(f"{name}/{seed}.json", report(value, seed))
    return tmp_path


def strict_json(text: str) -> dict:
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def compare_paths(*where: str) -> dict[str, ComparedScore]:
    return {score.score: score for score in compare(*map(read_configuration, where))}


# The formulas, another way.


def plain_mean_sd(values: list[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def plain_p(differences: list[float]) -> float:
    """Two-sided tail of Student's t as a regularised incomplete beta function."""
    mean, sd = plain_mean_sd(differences)
    df = len(differences) - 1
    t = mean / (sd / math.sqrt(len(differences)))
    return float(special.betainc(df / 2, 0.5, df / (df + t * t)))


def test_a_summary_by_hand():
    summary = summarise(np.array(FIRST))
    mean, sd = plain_mean_sd(FIRST)
    half = 2.7764451052 * sd / math.sqrt(5)  # t(0.975, df 4) of a printed table
    assert (summary.n, summary.note) == (5, None)
    assert (summary.mean, summary.sd) == pytest.approx((mean, sd), rel=1e-12)
    assert summary.interval == pytest.approx((mean - half, mean + half), abs=1e-8)


def test_a_paired_p_by_hand():
    assert paired_p(np.array(FIRST), np.array(SECOND)) == pytest.approx(
        plain_p([a - b for a, b in zip(FIRST, SECOND, strict=True)]), rel=1e-9
    )


def test_p_is_near_that_of_all_sign_flips():
    """With 12 normal differences the 4096 sign flips are fine enough to stand in for t."""
    differences = np.random.default_rng(5).normal(0.1, 0.2, 12)
    signs = np.array(list(itertools.product([-1, 1], repeat=12)))
    flipped = np.abs((signs * differences).mean(axis=1))
    exact = (flipped >= abs(differences.mean()) - 1e-12).mean()
    assert 0.02 < exact < 0.5
    assert paired_p(differences, np.zeros(12)) == pytest.approx(exact, abs=0.02)


def test_the_interval_covers_the_truth_19_times_in_20():
    draws = np.random.default_rng(3).normal(50, 0.6, (2000, 5))
    intervals = [summarise(draw).interval for draw in draws]
    assert np.mean([low < 50 < high for low, high in intervals]) == pytest.approx(0.95, abs=0.015)


def closed_bonferroni(p_values: list[float]) -> list[float]:
    """Holm as closed testing: the largest Bonferroni p of all sets that contain the hypothesis."""
    count = len(p_values)
    sets = [s for n in range(1, count + 1) for s in itertools.combinations(range(count), n)]
    worth = {s: min(1.0, len(s) * min(p_values[i] for i in s)) for s in sets}
    return [max(worth[s] for s in sets if i in s) for i in range(count)]


P = st.floats(0, 1)


@given(st.lists(P, min_size=1, max_size=6))
def test_holm_is_closed_bonferroni(p_values):
    assert holm(p_values) == pytest.approx(closed_bonferroni(p_values), rel=1e-12)


@given(st.lists(P | st.none(), max_size=8))
def test_an_undefined_p_counts_as_one_that_shows_nothing(p_values):
    known = [i for i, p in enumerate(p_values) if p is not None]
    filled = holm([1.0 if p is None else p for p in p_values])
    assert holm(p_values) == [filled[i] if i in known else None for i in range(len(p_values))]


def test_holm_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


SCORE = st.integers(0, 1_000_000).map(lambda n: n / 10_000)
PAIRS = st.lists(st.tuples(SCORE, SCORE), min_size=2, max_size=8)


def columns(pairs: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.array(pairs).T.copy()
    assume(np.ptp(first - second) > 0.03)
    return first, second


@given(PAIRS, st.integers(-100, 100))
def test_what_both_sides_share_does_not_count(pairs, shift):
    first, second = columns(pairs)
    assert paired_p(first + shift, second + shift) == pytest.approx(
        paired_p(first, second), rel=1e-6, abs=1e-12
    )
    moved, still = summarise(first - second + shift), summarise(first - second)
    assert moved.sd == pytest.approx(still.sd, rel=1e-6)
    assert moved.interval == pytest.approx([end + shift for end in still.interval], abs=1e-6)


@given(PAIRS)
def test_swapping_the_sides_turns_the_sign(pairs):
    first, second = columns(pairs)
    one, other = summarise(first - second), summarise(second - first)
    assert (one.mean, one.sd) == pytest.approx((-other.mean, other.sd))
    assert one.interval == pytest.approx([-end for end in reversed(other.interval)])
    assert paired_p(first, second) == pytest.approx(paired_p(second, first))


@given(PAIRS)
def test_the_interval_holds_zero_where_p_is_above_five_percent(pairs):
    first, second = columns(pairs)
    p = paired_p(first, second)
    assume(abs(p - 0.05) > 1e-6)
    low, high = summarise(first - second).interval
    assert (low < 0 < high) == (p > 0.05)


@pytest.mark.parametrize("step", [0.0, 0.3])
def test_equal_differences_have_no_p(step):
    first = np.array(FIRST)
    assert paired_p(first + step, first) is None
    summary = summarise(first + step - first)
    assert (summary.mean, summary.sd) == pytest.approx((step, 0), abs=1e-12)
    assert summary.interval is None
    assert summary.note == "all values are equal, up to rounding: t is not defined"


def test_the_rounding_of_reports_is_no_spread():
    """1/3, 2/3 and 1 are a third apart, but not in two decimals."""
    higher, lower = np.array([33.33, 66.67, 100.0]), np.array([0.0, 33.33, 66.67])
    assert np.ptp(higher - lower) > 0
    assert paired_p(higher, lower, 0.025) is None
    assert paired_p(higher, lower) is not None
    assert paired_p(higher + np.array([0, 0, 0.05]), lower) < 1e-4  # a spread of its own is one


def test_differences_of_just_the_rounding_are_differences():
    first, second = np.array([0.5, 0.0]), np.zeros(2)
    assert summarise(first, 0.5).interval is not None
    assert paired_p(first, second, 0.5) == pytest.approx(0.5)
    assert summarise(first, 0.51).interval is paired_p(first, second, 0.51) is None
    rounding = {name: rounding_of(name) for name in ("sts.avg", "transfer.MR", "retrieval")}
    assert rounding == {"sts.avg": 0.00025, "transfer.MR": 0.025, "retrieval": 0.00025}


def test_one_value_has_a_mean_only():
    summary = summarise(np.array([58.0]))
    assert (summary.n, summary.mean, summary.sd, summary.interval) == (1, 58.0, None, None)
    assert summary.note == "one value has no spread"


# Reports and pairs.


def test_a_folder_and_a_pattern_name_the_same_reports(folder):
    write("a/.hidden.json", "not a report")
    write("a/notes.txt", "not a report")
    for where in ("a", "a/", "a/*.json", "[a]/?.json", "**/a/*.json"):
        assert [r.seed for r in read_configuration(where).reports] == [0, 1, 2, 3, 4], where
    Path("a").rename("[x]*")  # a folder whose name looks like a pattern
    assert len(read_configuration("[x]*").reports) == 5
    assert len(read_configuration(str(Path("[x]*/3.json").absolute())).reports) == 1


def test_reports_are_paired_by_seed_whatever_their_names(folder):
    straight = compare_paths("a", "b")
    for seed in range(5):
        Path(f"b/{seed}.json").rename(f"b/{9 - seed}-.json")
    assert compare_paths("a", "b") == straight


def test_holm_counts_the_tasks_of_a_block_without_averages(folder):
    for seed, value in enumerate(FIRST):
        sts = {"STS12": value + seed / 10, "STS13": value - seed / 5, "avg": value}
        write(f"a/{seed}.json", report(value, seed, sts=sts | {"avg_unseen": value}))
        sts = {"STS12": value, "STS13": value - 0.1 * (seed == 2), "avg": 58.0}
        write(f"b/{seed}.json", report(value, seed, sts=sts | {"avg_unseen": 58.0}))
    scores = compare_paths("a", "b")
    small, large = sorted(scores[f"sts.{task}"].p for task in ("STS12", "STS13"))
    adjusted = sorted(scores[f"sts.{task}"].p_adjusted for task in ("STS12", "STS13"))
    assert adjusted == pytest.approx([min(1, 2 * small), max(min(1, 2 * small), large)])
    for name in ("sts.avg", "sts.avg_unseen"):
        assert scores[name].p is not None
        assert scores[name].p_adjusted is None


def test_two_decimals_of_transfer_and_four_of_all_else_are_rounding(folder):
    """Differences of 0.02 apart are equal up to rounding in accuracies, and there only."""
    for name, step in (("a", 0.02), ("b", 0.0)):
        for seed in range(2):
            content = report(80.0, seed)
            content |= {"sts": {"avg": 80 + seed * step}, "transfer": {"avg": 80 + seed * step}}
            write(f"{name}/{seed}.json", content)
        for seed in range(2, 5):
            Path(f"{name}/{seed}.json").unlink()
    scores = compare_paths("a", "b")
    for side in (scores["transfer.avg"].first, scores["transfer.avg"].difference):
        assert (side.interval, side.n) == (None, 2)
    assert scores["transfer.avg"].p is None
    for side in (scores["sts.avg"].first, scores["sts.avg"].difference):
        assert side.interval is not None
    assert scores["sts.avg"].p == pytest.approx(0.5)  # t = 1 with one degree of freedom
    alone = compare_paths("b", "a")["transfer.avg"].second
    assert compare_paths("a")["transfer.avg"].first == alone == scores["transfer.avg"].first


def test_averages_are_known_by_the_last_part_of_their_name():
    averages = ["sts.avg", "sts.avg_unseen", "sts.avg_unseen_too", "avg", "retrieval.x.avg"]
    assert all(map(is_average, averages))
    assert not any(map(is_average, ["retrieval.avg.recall@1", "sts.average", "sts.STS12"]))


def test_without_seeds_the_names_pair_and_a_warning_says_so(folder, caplog):
    straight = compare_paths("a", "b")
    assert not caplog.records
    for path in folder.glob("?/*.json"):
        bare(str(path))
    assert compare_paths("a", "b") == straight
    pairs = ", ".join(f"a/{seed}.json with b/{seed}.json" for seed in range(5))
    assert f"paired in the order of file names: {pairs}\n" in caplog.text
    assert "no report records its data and evaluator" in caplog.text


def bare(path: str) -> None:
    """Take away what a report says of its measurement."""
    write(path, {k: v for k, v in json.loads(Path(path).read_text()).items() if k != "systems"})


def test_one_report_alone_was_measured_like_itself(folder, caplog):
    for seed in range(5):
        bare(f"a/{seed}.json")
    compare_paths("a/0.json")
    assert "no report records its data" not in caplog.text
    compare_paths("a/[01].json")
    assert "no report records its data" in caplog.text


# The command.


def test_the_command_prints_a_table(folder):
    result = invoke("compare", "a", "b")
    assert result.exit_code == 0, result.output
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["score", "a", "b", "difference", "p", "p,", "Holm", "n"]
    row = next(row for row in rows if "sts.avg" in row)
    low, high = summarise(np.array(FIRST)).interval
    assert f"58.34 ± 0.69 [{low:.2f}, {high:.2f}]" in row
    assert "0.24 ± 0.17 [" in row
    assert row.split()[-2:] == ["-", "5"]
    rank = next(row for row in rows if "median_rank" in row)
    assert rank.split()[-7:] == ["0.00", "±", "0.00", "[-]", "-", "-", "5"]


def test_names_and_scores_are_shown_as_they_are_and_whole(folder):
    Path("a").rename("[red]:smile:")
    stdout = invoke("compare", "[red]:smile:").stdout
    assert "[red]:smile:" in stdout
    assert "difference" not in stdout
    assert [row.split()[0] for row in stdout.splitlines()[1:6]] == [
        "sts.STS12",
        "sts.STS-B",
        "sts.avg",
        "retrieval.text_to_image.recall@1",
        "retrieval.text_to_image.median_rank",
    ]


def test_the_command_prints_json(folder):
    result = invoke("compare", "a", "b", "--json")
    assert result.exit_code == 0, result.output
    printed = strict_json(result.stdout)
    assert [side["name"] for side in printed["configurations"]] == ["a", "b"]
    assert printed["configurations"][1]["reports"][4] == {"file": "b/4.json", "seed": 4}
    average = printed["scores"]["sts.avg"]
    differences = [a - b for a, b in zip(FIRST, SECOND, strict=True)]
    assert average["first"]["mean"] == pytest.approx(np.mean(FIRST))
    assert average["second"]["sd"] == pytest.approx(np.std(SECOND, ddof=1))
    assert average["p"] == pytest.approx(plain_p(differences))
    assert average["difference"]["mean"] == pytest.approx(np.mean(differences))
    assert average["difference"]["interval"][0] < average["difference"]["interval"][1]
    rank = printed["scores"]["retrieval.text_to_image.median_rank"]
    assert (rank["p"], rank["p_adjusted"], rank["difference"]["interval"]) == (None, None, None)
    assert "equal" in rank["difference"]["note"]


def test_one_configuration_has_no_test(folder):
    for where, count in (("a", 5), ("a/0.json", 1)):
        average = strict_json(invoke("compare", where, "--json").stdout)["scores"]["sts.avg"]
        assert average["first"]["n"] == count
        assert (average["second"], average["difference"], average["p"]) == (None, None, None)


# Refusals.


def test_nothing_there(folder):
    Path("empty").mkdir()
    for where in ("nowhere", "nowhere/*.json", "empty", ""):
        result = invoke("compare", where)
        assert_clear_error(result, f"no report at {where}", "stages.evaluate --out")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["cannot be read as JSON"]),
        ("", ["cannot be read as JSON"]),
        ("[" * 100_000, ["cannot be read as JSON"]),
        ("[1]", ["not a JSON object"]),
        ({"loss": 1}, ["not an evaluation report", "sts, transfer, retrieval"]),
        ({"sts": {"pairs": 3}}, ["not an evaluation report"]),
        ('{"sts": {"avg": NaN}}', ["sts.avg is nan"]),
        ('{"sts": {"avg": -Infinity}}', ["sts.avg is -inf"]),
        ('{"sts": {"avg": 1e999}}', ["sts.avg is inf"]),
        ({"sts": {"avg": 10**400}}, ["sts.avg is 1000"]),
        ({"sts": {"avg": None}}, ["sts.avg is None"]),
        ({"sts": {"avg": True}}, ["sts.avg is True"]),
        ({"transfer": {"MR": "81"}}, ["transfer.MR is 81"]),
        ({"retrieval": {"text_to_image": {"recall@1": []}}}, ["text_to_image.recall@1"]),
        ({"sts": 5}, ["sts is not an object"]),
        ({"sts": {"avg": 1}, "transfer": None}, ["transfer is not an object"]),
        (report(systems=[]), ["systems[0].about"]),
        (report(systems=[{"about": 3}]), ["systems[0].about"]),
        (report(systems={}), ["systems[0].about"]),
        (report(systems=about(seed="0")), ["about.seed is 0"]),
        (report(systems=about(seed=True)), ["about.seed is True"]),
        (report(systems=about(data=["x"])), ["about.data"]),
    ],
)
def test_a_file_that_is_no_report(folder, content, words):
    write("a/3.json", content)
    assert_clear_error(invoke("compare", "a", "b"), "a/3.json", *words)


def test_scores_are_below_a_million():
    assert parse_report({"sts": {"avg": -999_999}}, "x").scores == {"sts.avg": -999_999}
    with pytest.raises(InputError, match=r"x: sts.avg is 1000000\.0, not a finite score"):
        parse_report({"sts": {"avg": 1e6}}, "x")


def drop(path: str) -> None:
    Path(path).unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda: (write("a/5.json", report(58.0, 5)), drop("a/1.json")),
            ["only a has seed 5", "only b has seed 1", "same seeds"],
        ),
        (
            lambda: write("b/again.json", report(58.0, 2)),
            ["b has seed 2 2 times: b/2.json, b/again.json"],
        ),
        (lambda: write("b/2.json", report(58.0, None)), ["b/2.json records no seed"]),
        (
            lambda: [drop(f"{name}/{seed}.json") for name in "ab" for seed in (1, 2, 3, 4)],
            ["one pair", "more seeds"],
        ),
        (
            lambda: (
                [bare(f"{name}/{seed}.json") for name in "ab" for seed in range(5)]
                + [drop("b/4.json")]
            ),
            ["a has 5 reports and b 4"],
        ),
    ],
)
def test_what_cannot_be_paired(folder, spoil, words):
    spoil()
    assert_clear_error(invoke("compare", "a", "b"), *words)


def test_a_configuration_against_itself(folder):
    assert_clear_error(invoke("compare", "a", "[a]/*.json"), "a/0.json belongs to both")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"evaluator": "3"}, "evaluator differs"),
        ({"evaluator": None}, "evaluator differs"),
        ({"data": DATA | {"sts": "c" * 64}}, "data.sts differs"),
        ({"data": {"transfer": DATA["transfer"]}}, "data.sts differs"),
        ({"data": None}, "data.sts differs (aaaaaaaaaaaa and not recorded)"),
        (
            {"settings": {"convention": "mteb"}},
            "settings.convention differs (not recorded and mteb)",
        ),
    ],
)
def test_reports_measured_on_something_else(folder, change, key):
    write("b/2.json", report(seed=2, systems=about(seed=2, **change)))
    for sides in SIDES:
        other = "b/0.json" if sides[0] == "b" else "a/0.json"
        assert_clear_error(invoke("compare", *sides), "b/2.json", other, key)


def parsed(where: str, parts: tuple[str, ...], **data: str):
    content = {part: {"avg": 1.0} for part in parts}
    return parse_report(content | {"systems": [{"about": {"data": data}}]}, where)


def check(*reports):
    check_comparable([Configuration(str(place), (one,)) for place, one in enumerate(reports)])


def test_the_data_of_what_only_one_report_scores_may_differ():
    both = parsed("x", ("sts", "transfer"), sts="a", transfer="b")
    for other in ({"transfer": "c"}, {}):
        check(both, parsed("y", ("sts",), sts="a", **other))
    with pytest.raises(InputError, match=r"x and y .* data.sts differs \(a and b\)"):
        check(both, parsed("y", ("sts",), sts="b"))
    with pytest.raises(InputError, match=r"x and y .* data.transfer differs \(b and c\)"):
        check(both, parsed("y", ("sts", "transfer"), sts="a", transfer="c"))


def test_other_data_of_a_part_that_none_scores_is_refused_where_it_is_recorded():
    one, other = (parsed(name, ("sts",), sts="a", transfer=name) for name in ("x", "y"))
    with pytest.raises(InputError, match=r"data.transfer differs \(x and y\)"):
        check(one, other)
    check(
        one, parsed("z", ("sts",), sts="a"), parsed("x", ("sts", "transfer"), sts="a", transfer="t")
    )


def test_data_of_a_part_that_was_not_scored_need_not_be_recorded(folder):
    write("b/2.json", report(seed=2, systems=about(seed=2, data={"sts": DATA["sts"]})))
    assert invoke("compare", "b").exit_code == 0


def test_reports_with_unequal_scores(folder):
    for count, more in ((3, ""), (4, " and 1 more"), (5, " and 2 more")):
        write("b/2.json", report(58.0, 2, transfer=dict.fromkeys("abcde"[:count], 80)))
        lacks = f"a/0.json lacks transfer.a, transfer.b, transfer.c{more}, which b/2.json has"
        assert_clear_error(invoke("compare", "a", "b"), lacks)
    content = report(58.0, 2)
    del content["sts"]["STS-B"]
    write("b/2.json", content)
    for sides in SIDES:
        assert_clear_error(invoke("compare", *sides), "b/2.json lacks sts.STS-B, which")
