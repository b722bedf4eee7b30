"""The stage table says what the method says, and where a part comes from is never a guess."""

import pytest

from rayrec import stages
from rayrec.stages import (
    ENCODERS,
    JUDGED_BY,
    LOSSES,
    STAGES,
    EncoderKind,
    Loss,
    Metric,
    Part,
    StageName,
    StageSpec,
    Stream,
    Task,
    inherited,
)
from rayrec.systems import SYSTEMS, SystemName, titles

ENCODER, MAPPER, LORA = Part.ENCODER, Part.MAPPER, Part.LORA
PRETRAIN, TUNE_LORA, TUNE_HYBRID = StageName.PRETRAIN_ENCODER, StageName.TUNE_LORA, StageName.TUNE_HYBRID
TUNE_ANSWERS = StageName.TUNE_ANSWERS

# The method: what each stage trains, reads, inherits.
TABLE = {
    PRETRAIN: ({ENCODER}, Stream.INTERACTIONS, {}),
    TUNE_LORA: ({LORA}, Stream.TEXT_PROMPTS, {}),
    TUNE_HYBRID: ({ENCODER, MAPPER}, Stream.HYBRID_PROMPTS, {ENCODER: PRETRAIN, LORA: TUNE_LORA}),
    TUNE_ANSWERS: ({LORA}, Stream.ANSWER_PROMPTS, {}),
}


@pytest.mark.parametrize("stage", StageName)
def test_a_stage_is_as_the_method_says(stage: StageName) -> None:
    trains, reads, starts_from = TABLE[stage]
    assert STAGES[stage].trains == trains
    assert STAGES[stage].reads is reads
    assert inherited(stage) == starts_from


def test_only_the_encoder_has_a_choice_of_losses() -> None:
    assert {stage: spec.losses for stage, spec in STAGES.items()} == {
        PRETRAIN: tuple(loss for loss in Loss if loss is not Loss.ANSWER_WORDS),
        TUNE_LORA: (Loss.LABEL_BCE,),
        TUNE_HYBRID: (Loss.LABEL_BCE,),
        TUNE_ANSWERS: (Loss.ANSWER_WORDS,),
    }


def test_the_last_stage_that_trained_a_part_is_its_origin() -> None:
    assert inherited(PRETRAIN) == {}
    assert inherited(TUNE_LORA) == {}
    assert inherited(TUNE_HYBRID) == {ENCODER: PRETRAIN, LORA: TUNE_LORA}


def test_the_table_is_in_an_order_that_can_be_run() -> None:
    done: list[StageName] = []
    for stage in STAGES:
        assert set(STAGES[stage].starts_from) <= set(done)
        done.append(stage)
    assert set(done) == set(StageName)


@pytest.mark.parametrize("system", SystemName)
def test_every_part_of_a_system_has_an_origin(system: SystemName) -> None:
    spec = SYSTEMS[system]
    assert bool(spec.parts) == bool(spec.after)
    if spec.after:
        assert spec.parts == STAGES[spec.after].trains | inherited(spec.after).keys()
        assert spec.reads is STAGES[spec.after].reads  # it is scored on what it was trained on
        assert STAGES[spec.after].trains <= spec.parts


def test_every_system_is_there() -> None:
    assert set(SYSTEMS) == set(SystemName)
    assert SYSTEMS[SystemName.SASRECLLM].parts == set(Part)
    assert not SYSTEMS[SystemName.ICL].parts  # the untouched backbone


def test_a_system_is_named_after_its_encoder() -> None:
    clicks = {system: spec.title for system, spec in SYSTEMS.items() if Task.CLICK in spec.tasks}
    assert titles(EncoderKind.SASREC) == clicks
    found = titles(EncoderKind.MF)
    assert (found[SystemName.SASREC], found[SystemName.SASRECLLM]) == ("MF", "MFLLM")
    assert found[SystemName.TALLREC] == "TALLRec" and set(found) == set(clicks)


def test_every_encoder_learns_from_labels() -> None:
    assert set(ENCODERS) == set(EncoderKind)
    assert all(Loss.LABEL_BCE in spec.losses for spec in ENCODERS.values())


def test_who_sees_what_follows_learns_to_fill_gaps_and_nobody_else_does() -> None:
    assert set(LOSSES) == set(Loss)
    forwards = set(Loss) - {Loss.CLOZE, Loss.ANSWER_WORDS}
    for kind in EncoderKind:
        more = {EncoderKind.SASREC: forwards, EncoderKind.GRU: forwards, EncoderKind.BERT4REC: {Loss.CLOZE}}
        assert set(ENCODERS[kind].losses) == {Loss.LABEL_BCE} | more.get(kind, set())


def test_two_origins_of_one_part_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = StageSpec(trains=frozenset({ENCODER}), reads=Stream.INTERACTIONS)
    both = StageSpec(trains=frozenset({MAPPER}), reads=Stream.HYBRID_PROMPTS, starts_from=(PRETRAIN, TUNE_LORA))
    monkeypatch.setattr(stages, "STAGES", {PRETRAIN: encoder, TUNE_LORA: encoder, TUNE_HYBRID: both})
    with pytest.raises(ValueError, match="tune_hybrid inherits encoder from both pretrain_encoder and tune_lora"):
        inherited(TUNE_HYBRID)


def test_a_part_that_is_trained_again_has_the_latest_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = {
        PRETRAIN: StageSpec(trains=frozenset({ENCODER, LORA}), reads=Stream.INTERACTIONS),
        TUNE_LORA: StageSpec(trains=frozenset({LORA}), reads=Stream.TEXT_PROMPTS, starts_from=(PRETRAIN,)),
        TUNE_HYBRID: StageSpec(trains=frozenset({MAPPER}), reads=Stream.HYBRID_PROMPTS, starts_from=(TUNE_LORA,)),
    }
    monkeypatch.setattr(stages, "STAGES", chain)
    assert inherited(TUNE_HYBRID) == {ENCODER: PRETRAIN, LORA: TUNE_LORA}


def test_a_name_prints_as_itself() -> None:
    assert f"{TUNE_LORA} {ENCODER} {Stream.HYBRID_PROMPTS}" == "tune_lora encoder hybrid_prompts"
    assert Part("lora") is LORA
    assert not Stream.INTERACTIONS.uses_backbone
    assert all(stream.uses_backbone for stream in (*Stream,) if stream is not Stream.INTERACTIONS)


def test_prompts_for_yes_or_no_ask_the_same_of_either_task() -> None:
    asked = {stream: [stream.asks(task) for task in Task] for stream in Stream}
    assert asked == {
        Stream.INTERACTIONS: [*Task],
        Stream.TEXT_PROMPTS: [Task.CLICK] * 2,
        Stream.HYBRID_PROMPTS: [Task.CLICK] * 2,
        Stream.ANSWER_PROMPTS: [*Task],
    }


def test_answers_in_words_are_judged_by_their_own_probability() -> None:
    for stage, spec in STAGES.items():
        for task in spec.tasks:
            own = (Metric.ANSWERS,) if stage is TUNE_ANSWERS else JUDGED_BY[task if stage is PRETRAIN else Task.CLICK]
            assert spec.judges(task) == own and own[0].more_is_better
    assert [stream for stream in Stream if stream.answers] == [Stream.ANSWER_PROMPTS]
