"""A run of next items that a tiny language model is asked for, prepared without Ray."""

from pathlib import Path
from typing import Any

import left_out
import numpy as np
from left_out import ITEMS, prepared_run

from rayrec.data.tokenise import load_tokenizer
from rayrec.models.reductions import Rows, unit_length
from rayrec.questions import write_questions
from rayrec.run import Run
from rayrec.stages import Form

VECTORS: Rows = unit_length(np.random.default_rng(0).normal(size=(ITEMS, 4)).astype(np.float32))
VECTORS[left_out.UNNAMED - 1] = 0


def asked_run(folder: Path, tiny: Path, form: Form = Form.GENITEM, **own: Any) -> Run:
    """Its questions are written; ``own`` are settings of ``ranking.llmseqprompt``."""
    changes = {
        "stages.tune_answers": {"batch": 4, "micro_batch": 2, "epochs": 1, "steps_per_epoch": 2},
        "ranking.llmseqprompt": {"form": form.value, "k": 3, **own},
        "backbone.sources": str(tiny),
        "engine.precision": "fp32",
        "evaluation.batch": 3,
    }
    run = prepared_run(folder, changes)
    scratch = folder / "scratch"
    scratch.mkdir()
    write_questions(run.config, run.data.folder, load_tokenizer(tiny), VECTORS, scratch)
    return run
