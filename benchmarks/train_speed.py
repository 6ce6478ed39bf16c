"""Training against a plain loop and sentence-transformers, side by side in one run.

    python benchmarks/train_speed.py --json
        {"over_plain": ratio, "over_sentence_transformers": ratio, ...}

Each system trains the same model on the same corpora for the same number of steps of the same batch
size, in a process of its own that is started once a round; a ratio is the median over the rounds of
the ratio within a round. `over_plain` compares kdmcse with `plain_training.train_plain`, with one
evaluation every 125 steps and every sixth batch of pairs, as in the paper's run;
`over_sentence_transformers` compares simcse with that library's trainer, without any evaluation,
and needs the package `datasets`. The teacher's features are random numbers. Warm-up steps, reading,
tokenising ahead and loading are left out; `start_s` is what comes before the first step. Ours keeps
its tokens between the rounds, so the first of them takes longer to start.

FLOP are those of the transformer's matrices for the tokens that are not padding: 6 a weight and
token, and 12 x layers x width x length^2 a sentence for attention. Heads and losses do not count.
"""

import importlib.util
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ruamel.yaml import YAML
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.plain_training import World, train_plain, train_sentence_transformers
from benchmarks.watch import Watch
from pipeline.core.device import choose_device, keep_freed_memory
from pipeline.download.corpora import read_sentences_file
from pipeline.download.karpathy import read_karpathy
from pipeline.download.records import Pairs
from pipeline.download.senteval import read_senteval
from pipeline.evaluate.selection import DevScorer
from pipeline.features.store import Features
from pipeline.features.teacher_rows import pairs_of_split
from pipeline.params.changes import apply_changes
from pipeline.params.schema import Params
from pipeline.student.encoder import SentenceEncoder
from pipeline.train.batches import TrainingData
from pipeline.train.loop import TrainingRun
from pipeline.train.run_params import RunParams

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
TEACHER_DIM = 256
NO_PAIRS = 10**9
"""Every how many steps a text-only run takes a batch of pairs."""
PAPER_STEPS, PAPER_EVERY = 53_856, 125
"""Steps of the paper's run, and from one of its evaluations to the next."""
PAPER_PAIR_EVERY = 6
"""Every which of its steps is paired: a million sentences, 145,000 captions of Flickr30k."""
SCHEDULE_STEPS, SCHEDULE_WARMUP = 2_000, 50
PROFILED = 8
"""Steps under the profiler."""
GROUPS = {
    "attention": ("attention", "bmm", "_softmax_backward_data", "aten::_softmax", "sdpa", "flash"),
    "matmul": ("mm", "linear", "gemm", "matmul"),
    "dropout": ("dropout", "bernoulli"),
    "norm and activation": ("norm_backward", "layer_norm", "gelu", "tanh"),
    "optimiser": ("adam", "Optimizer", "_foreach", "linalg_vector_norm"),
    "copies and casts": ("copy", "aten::cat", "index", "embedding"),
}
"""Operators by a part of their name; the first group that fits gets them."""

Train = Callable[[World, RunParams, int, Watch], object]
Account = dict[str, Any]
Rounds = Mapping[str, list[Account]]


@dataclass(frozen=True)
class Job:
    """What one process is to do."""

    model: str
    mirror: str
    batch_size: int
    warmup: int
    steps: int
    evaluations: int
    learning_rate: float
    tokens: str
    """Folder in which ours keeps tokenised text, as its stage does."""
    seed: int = 0
    changes: dict[str, Any] = field(default_factory=dict)
    """Further keys of params.yaml."""

    @property
    def total(self) -> int:
        """Steps, the warm-up among them."""
        return self.warmup + self.steps

    def params(self, changes: Mapping[str, Any]) -> RunParams:
        """The repository's params.yaml, with the job's settings, `changes` and its own over it."""
        base = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        settings = {
            "student.encoder": self.model,
            "train.steps": self.total,
            "train.batch_size": self.batch_size,
            "train.learning_rate": self.learning_rate,
            "train.evaluate_every": math.ceil(self.total / self.evaluations),
        }
        chosen = apply_changes(base, {**settings, **changes, **self.changes})
        params = Params.model_validate(chosen)
        return RunParams(params.student, params.loss, params.train)


def main(  # noqa: PLR0913, PLR0917  # the options of a command are its arguments
    as_json: Annotated[bool, typer.Option("--json", help="Print on one line.")] = False,
    model: Annotated[str, typer.Option(help="A transformers directory.")] = str(
        SHARED / "models" / "minilm-l3"
    ),
    bert_base: Annotated[
        bool, typer.Option(help="Random weights of BERT-base's size; the tokenizer of --model.")
    ] = False,
    mirror: Path = SHARED / "mirror",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps a round.")] = 60,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before them.")] = 5,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    evaluations: Annotated[int, typer.Option(min=1, help="Of STS-B dev, a round.")] = 2,
    learning_rate: float = 3e-5,
    systems: Annotated[str, typer.Option(help="Which to run, with commas.")] = "",
    change: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of params.yaml; may be repeated.")
    ] = None,
    profile: Annotated[bool, typer.Option(help="Add a breakdown of our steps.")] = False,
    gpu_schedule: Annotated[
        bool, typer.Option(help="Add the paper's run, extrapolated from 2,000 steps.")
    ] = False,
) -> None:
    """Time all systems, and print the ratios."""
    chosen = choose_systems(systems)
    if gpu_schedule and not torch.cuda.is_available():
        raise SystemExit("--gpu-schedule needs a CUDA GPU.")
    changes = {key: _parse(value) for key, _, value in (c.partition("=") for c in change or [])}
    with tempfile.TemporaryDirectory() as name:
        if bert_base:
            model = save_random_bert(Path(name) / "bert-base", model)
        job = Job(
            model=model,
            mirror=str(mirror),
            batch_size=batch_size,
            warmup=warmup,
            steps=steps,
            evaluations=evaluations,
            learning_rate=learning_rate,
            tokens=str(Path(name) / "tokens"),
            changes=changes,
        )
        result = report(run_rounds(job, chosen, rounds), job)
        if profile:
            result["profile"] = run("profile", job)
        if gpu_schedule:
            result["schedule"] = time_schedule(job)
    typer.echo(json.dumps(result, indent=None if as_json else 2))


def choose_systems(names: str) -> list[str]:
    """Those that were named, or all; what cannot run is refused before the first starts."""
    chosen = names.split(",") if names else list(SYSTEMS)
    if unknown := set(chosen) - set(SYSTEMS):
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(SYSTEMS)}")
    if "sentence_transformers" in chosen and not importlib.util.find_spec("datasets"):
        others = ",".join(name for name in SYSTEMS if name != "sentence_transformers")
        raise SystemExit(
            "the trainer of sentence-transformers needs the package datasets: install it, or leave "
            f"it out with --systems {others}"
        )
    return chosen


def run_rounds(job: Job, systems: Sequence[str], rounds: int) -> Rounds:
    """The accounts of each system, round by round; the order turns, and each has its own seed."""
    accounts: dict[str, list[Account]] = {system: [] for system in systems}
    for turn in range(rounds):
        first = turn % len(systems)
        for system in [*systems[first:], *systems[:first]]:
            accounts[system].append(run(system, replace(job, seed=turn)))
    return accounts


def run(system: str, job: Job) -> Any:
    """What a process of its own finds; its last words are shown where it fails."""
    command = [sys.executable, __file__, "child", system, json.dumps(asdict(job))]
    quiet = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=quiet)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"{system} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(system: str, job: Job) -> Any:
    """Do a job in this process, under the allocator that every stage of ours sets."""
    keep_freed_memory()
    jobs: dict[str, Callable[[Job], Any]] = {"matmul": time_matmul, "profile": profile_ours}
    return jobs[system](job) if system in jobs else time_training(system, job)


def time_training(system: str, job: Job) -> Account:
    """Train once against the clock, and a tiny model once more to count the same run's tokens."""
    train, changes = TRAINERS[system]
    world, watch = read_world(job), Watch(job.warmup, job.steps)
    train(world, job.params(changes), job.seed, watch)
    account = watch.finish()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    with tempfile.TemporaryDirectory() as name:
        tiny = replace(job, model=save_random_bert(Path(name) / "tiny", job.model, **_TINY))
        few = replace(world, dev=world.dev.iloc[::100])
        watch = Watch(job.warmup, job.steps)
        with counting_tokens(watch) as counted:
            train(few, tiny.params(changes), job.seed, watch)
    counts = {key: value / job.steps for key, value in counted.items()}
    return {**account, **counts, "steps": job.steps, "peak_gib": peak}


_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@contextmanager
def counting_tokens(watch: Watch) -> Iterator[dict[str, float]]:
    """Count what the word embeddings look up in timed steps of training.

    Yields:
        real_tokens and computed_tokens: of all steps, the latter with what padding was computed.
        squared_lengths: the sum over all sentences, without padding.
    """
    counted = dict.fromkeys(("real_tokens", "computed_tokens", "squared_lengths"), 0.0)

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        is_words = isinstance(module, nn.Embedding) and module.padding_idx is not None
        if not (is_words and module.training and watch.is_timing):
            return
        real = inputs[0][inputs[0] != module.padding_idx]
        # Every sentence begins with the same token, also where they stand in one row.
        ends = torch.cat([(real == real[0]).nonzero()[1:, 0], torch.tensor([len(real)])])
        counted["real_tokens"] += len(real)
        counted["squared_lengths"] += ends.diff(prepend=ends.new_zeros(1)).square().sum().item()
        counted["computed_tokens"] += inputs[0].numel()

    hook = register_module_forward_pre_hook(note)
    yield counted
    hook.remove()


def read_world(job: Job) -> World:
    """Flickr30k's captions, Wikipedia's sentences and STS-B dev, with features drawn at random."""
    mirror = Path(job.mirror)
    sts, _ = read_senteval(mirror / "senteval.tar")
    images, captions = read_karpathy(mirror / "caption_datasets.zip", "flickr30k", [])
    rng = np.random.default_rng(0)
    draw = [
        rng.standard_normal((len(rows), TEACHER_DIM), np.float32) for rows in (images, captions)
    ]
    return World(
        read_sentences_file(mirror / "wiki1m_for_simcse.txt", "check --mirror."),
        images,
        captions,
        *(rows.astype(np.float16) for rows in draw),
        sts[(sts["task"] == "STS-B") & (sts["split"] == "dev")],
        Path(job.tokens),
    )


def train_ours(world: World, params: RunParams, seed: int, watch: Watch) -> None:
    """This project's loop, as its stage calls it."""
    features = Features(
        world.image_features,
        world.images["image_id"].to_numpy(),
        world.caption_features,
        world.captions["caption_id"].to_numpy(),
        world.caption_image,
    )
    pairs = pairs_of_split(Pairs(Path(), world.images, world.captions), features, "train")
    scorer = DevScorer(world.dev, params.train.batch_size)

    def score_dev(encoder: SentenceEncoder) -> Mapping[str, float]:
        with watch.evaluation():
            scores = scorer(encoder)
        watch.scores.append(scores["sts_dev"])
        return scores

    data = TrainingData(world.sentences, pairs)
    TrainingRun(data, params, seed).train(score_dev, tokens=world.tokens)


_PAPER = {
    "student.grounding_dim": 256,
    "loss.positives": "dropout",
    "loss.grounding_weight": 0.01,
    "loss.distillation.weight": 0.0,
    "train.head_learning_rate": None,
}
TEXT_ONLY = {**_PAPER, "train.objective": "simcse", "train.pair_every": NO_PAIRS}
PAIRED = {
    **_PAPER,
    "train.objective": "kdmcse",
    "train.pair_every": PAPER_PAIR_EVERY,
    "loss.filter.kind": "none",
    "loss.margin_kind": "adaptive",
}
TRAINERS: dict[str, tuple[Train, dict[str, Any]]] = {
    "ours": (train_ours, PAIRED),
    "plain": (train_plain, PAIRED),
    "ours_simcse": (train_ours, TEXT_ONLY),
    "sentence_transformers": (train_sentence_transformers, TEXT_ONLY),
}
SYSTEMS = (*TRAINERS, "matmul")


def save_random_bert(folder: Path, tokenizer: str, **config: int) -> str:
    """A BERT with random weights, of base size where `config` says nothing else."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    words = AutoTokenizer.from_pretrained(tokenizer)
    settings = BertConfig(vocab_size=len(words), pad_token_id=words.pad_token_id, **config)
    BertModel(settings).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def time_matmul(job: Job) -> Account:
    """FLOP/s of the model's largest matrix product, for all tokens of a full batch of two views."""
    width = model_size(job.model)["width"]
    rows = 2 * job.batch_size * job.params({}).student.max_length
    kinds = {"bf16": torch.bfloat16, "fp32": torch.float32}
    return {name: matmul_rate((rows, width, 4 * width), kind) for name, kind in kinds.items()}


def matmul_rate(shape: tuple[int, int, int], kind: torch.dtype) -> float:
    """FLOP/s of (rows, width) x (width, out), the median of what two seconds hold."""
    from torch.utils.benchmark import Timer

    rows, width, out = shape
    device = choose_device()
    values = {
        "first": torch.randn(rows, width, device=device, dtype=kind),
        "second": torch.randn(width, out, device=device, dtype=kind),
        "torch": torch,
    }
    timer = Timer(
        "torch.matmul(first, second)", globals=values, num_threads=torch.get_num_threads()
    )
    return 2 * rows * width * out / timer.blocked_autorange(min_run_time=2).median


def model_size(model: str) -> dict[str, int]:
    """Width, layers and weights without embeddings and pooler."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        named = AutoModel.from_config(config).named_parameters()
    weights = sum(w.numel() for name, w in named if not name.startswith(("embeddings.", "pooler.")))
    return {"width": config.hidden_size, "layers": config.num_hidden_layers, "weights": weights}


def profile_ours(job: Job) -> Account:
    """Milliseconds a step of the processor or GPU by group of operators, of a few of our steps."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    job = replace(job, steps=PROFILED, evaluations=1)
    on_gpu = torch.cuda.is_available()
    profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * on_gpu)])
    watch = Watch(job.warmup, job.steps)

    def turn(*_: Optimizer) -> None:
        if watch.taken == job.warmup:
            profiler.start()
        if watch.taken == job.total:
            profiler.stop()

    register_optimizer_step_post_hook(turn)
    train_ours(read_world(job), job.params(PAIRED), job.seed, watch)
    kind = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    # A kernel's time is that of the operator that started it, too.
    operators = [e for e in profiler.key_averages() if e.device_type == DeviceType.CPU]
    times = {e.key: getattr(e, kind) / 1e3 / PROFILED for e in operators}
    return {"wall_ms": 1e3 * watch.finish()["steps_s"] / PROFILED, **grouped(times)}


def grouped(times: Mapping[str, float]) -> Account:
    """Times by group, and the longest operators of all with their group."""
    groups = {name: _group_of(name) for name in times}
    totals = dict.fromkeys([*GROUPS, "other"], 0.0)
    for name, value in times.items():
        totals[groups[name]] += value
    longest = sorted(times, key=times.__getitem__, reverse=True)[:15]
    return {
        "by_group_ms": {name: round(value, 2) for name, value in totals.items()},
        "longest_ms": {f"{name} ({groups[name]})": round(times[name], 2) for name in longest},
    }


def _group_of(operator: str) -> str:
    return next(
        (group for group, parts in GROUPS.items() if any(part in operator for part in parts)),
        "other",
    )


def time_schedule(job: Job) -> Account:
    """Minutes of the paper's run, from 2,000 steps of ours and their evaluations."""
    measured = SCHEDULE_STEPS + SCHEDULE_WARMUP
    job = replace(
        job,
        warmup=SCHEDULE_WARMUP,
        steps=SCHEDULE_STEPS,
        evaluations=math.ceil(measured / PAPER_EVERY),
    )
    account = run("ours", job)
    # One evaluation comes before the first step and one after the last, which 125 does not divide.
    evaluations = PAPER_STEPS // PAPER_EVERY + 2
    seconds = PAPER_STEPS * account["steps_s"] / SCHEDULE_STEPS
    return {
        "steps_per_second": round(SCHEDULE_STEPS / account["steps_s"], 1),
        "evaluation_s": round(account["evaluation_s"], 3),
        "start_s": round(account["start_s"], 1),
        "minutes": round(
            (seconds + evaluations * account["evaluation_s"] + account["start_s"]) / 60, 2
        ),
    }


def report(accounts: Rounds, job: Job) -> Account:
    """Ratios first; then what each system did, and where the machine's limit is."""
    plain = compare(accounts, "plain", "ours")
    library = compare(accounts, "sentence_transformers", "ours_simcse")
    return {
        "over_plain": plain["every_125"]["median"] if plain else None,
        "over_sentence_transformers": library["steps"]["median"] if library else None,
        "ratios": {"plain": plain, "sentence_transformers": library},
        "systems": {
            name: describe(rounds, job) for name, rounds in accounts.items() if name in TRAINERS
        },
        "flop": describe_flop(accounts, job),
        "setting": {**asdict(job), "rounds": len(next(iter(accounts.values()))), **machine()},
    }


def compare(accounts: Rounds, theirs: str, ours: str) -> Account:
    """Theirs over ours, in four ways, round by round; empty where one of them did not run.

    `every_125` is of steps with evaluations as often as the paper has them, `run` as often as they
    came here, `steps` without them, and `per_token` of steps for tokens that are no padding.
    """
    if not {theirs, ours} <= set(accounts):
        return {}
    ways: dict[str, Callable[[Account], float]] = {
        "run": lambda one: one["seconds"],
        "steps": lambda one: one["steps_s"],
        "every_125": lambda one: PAPER_EVERY * one["steps_s"] / one["steps"] + one["evaluation_s"],
        "per_token": lambda one: one["steps_s"] / one["real_tokens"],
    }
    rounds = list(zip(accounts[theirs], accounts[ours], strict=True))
    return {name: spread([cost(a) / cost(b) for a, b in rounds]) for name, cost in ways.items()}


def describe(rounds: Sequence[Account], job: Job) -> Account:
    """Rates of steps without evaluations, a sentence counted once; scores; tokens of a step."""
    last = {name: spread([one[name] for one in rounds]) for name in _DESCRIBED}
    return {
        "sentences_per_second": spread([job.batch_size * job.steps / r["steps_s"] for r in rounds]),
        "steps_per_second": spread([job.steps / one["steps_s"] for one in rounds]),
        "sts_dev": spread([one["sts_dev"][-1] for one in rounds]),
        "sts_dev_by_round": [[round(score, 2) for score in one["sts_dev"]] for one in rounds],
        "evaluations": rounds[0]["evaluations"],
        **last,
    }


_DESCRIBED = ("evaluation_s", "start_s", "peak_gib", "real_tokens", "computed_tokens")


def describe_flop(accounts: Rounds, job: Job) -> Account:
    """The machine's rate of matrix products, and the share of it that our steps reach."""
    limits = {kind: [one[kind] for one in accounts.get("matmul", [])] for kind in ("bf16", "fp32")}
    size = model_size(job.model)
    ours = accounts.get("ours", [])
    work = [flop_of_step(one, size) for one in ours]
    reached = [job.steps * flop / one["steps_s"] for flop, one in zip(work, ours, strict=True)]
    share = {
        kind: [a / b for a, b in zip(reached, rates, strict=False)]
        for kind, rates in limits.items()
    }
    return {
        **size,
        "gflop_per_step": spread([flop / 1e9 for flop in work]),
        "gflops": spread([rate / 1e9 for rate in reached]),
        "matmul_gflops": {kind: spread([r / 1e9 for r in rates]) for kind, rates in limits.items()},
        "share_of_matmul": {kind: spread(shares) for kind, shares in share.items()},
    }


def flop_of_step(account: Account, size: Mapping[str, int]) -> float:
    """See the module's docstring; both views count."""
    attention = 12 * size["layers"] * size["width"] * account["squared_lengths"]
    return float(6 * size["weights"] * account["real_tokens"] + attention)


def spread(values: Sequence[float]) -> Account:
    """Median and range, to four digits; empty where nothing ran."""
    if not values:
        return {}
    low, middle, high = (
        float(f"{value:.4g}") for value in (min(values), statistics.median(values), max(values))
    )
    return {"median": middle, "range": [low, high]}


def machine() -> Account:
    """What the numbers hold for."""
    device = choose_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _parse(value: str) -> Any:
    return YAML(typ="safe", pure=True).load(value)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        print(json.dumps(child(sys.argv[2], Job(**json.loads(sys.argv[3])))))
    else:
        typer.run(main)
