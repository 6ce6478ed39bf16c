"""Training of a BERT-base: our loop in several ways, and those of others."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from benchmarks.gpu.measure import Bench, Values, median_seconds
from benchmarks.gpu.worlds import (
    LONGEST,
    NO_PAIRS,
    TEACHER_DIM,
    draw_data,
    draw_sentences,
    run_params,
    save_bert,
)
from benchmarks.watch import Watch
from pipeline.features.teacher_rows import TeacherBatch
from pipeline.student.encoder import SentenceEncoder, Tokens, run_padded
from pipeline.train import loop
from pipeline.train.batches import TrainingData
from pipeline.train.gradients import Batch, add_gradients
from pipeline.train.objective import build_model
from pipeline.train.precision import autocast_of, choose_precision
from pipeline.train.run_params import RunParams
from pipeline.train.unpadded import take_masks_unseen

PAPER_STEPS, PAPER_EVALUATIONS = 53_856, 432
"""Of the paper's run: an evaluation every 125 steps, one before and one after."""
DEV_SENTENCES = 2_974
"""About as many as STS-B dev has distinct ones."""
_LAYERS, _WIDTH, _WEIGHTS = 12, 768, 85_054_464
"""Of BERT-base, without embeddings and pooler."""


@dataclass(frozen=True)
class Setting:
    """What every way of training shares."""

    bench: Bench
    model: str
    data: TrainingData
    tokens: Path
    peak: float
    """FLOP/s of a large bf16 matrix product; 0 where it was not measured."""

    def params(self, watch: Watch | None = None, **changes: Any) -> RunParams:
        """Those of the paper, for as many steps as are timed, with some keys of `train` changed."""
        steps = watch.warmup + watch.steps if watch else 1
        shared = {"steps": steps, "evaluate_every": steps, "batch_size": self.bench.of(8, 64)}
        return run_params(self.model, shared | changes)

    def train(
        self, *, steps: int | None = None, warmup: int | None = None, **changes: Any
    ) -> Values:
        """Rate of our loop with some keys of `train` changed."""
        warmup = warmup or self.bench.of(2, 20)
        watch = Watch(warmup, steps or self.bench.of(4, 120))
        params = self.params(watch, **changes)
        try:
            run = loop.TrainingRun(self.data, params, 0)
            run.train(lambda _: {"sts_dev": 0.0}, tokens=self.tokens)
            account = watch.finish()
        finally:
            watch.close()
        return self.describe(account["steps_s"] / watch.steps, params.train.batch_size)

    def describe(self, seconds: float, batch_size: int) -> Values:
        """A step's rates; FLOP are those of full batches, padding counted."""
        shared = {"batch_size": batch_size, "steps_per_second": round(1 / seconds, 2)}
        shared |= {"ms_per_step": round(1e3 * seconds, 3)}
        if self.peak and not self.bench.tiny:
            share = step_flop(batch_size) / seconds / self.peak
            shared["share_of_bf16"] = round(share, 3)
        return shared


def step_flop(batch_size: int) -> float:
    """Of one step: 6 a weight and token, and 12 x layers x width x length^2 a sentence.

    Both views, every sentence LONGEST tokens long: the most that a step computes. The transformer's
    matrices only; heads, losses and optimiser do not count.
    """
    sentences = 2 * batch_size
    attention = 12 * _LAYERS * _WIDTH * LONGEST**2
    return float(sentences * (6 * _WEIGHTS * LONGEST + attention))


def run(bench: Bench) -> None:
    """All ways, the most telling first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_bert(folder / "bert", tiny=bench.tiny)
        data = draw_data(*bench.of((400, 100), (50_000, 4_000)), tiny=bench.tiny)
        product = bench.take("bf16 matrix product", lambda: time_product(bench))
        peak = float(product.get("tflops", 0)) * 1e12
        setting = Setting(bench, model, data, folder / "tokens", peak)
        ours = bench.take("our loop", setting.train, seconds=10)
        bench.take("one CUDA graph a step", lambda: captured(setting), cuda=True, seconds=15)
        bench.take("the plain loop", lambda: plain(setting), needs=["pandas", "scipy"], seconds=15)
        dev = bench.take("STS-B dev encoded", lambda: encode_dev(setting), seconds=3)
        if ours and dev:
            bench.take("the paper's run", lambda: paper(ours, dev))
        graphs = {"dynamic": False, "mode": "reduce-overhead"}
        bench.take(
            "compiled, CUDA graphs", lambda: compiled(setting, **graphs), cuda=True, seconds=45
        )
        bench.take("no padding", lambda: setting.train(unpad=True), seconds=10)
        take_large(setting)
        take_others(setting)
        bench.take("our loop, float32", lambda: setting.train(precision="fp32"), seconds=10)
        take_compiled(setting)


def take_compiled(setting: Setting) -> None:
    """Under torch.compile, as `train.compile` has it and for one length."""
    backend = setting.bench.of("aot_eager", "inductor")
    for name, dynamic in (("compiled, any shape", True), ("compiled, 32 tokens", False)):
        options = {"backend": backend, "dynamic": dynamic}
        setting.bench.take(name, lambda options=options: compiled(setting, **options), seconds=45)


def compiled(setting: Setting, **options: Any) -> Values:
    """Our loop with other options of torch.compile in the place of its own."""
    torch.compiler.reset()

    def compile_encoder(encoder: SentenceEncoder, *, wanted: bool) -> None:
        assert wanted
        cast(Any, encoder.backbone).compile(**options)
        if not options["dynamic"]:
            encoder.run_backbone = run_fixed

    with mock.patch.object(loop, "compile_encoder", compile_encoder):
        return setting.train(compile=True)


def run_fixed(backbone: torch.nn.Module, tokens: Tokens) -> torch.Tensor:
    """The last hidden states of a batch, cut to what it had before it was filled up."""
    length = tokens["input_ids"].shape[1]
    if not backbone.training or length > LONGEST:
        return run_padded(backbone, tokens)
    filled = {key: F.pad(value, (0, LONGEST - length)) for key, value in tokens.items()}
    return run_padded(backbone, filled)[:, :length]


def captured(setting: Setting) -> Values:
    """Steps replayed as CUDA graphs: forward, backward, clipping and optimiser in one.

    What a loop could reach whose host does nothing: batches do not change, of LONGEST tokens each.
    """
    stepper = Stepper(setting)
    sides = (torch.randn(stepper.size, TEACHER_DIM, device="cuda") for _ in range(2))
    replays = [stepper.capture(batch) for batch in (None, TeacherBatch(*sides))]
    steps = 120

    def go() -> None:
        for step in range(steps):
            replays[step % 6 == 0].replay()

    return setting.describe(median_seconds(go, 3) / steps, stepper.size)


class Stepper:
    """One training step of fixed shape."""

    def __init__(self, setting: Setting) -> None:
        device = setting.bench.device
        params = setting.params()
        self.size = params.train.batch_size
        self._model = build_model(params, TEACHER_DIM).to(device).train()
        take_masks_unseen(self._model.encoder)
        self._autocast = autocast_of(choose_precision("auto", device), device)
        self._optimiser = AdamW(
            self._model.parameters(),
            lr=1e-5,
            weight_decay=0.0,
            fused=True,
            capturable=device.type == "cuda",
        )
        ids = torch.randint(4, 100, (self.size, LONGEST), device=device)
        self._tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def step(self, teacher: TeacherBatch | None) -> None:
        """Take it."""
        self._optimiser.zero_grad()
        batch = Batch([self._tokens] * 2, None if teacher is None else [teacher] * 2)
        add_gradients(self._model, batch, autocast=self._autocast)
        clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimiser.step()

    def capture(self, teacher: TeacherBatch | None) -> Any:
        """A graph of it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(teacher)
        torch.cuda.current_stream().wait_stream(stream)
        self._optimiser.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(teacher)
        return graph


def take_large(setting: Setting) -> None:
    """Batches larger than memory, in parts and whole."""
    few = {"steps": setting.bench.of(2, 20), "warmup": setting.bench.of(1, 5)}
    for size, part in setting.bench.of(
        [(16, 4), (32, 8)], [(256, 64), (1024, 64), (1024, 256), (256, None), (1024, None)]
    ):
        name = f"batch {size}, " + (f"{part} at a time" if part else "whole")
        bench_size = {"batch_size": size, "mini_batch_size": part}
        setting.bench.take(
            name, lambda bench_size=bench_size: setting.train(**few, **bench_size), seconds=8
        )


def take_others(setting: Setting) -> None:
    """Text alone, by our loop and by sentence-transformers' trainer."""
    text = {"objective": "simcse", "pair_every": NO_PAIRS}
    setting.bench.take("text alone, our loop", lambda: setting.train(**text), seconds=8)
    setting.bench.take(
        "text alone, sentence-transformers",
        lambda: sentence_transformers(setting),
        needs=["sentence_transformers", "datasets", "accelerate", "pandas", "scipy"],
        seconds=15,
    )


def plain(setting: Setting) -> Values:
    """The loop of `plain_training.py`: float32, padded, tokenising as it goes."""
    from benchmarks.plain_training import train_plain

    return timed_system(setting, train_plain)


def sentence_transformers(setting: Setting) -> Values:
    """That library's trainer."""
    from benchmarks.plain_training import train_sentence_transformers

    return timed_system(setting, train_sentence_transformers)


def timed_system(setting: Setting, train: Callable[..., None]) -> Values:
    """Rate of a loop of `plain_training.py`."""
    watch = Watch(setting.bench.of(1, 10), setting.bench.of(3, 50))
    params = setting.params(watch)
    try:
        train(plain_world(setting.data), params, 0, watch)
        account = watch.finish()
    finally:
        watch.close()
    return setting.describe(account["steps_s"] / watch.steps, params.train.batch_size)


def plain_world(data: TrainingData) -> Any:
    """The same data as tables, and a few dev pairs."""
    import pandas as pd

    from benchmarks.plain_training import World

    features = data.pairs.features
    images = pd.DataFrame({"image_id": features.image_ids, "split": "train"})
    captions = pd.DataFrame({"caption": data.pairs.captions, "image_id": features.image_ids})
    dev = pd.DataFrame({"sentence1": data.sentences[:8], "sentence2": data.sentences[4:12]})
    return World(
        data.sentences,
        images,
        captions,
        np.asarray(features.images[:]),
        np.asarray(features.captions[:]),
        dev.assign(score=np.arange(8.0)),
    )


def encode_dev(setting: Setting) -> Values:
    """Seconds that the device takes for one score on STS-B dev."""
    bench = setting.bench
    encoder = SentenceEncoder.load(setting.model, "cls").to(bench.device)
    take_masks_unseen(encoder)
    count = bench.of(50, DEV_SENTENCES)
    tokenized = encoder.tokenize_all(draw_sentences(count, (5, 25), tiny=bench.tiny))
    autocast = autocast_of(choose_precision("auto", bench.device), bench.device)

    def work() -> None:
        with autocast():
            encoder.encode_tokenized(tokenized, batch_size=64)

    seconds = median_seconds(work, 3)
    return {"seconds": round(seconds, 4), "sentences_per_second": round(count / seconds)}


def paper(ours: Values, dev: Values) -> Values:
    """Minutes of the paper's run: its steps and its evaluations' encoding, and nothing else."""
    seconds = PAPER_STEPS / ours["steps_per_second"] + PAPER_EVALUATIONS * dev["seconds"]
    return {"minutes": round(seconds / 60, 2)}


def time_product(bench: Bench) -> Values:
    """TFLOP/s of a large square product of random bf16 numbers, the measure of all shares."""
    size = bench.of(64, 8192)
    first, second = (
        torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2)
    )

    def work() -> None:
        for _ in range(10):
            first @ second

    return {"tflops": round(10 * 2 * size**3 / median_seconds(work, 5) / 1e12, 3)}
