"""Next items in the tables of the method and in the configuration: what goes, what is refused, what stays the same."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from rayrec import planning
from rayrec.config import Config, identity, ranking
from rayrec.data.beside import Beside
from rayrec.errors import InputError
from rayrec.models.names import Pooling
from rayrec.models.ranking import Decay, Nearness, Similarity
from rayrec.names.tables import _REDUCE
from rayrec.pipeline import train_only
from rayrec.run import Run
from rayrec.search.config import load_search
from rayrec.search.study import read_by_trials
from rayrec.settings import load
from rayrec.stages import ENCODERS, JUDGED_BY, STAGES, EncoderKind, Metric, StageName, Task
from rayrec.systems import SYSTEMS, SystemName, titles

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TASK = ["data.task=next_item", "data.dataset=synthetic", "stages.pretrain_encoder.loss=softmax"]
ANSWERS = [*TASK, "stages.tune_answers={}"]
RERANKS = [*TASK, "ranking.sasrecllm={}"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            TASK[:2],
            "stages.pretrain_encoder.loss: label_bce is not for data.task next_item, whose rows all have one label",
        ),
        (
            [*TASK, "encoder.kind=mf"],
            "encoder.kind: mf knows users by name, and every session is a new one; for data.task",
        ),
        ([*TASK, "encoder.kind=neumf"], "next_item use sasrec or gru or bert4rec"),
        (
            [*TASK, "encoder.kind=bert4rec"],
            "softmax needs an encoder that reads a sequence forwards, and bert4rec does not; use cloze",
        ),
        ([*TASK, "encoder.offset=feature_floor"], "encoder.offset: feature_floor learns from what was disliked"),
        (["encoder.initial={names: pca}"], "encoder.initial: for data.task next_item only; leave it out"),
        (["names.sources=tiny"], "names: for data.task next_item only"),
        (["ranking.sknn.sample=5"], "ranking: for data.task next_item only"),
        (["stages.tune_answers={}"], "stages.tune_answers: for data.task next_item only"),
        (
            [*TASK, "ranking.llmseqprompt.k=5"],
            "ranking.llmseqprompt: nothing is asked of a language model that no stage",
        ),
        (
            [*ANSWERS, "ranking.llmseqprompt.form=list"],
            "ranking.llmseqprompt.form: Input should be 'genitem', 'genlist'",
        ),
        ([*ANSWERS, "ranking.llmseqprompt.clusters=9"], "genitem does not read clusters; leave it out"),
        ([*ANSWERS, "ranking.llmseqprompt={form: rank, temperature: 1}"], "rank does not read temperature"),
        (
            [*ANSWERS, "stages.tune_answers.judged_by=valid_ndcg"],
            "does not choose checkpoints for data.task next_item; write valid_answers",
        ),
        (
            [*ANSWERS, "stages.tune_answers.loss=softmax"],
            "tune_answers.loss: softmax is not offered; choose answer_words",
        ),
        ([*ANSWERS, "stages.tune_answers.trains=[encoder]"], "tune_answers does not train encoder; it trains lora"),
        (
            [*TASK[:2], "stages.pretrain_encoder.loss=answer_words"],
            "pretrain_encoder.loss: answer_words is not offered; choose label_bce or",
        ),
        (["ranking.sasrecllm={}"], "ranking: for data.task next_item only"),
        ([*TASK, "ranking.sasrecllm.k=3"], "unknown key 'ranking.sasrecllm.k'; known keys: candidates, sessions"),
        (
            [*TASK, "ranking.sasrecllm={candidates: 19}"],
            "ranking.sasrecllm.candidates: 19 do not fill lists of 20, the longest of evaluation.ks; take as many",
        ),
        (
            [*RERANKS, "stages.tune_hybrid.starts_from.encoder=fresh"],
            "stages.tune_hybrid.starts_from.encoder: of next items it starts from the encoder whose candidates",
        ),
        ([*TASK, "mapper.offset=encoder"], "mapper.offset: encoder learns from what was disliked"),
        ([*RERANKS, "mapper.offset=feature_floor"], "mapper.offset: feature_floor learns from what was disliked"),
        (
            [*RERANKS, "stages.tune_lora.judged_by=valid_ndcg"],
            "stages.tune_lora.judged_by: valid_ndcg does not choose checkpoints for data.task next_item; write",
        ),
        (
            [*RERANKS, "stages.tune_hybrid.loss=softmax"],
            "tune_hybrid.loss: softmax is not offered; choose label_bce",
        ),
        (["evaluation.ks=[3]"], "evaluation.ks: for data.task next_item only"),
        ([*TASK, "encoder.initial={names: umap}"], "encoder.initial.names: Input should be 'pca', 'random_projection'"),
        ([*TASK, "encoder.initial={permuted: true}"], "encoder.initial.names: missing; it has no default"),
        ([*TASK, "encoder.initial={names: pca, permute: 1}"], "unknown key 'encoder.initial.permute'; did you mean"),
        ([*TASK, "ranking.llmseqsim={reduction: null, width: 8}"], "reduction null keeps the width of the embeddings"),
        ([*TASK, "ranking.llmseqsim.decay=square"], "ranking.llmseqsim.decay: Input should be 'none'"),
        (
            [*TASK, "ranking.embedding_ensemble.ranks=[]"],
            "ranking.embedding_ensemble.ranks: Tuple should have at least 1",
        ),
        (
            [*TASK, "ranking.llmseqsim_popularity.quantiles=[25]"],
            "quantiles.0: Input should be less than or equal to 1",
        ),
        ([*TASK, "evaluation.ks=[]"], "evaluation.ks: Tuple should have at least 1 item"),
        ([*TASK, "evaluation.ks=[0]"], "greater than 0"),
    ],
)
def test_what_does_not_go_is_told(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(None, overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_has_the_tasks_own_stages_and_systems(tmp_path: Path) -> None:
    run = Run(load(None, [*TASK, f"storage={tmp_path}", "stages.tune_hybrid.starts_from.encoder=fresh"]))
    assert [*run.stages] == ["pretrain_encoder"]
    own = ["EmbeddingEnsemble", "LLMSeqSim&Popularity"]
    behind = ["SASRec", "LLMSeqSim&SASRec"]
    assert [*run.titles.values()] == ["MostPopular", "SKNN", "V-SKNN", "LLMSeqSim", *own, *behind]
    asked = Run(load(None, [*ANSWERS, f"storage={tmp_path}"]))
    assert [*asked.stages] == ["pretrain_encoder", "tune_answers"]
    assert [*asked.titles.values()] == ["MostPopular", "SKNN", "V-SKNN", "LLMSeqSim", *own, "LLMSeqPrompt", *behind]
    tuned = Run(load(None, [*RERANKS, f"storage={tmp_path}", "encoder.kind=gru"]))
    assert [*tuned.stages] == ["pretrain_encoder", "tune_lora", "tune_hybrid"] and len(tuned.systems) == 9
    assert [*tuned.titles.values()][-3:] == ["GRU4Rec", "LLMSeqSim&GRU4Rec", "GRU4RecLLM"]
    bare = Run(load(None, [*RERANKS, f"storage={tmp_path}", "stages.tune_hybrid.starts_from.lora=none"]))
    assert [*bare.stages] == ["pretrain_encoder", "tune_hybrid"]
    clicks = Run(Config())
    assert [*clicks.stages] == ["pretrain_encoder", "tune_lora", "tune_hybrid"] and len(clicks.systems) == 9
    assert [*clicks.titles] == [*clicks.systems] and "MostPopular" not in clicks.titles.values()


@pytest.mark.parametrize(
    ("kind", "from_names", "title"),
    [
        ("sasrec", False, "SASRec"),
        ("sasrec", True, "LLM2SASRec"),
        ("gru", False, "GRU4Rec"),
        ("gru", True, "LLM2GRU4Rec"),
        ("bert4rec", False, "BERT4Rec"),
        ("bert4rec", True, "LLM2BERT4Rec"),
    ],
)
def test_an_encoder_is_called_as_in_its_track(kind: str, from_names: bool, title: str) -> None:
    found = titles(EncoderKind(kind), Task.NEXT_ITEM, from_names=from_names)
    assert found[next(iter(_trained()))] == title
    assert found[SystemName.LLMSEQSIM_SEQUENTIAL] == f"LLMSeqSim&{title}"
    assert titles(EncoderKind(kind))[next(iter(_trained()))] == ENCODERS[EncoderKind(kind)].title


def _trained() -> list[Any]:
    return [system for system, spec in SYSTEMS.items() if spec.tasks == frozenset(Task)]


def test_every_task_is_judged_by_metrics_of_its_own() -> None:
    assert {task: metrics[0] for task, metrics in JUDGED_BY.items()} == {
        Task.CLICK: Metric.AUC,
        Task.NEXT_ITEM: Metric.NDCG,
    }
    rerank = load(None, [*RERANKS, "mapper.offset=encoder"])
    chosen = {stage: rerank.judged_by(stage) for stage in rerank.run_stages}
    assert chosen == {
        StageName.PRETRAIN_ENCODER: Metric.NDCG,
        StageName.TUNE_LORA: Metric.AUC,
        StageName.TUNE_HYBRID: Metric.AUC,
    }
    every = [*JUDGED_BY.values(), *(spec.judged_by for spec in STAGES.values())]
    assert sorted(metric for metrics in every for metric in metrics) == sorted(Metric)
    assert [metric.shown for metric in JUDGED_BY[Task.NEXT_ITEM]] == ["NDCG@20", "HR@20"]


def test_the_configuration_offers_what_there_is() -> None:
    assert get_args(ranking.Decay) == tuple(decay.value for decay in Decay)
    assert get_args(ranking.Nearness) == tuple(nearness.value for nearness in Nearness)
    assert get_args(ranking.VSKNNConfig.model_fields["similarity"].annotation) == tuple(
        kind.value for kind in Similarity
    )
    assert get_args(ranking.NamesConfig.model_fields["pooling"].annotation) == tuple(kind.value for kind in Pooling)
    assert get_args(ranking.Reduction) == tuple(_REDUCE)


def test_clicks_keep_their_fingerprint() -> None:
    content = identity(Config())
    assert not {"names", "ranking"} & content.keys()
    assert "initial" not in content["encoder"] and "ks" not in content["evaluation"]
    assert [*content["stages"]] == ["pretrain_encoder", "tune_lora", "tune_hybrid"]


def test_without_its_stage_nobody_knows_of_llmseqprompt() -> None:
    """What was bound before it came stays bound, whatever else of the ranking is set."""
    for change in ("evaluation.ks=[7]", "ranking.sknn.sample=5"):
        content = identity(load(None, [*TASK, change]))
        assert "tune_answers" not in content["stages"] and "llmseqprompt" not in content.get("ranking", {})
    plain = identity(load(None, ANSWERS))
    assert plain["stages"]["tune_answers"]["loss"] == "answer_words" and "ranking" not in plain
    for change in ("ranking.llmseqprompt.sessions=9", "stages.tune_answers.lr=1"):
        assert identity(load(None, [*ANSWERS, change])) != plain


def test_without_its_section_nobody_knows_of_sasrecllm() -> None:
    for change in ("evaluation.ks=[7]", "ranking.sknn.sample=5"):
        content = identity(load(None, [*TASK, change]))
        assert "sasrecllm" not in content.get("ranking", {})
        assert identity(load(None, [*TASK, change, "ranking.sasrecllm=null"])) == content
    plain, wanted = identity(load(None, TASK)), identity(load(None, RERANKS))
    assert wanted.pop("ranking")["sasrecllm"] == {"candidates": 100, "sessions": None} and wanted == plain
    for change in ("ranking.sasrecllm.sessions=9", "ranking.sasrecllm.candidates=50", "mapper.offset=encoder"):
        assert identity(load(None, [*RERANKS, change])) != identity(load(None, RERANKS))


def test_what_names_say_is_part_of_a_runs_identity() -> None:
    plain = identity(load(None, TASK))
    for change in (
        "encoder.initial={names: pca}",
        "names.pooling=last",
        "ranking.v_sknn.idf=true",
        "evaluation.ks=[7]",
    ):
        assert identity(load(None, [*TASK, change])) != plain
    assert identity(load(None, [*TASK, "evaluation.ks=[5, 10, 20]"])) == plain


def test_settings_of_hybrids_count_only_where_they_are_named() -> None:
    own = [*TASK, "ranking.llmseqsim.width=16"]
    before = identity(load(None, own))
    assert [*before["ranking"]] == ["sknn", "v_sknn", "llmseqsim"]
    after = identity(load(None, [*own, "ranking.llmseqsim_sequential.quantiles=[0.3]"]))
    assert after["ranking"] == before["ranking"] | {"llmseqsim_sequential": {"quantiles": [0.3]}}


def test_a_stage_of_the_other_task_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = load(None, [*TASK, f"storage={tmp_path}/runs"])
    for stage in (StageName.TUNE_LORA, StageName.TUNE_HYBRID):
        with pytest.raises(
            InputError, match=r"^ranking\.sasrecllm: not in this configuration; write it, at least as {}"
        ):
            train_only(config, stage)
    clicks = load(None, [f"storage={tmp_path}/runs"])
    message = "tune_answers is no stage of data.task click; run jobs/train_stage.py pretrain_encoder or tune_lora or"
    with pytest.raises(InputError, match=message):
        train_only(clicks, StageName.TUNE_ANSWERS)
    with pytest.raises(InputError, match=r"stages\.tune_answers: not in this configuration; write it, at least as {}"):
        train_only(config, StageName.TUNE_ANSWERS)
    assert not [*tmp_path.iterdir()]


def test_a_plan_asks_for_what_reads_the_names_and_for_no_backbone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetched(sources: tuple[str, ...], *, what: str = "backbone", config_only: bool) -> Path:
        asked.append(what)
        if sources != ("tiny",):
            raise InputError("names: no source delivers")
        return tmp_path

    monkeypatch.setattr(planning, "local_backbone", fetched)
    smoke = CONFIGS / "smoke_next_item.yaml"
    planning.print_plan(load(smoke, [f"storage={tmp_path}/runs"]))
    printed = capsys.readouterr().out
    assert asked == ["names"] and "no backbone" in printed and " training rows, 150 items" in printed
    assert "pretrain_encoder" in printed and "tune_" not in printed
    with pytest.raises(InputError, match="names: no source delivers"):
        planning.print_plan(load(smoke, [f"storage={tmp_path}/runs", "names.sources=elsewhere"]))
    other = "ranking.embedding_ensemble.names={sources: elsewhere}"
    with pytest.raises(InputError, match="names: no source delivers"):
        planning.print_plan(load(smoke, [f"storage={tmp_path}/runs", other]))


# Searches

NDCG = "{stage: pretrain_encoder, metric: valid_ndcg}"


def search_file(
    folder: Path, objective: str, base: str = "smoke_next_item.yaml", space: str = "encoder.width: [16]"
) -> Path:
    path = folder / "search.yaml"
    path.write_text(f"name: s\nbase: {CONFIGS / base}\nobjective: {objective}\nspace: {{{space}}}\n")
    return path


@pytest.mark.parametrize(
    ("objective", "base", "message"),
    [
        (
            "{stage: pretrain_encoder}",
            "smoke_next_item.yaml",
            "objective.metric: pretrain_encoder of data.task next_item is not judged by valid_auc; write valid_ndcg or",
        ),
        (
            "{stage: tune_lora, metric: valid_ndcg}",
            "smoke_next_item.yaml",
            "objective.stage: the base has no ranking.sasrecllm; write it there",
        ),
        (
            "{stage: tune_lora, metric: valid_hr}",
            "smoke.yaml",
            "objective.metric: tune_lora of data.task click is not judged by valid_hr; write valid_auc or",
        ),
    ],
)
def test_an_objective_must_be_of_the_task(objective: str, base: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_search(search_file(tmp_path, objective, base))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_search_for_answers_looks_for_their_probability(tmp_path: Path) -> None:
    base = load(CONFIGS / "smoke_next_item.yaml", ["stages.tune_answers={epochs: 2}"])
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base.model_dump(mode="json", exclude_defaults=True)))
    objective = "{stage: tune_answers, metric: valid_answers}"
    assert load_search(search_file(tmp_path, objective, base=str(tmp_path / "base.yaml"), space="lora.r: [4]")).trials
    for given, space, message in (
        (
            "{stage: tune_answers, metric: valid_ndcg}",
            "lora.r: [4]",
            "is not judged by valid_ndcg; write valid_answers",
        ),
        (
            objective,
            "ranking.llmseqprompt.form: [genlist]",
            "questions are written before the first trial; leave it out",
        ),
    ):
        with pytest.raises(InputError, match=message):
            load_search(search_file(tmp_path, given, base=str(tmp_path / "base.yaml"), space=space))
    with pytest.raises(InputError, match=r"objective\.stage: the base has no stages\.tune_answers; write it there"):
        load_search(search_file(tmp_path, objective))


def test_a_search_for_what_says_yes_looks_for_auc(tmp_path: Path) -> None:
    base = load(CONFIGS / "smoke_next_item.yaml", ["ranking.sasrecllm={}"])
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base.model_dump(mode="json", exclude_defaults=True)))
    objective = "{stage: tune_hybrid, metric: valid_auc}"
    search = load_search(search_file(tmp_path, objective, base=str(tmp_path / "base.yaml"), space="lora.r: [4]"))
    assert read_by_trials(search, {}) == {Beside.ASKED, Beside.PROMPTS}
    with pytest.raises(InputError, match=r"tune_hybrid of data\.task next_item is not judged by valid_ndcg; write"):
        load_search(search_file(tmp_path, objective.replace("auc", "ndcg"), base=str(tmp_path / "base.yaml")))


def test_a_search_of_next_items_looks_for_ndcg(tmp_path: Path) -> None:
    search = load_search(search_file(tmp_path, NDCG))
    assert search.config.objective.mode == "max" and search.identity["search"]["objective"]["metric"] == "valid_ndcg"
    with pytest.raises(InputError, match=r"space\.names\.pooling: changes nothing that pretrain_encoder computes"):
        load_search(search_file(tmp_path, NDCG, space="names.pooling: [mean, last]"))
    from_names = ["set.encoder.initial={names: pca}"]
    assert load_search(search_file(tmp_path, NDCG, space="names.pooling: [mean, last]"), from_names).trials
    with pytest.raises(InputError, match=r"space\.data\.task: trials of different tasks cannot be compared"):
        load_search(
            search_file(
                tmp_path, "{stage: pretrain_encoder, metric: valid_ndcg}", space="data.task: [click, next_item]"
            )
        )
