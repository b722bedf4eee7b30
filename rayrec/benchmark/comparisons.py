"""Each subject of a benchmark as a comparison."""

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from rayrec.benchmark.encoders import RECTOOLS, OwnEncoderLoop, rectools
from rayrec.benchmark.metrics import MetricRows
from rayrec.benchmark.ranking import CatalogueEvaluation, DrawnSessions
from rayrec.benchmark.references import CollmLoop, CollmModel, OnePromptEach, TrainerLoop
from rayrec.benchmark.rows import Rounds
from rayrec.benchmark.settings import Benchmark, Subject
from rayrec.benchmark.stages import OwnLoop, alone
from rayrec.benchmark.timing import Comparison, Work, compare
from rayrec.data.catalogue import training_counts
from rayrec.data.prompts import PromptEncoder
from rayrec.data.tokenise import load_tokenizer, open_encoder
from rayrec.models.checkpoints import local_backbone
from rayrec.models.lora import merge_lora
from rayrec.models.sasrecllm import ModelShape, SASRecLLM, build
from rayrec.ranking import score_candidates
from rayrec.settings import validate, with_values
from rayrec.stages import Part, StageName
from rayrec.store import Prepared
from rayrec.training.hardware import the_device
from rayrec.training.job import StageJob
from rayrec.training.model import cast_weights, model_shape

_USERS = 4  # whose candidates are ranked while the reference ranks one user's: rounds of like length
_MORE = 3  # times as many rounds where one takes seconds, too short to even out a machine's mood
COLLM = (
    "CoLLM's loop: fp32 weights (autocast in bf16), left padding, whole vocabulary, gradient through the whole prompt"
)
TRAINER = "transformers.Trainer with peft: fp32 weights (autocast in bf16), left padding, the answer as the last token"
EACH = "one prompt a candidate, batches of 16, the same model: low-precision weights, merged LoRA, two answer logits"
COLLM_EACH = "one prompt a candidate, batches of 16, CoLLM's forward pass as above"
PLAIN = "the same without torch.compile, whose own minutes are in the round that does not count"
BARE = "the product of all vectors and torch.topk of it, with what sessions hold left in"
RECBOLE = "RecBole's evaluation with the same encoder: padded histories, every score of 4,096 users, topk, its metrics"
GROUPBY = "pandas groupby with scikit-learn's roc_auc_score for each user, and once for all"


def compare_subject(benchmark: Benchmark, data: Prepared, subject: Subject) -> Iterator[Comparison]:
    """Measure a subject in this process."""
    subjects = {
        Subject.ENCODER: _encoder,
        Subject.RANKING: _ranking,
        Subject.LORA: _lora,
        Subject.HYBRID: _hybrid,
        Subject.RERANKING: _reranking,
        Subject.METRICS: _metrics,
        Subject.COMPILE: _compile,
    }
    torch.set_num_threads(benchmark.base.cluster.most * benchmark.base.cluster.cpus_per_worker)
    with tempfile.TemporaryDirectory() as scratch:
        alone(Path(scratch))
        yield from subjects[subject](benchmark, data)


def _encoder(benchmark: Benchmark, data: Prepared) -> Iterator[Comparison]:
    python, base = benchmark.config.rectools, benchmark.base
    if python is None:
        print("encoder stage: left out; `rectools` names no environment of RecTools to compare with", flush=True)
        return
    for loss, (_, reference) in RECTOOLS.items():
        stages = with_values(base.model_dump(mode="json"), {f"stages.{StageName.PRETRAIN_ENCODER}.loss": loss.value})
        job = _job(benchmark.model_copy(update={"base": validate(stages, reference)}), data, StageName.PRETRAIN_ENCODER)
        rounds = Rounds(job, benchmark.config.encoder_steps)
        ours = OwnEncoderLoop(rounds, _fresh(job, model_shape(base, job.facts, with_backbone=False)))
        with (
            tempfile.TemporaryDirectory() as scratch,
            rectools(python, base, data.folder, loss, Path(scratch)) as theirs,
        ):
            yield compare(
                name=f"encoder stage, {loss}",
                reference=reference,
                unit="positions/s",
                ours=ours,
                theirs=theirs,
                rounds=benchmark.config.rounds,
            )


def _ranking(benchmark: Benchmark, data: Prepared) -> Iterator[Comparison]:
    config, job = benchmark.config, _job(benchmark, data, StageName.PRETRAIN_ENCODER)
    drawn = DrawnSessions.draw(config.ranked_sessions, config.ranked_items, benchmark.base.encoder.width)
    yield compare(
        name=f"ranking {config.ranked_sessions:,} sessions, {config.ranked_items:,} items",
        reference=BARE,
        unit="sessions/s",
        ours=drawn.ours,
        theirs=drawn.bare,
        rounds=_MORE * config.rounds,
    )
    model = _fresh(job, model_shape(benchmark.base, job.facts, with_backbone=False))
    evaluation = CatalogueEvaluation(job, model, training_counts(data.folder))
    yield compare(
        name=f"evaluation of {len(evaluation.rows):,} sessions, {job.facts.items:,} items",
        reference=RECBOLE,
        unit="sessions/s",
        ours=evaluation.ours,
        theirs=evaluation.theirs,
        rounds=_MORE * config.rounds,
    )


def _lora(benchmark: Benchmark, data: Prepared) -> Iterator[Comparison]:
    rounds, shape = _rounds(benchmark, data, StageName.TUNE_LORA)
    ours = OwnLoop(rounds, _fresh(rounds.job, shape))
    for reference in (COLLM, TRAINER):
        loop: Work = CollmLoop(rounds, shape, None) if reference is COLLM else TrainerLoop(rounds, shape)
        yield compare(
            name="LoRA stage",
            reference=reference,
            unit="rows/s",
            ours=ours,
            theirs=loop,
            rounds=benchmark.config.rounds,
            flop=True,
        )
        del loop
        gc.collect()


def _hybrid(benchmark: Benchmark, data: Prepared) -> Iterator[Comparison]:
    rounds, shape = _rounds(benchmark, data, StageName.TUNE_HYBRID)
    model, soft = _fresh(rounds.job, shape), _fresh(rounds.job, shape)
    if benchmark.base.fast.merge_lora and model.backbone is not None:
        merge_lora(model.backbone)
    soft.backbone = None  # the reference loads its own
    yield compare(
        name="hybrid stage",
        reference=COLLM,
        unit="rows/s",
        ours=OwnLoop(rounds, model),
        theirs=CollmLoop(rounds, shape, soft),
        rounds=benchmark.config.rounds,
        flop=True,
    )


def _reranking(benchmark: Benchmark, data: Prepared) -> Iterator[Comparison]:
    job, config = _job(benchmark, data, StageName.TUNE_HYBRID), benchmark.base
    shape = model_shape(config, job.facts, with_backbone=True)
    model, soft = _fresh(job, shape), _fresh(job, shape)
    if model.backbone is not None:
        merge_lora(model.backbone)
    soft.backbone = None  # CoLLM's loads its own
    cast_weights(model, config.engine.precision)
    model.to(the_device())
    tokenizer = load_tokenizer(local_backbone(config.backbone.sources))
    prompts: PromptEncoder = open_encoder(data.folder, config.data, tokenizer)
    random = np.random.default_rng(0)
    histories = random.integers(1, job.facts.items + 1, (_USERS, config.data.history)).tolist()
    count = min(benchmark.config.candidates, job.facts.items)
    candidates = (random.permutation(job.facts.items)[:count] + 1).tolist()

    def ours(number: int) -> int:
        return sum(len(score_candidates(model, prompts, config, history, candidates)) for history in histories)

    for reference in (EACH, COLLM_EACH):
        theirs: CollmModel | None = CollmModel(config, shape, soft) if reference is COLLM_EACH else None
        for module in (model, soft):
            module.set_mode(())
        if theirs is not None:
            theirs.llm.eval()
        score = model if theirs is None else theirs.logits
        yield compare(
            name=f"re-ranking {count} candidates",
            reference=reference,
            unit="candidates/s",
            ours=ours,
            theirs=OnePromptEach(score, prompts, config, histories[0], candidates, read=job.facts.max_len),
            rounds=_MORE * benchmark.config.rounds,
        )


def _metrics(benchmark: Benchmark, data: Prepared) -> Iterator[Comparison]:
    rows = MetricRows.draw(benchmark.config.metric_rows, benchmark.config.metric_users)
    yield compare(
        name=f"AUC and UAUC of {len(rows.label):,} rows",
        reference=GROUPBY,
        unit="rows/s",
        ours=rows.ours,
        theirs=rows.groupby,
        rounds=1,  # the reference takes minutes
    )


def _compile(benchmark: Benchmark, data: Prepared) -> Iterator[Comparison]:
    rounds, shape = _rounds(benchmark, data, StageName.TUNE_LORA)
    models = [_fresh(rounds.job, shape) for _ in range(2)]
    assert models[0].backbone is not None
    models[0].backbone.decoder.compile(dynamic=True)
    ours, theirs = (OwnLoop(rounds, model) for model in models)
    yield compare(
        name="LoRA stage, torch.compile",
        reference=PLAIN,
        unit="rows/s",
        ours=ours,
        theirs=theirs,
        rounds=benchmark.config.rounds,
    )


def _job(benchmark: Benchmark, data: Prepared, stage: StageName) -> StageJob:
    return StageJob(config=benchmark.base, stage=stage, facts=data.facts(benchmark.base), data=data.folder)


def _rounds(benchmark: Benchmark, data: Prepared, stage: StageName) -> tuple[Rounds, ModelShape]:
    job = _job(benchmark, data, stage)
    return Rounds(job, benchmark.config.steps), model_shape(benchmark.base, job.facts, with_backbone=True)


def _fresh(job: StageJob, shape: ModelShape) -> SASRecLLM:
    torch.manual_seed(0)
    reads_text = job.spec.reads.uses_backbone
    return build(job.config, shape, parts=job.parts | ({Part.LORA} if reads_text else set()), with_backbone=reads_text)
