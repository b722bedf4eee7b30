"""What the benchmark measures against computes the same as what it measures."""

from pathlib import Path

import pytest
import torch
from test_split import SOFT, table

from rayrec.benchmark.references import CollmModel
from rayrec.config import Config
from rayrec.data.collate import Cut, collate
from rayrec.data.prompts import resolve_answers
from rayrec.data.tokenise import load_tokenizer
from rayrec.models.sasrecllm import ModelShape, build
from rayrec.stages import Part


@pytest.mark.parametrize("hybrid", [False, True])
def test_collms_forward_pass_has_our_logits(hybrid: bool, tiny: Path) -> None:
    answers = resolve_answers(load_tokenizer(tiny))
    settings = {"encoder": {"width": 16, "max_len": 8}, "mapper": {"tokens": SOFT}, "cluster": {"workers": 1}}
    config = Config.model_validate(settings | {"engine": {"precision": "fp32"}})
    shape = ModelShape(users=8, items=20, max_len=8, backbone=tiny, answers=(answers.yes, answers.no))
    torch.manual_seed(0)
    ours = build(config, shape, parts=frozenset(Part), with_backbone=True)
    theirs = CollmModel(config, shape, ours if hybrid else None)
    ours.set_mode(())
    theirs.llm.eval()
    batch = collate(table(hybrid=hybrid), SOFT, Cut.NOWHERE)
    with torch.no_grad():
        found = theirs.logits(batch)
        assert found == pytest.approx(ours(batch), abs=1e-4)
    assert found.std() > 1e-3
