"""What a language model is asked for each prepared row, and the answers that it learns: written beside the rows once.

LLMSeqPrompt, https://arxiv.org/abs/2402.01339, section 4. Test rows have questions alone. What a question offers is
kept with it, so that whoever maps its answer knows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec import storage
from rayrec.config import Config
from rayrec.data import columns as c
from rayrec.data.beside import Beside
from rayrec.data.catalogue import open_sessions, training_sessions
from rayrec.data.next_prompts import NextPromptEncoder
from rayrec.data.prompts import Tokenizer
from rayrec.data.store import open_table
from rayrec.data.vectors import Vectors
from rayrec.models.ranking import Ranker
from rayrec.models.ranking.asking import Groups, ask
from rayrec.names.tables import seqsim
from rayrec.stages import Form
from rayrec.training.job import derive_seed

_BLOCK_ROWS: Final = 4096


def next_prompt_encoder(config: Config, folder: str, tokenizer: Tokenizer) -> NextPromptEncoder:
    """The encoder of a prepared catalogue.

    Raises:
        InputError: the tokenizer cannot close an answer.
    """
    own, data = config.ranking.llmseqprompt, config.data
    titles = open_table(storage.join(folder, "items.parquet"))[c.TITLE].to_pylist()
    return NextPromptEncoder(tokenizer, titles, own.form, k=own.k, shown=data.history, chars=data.title_chars)


def write_questions(config: Config, folder: str, tokenizer: Tokenizer, vectors_ID: Vectors, scratch: Path) -> None:
    """Write the prompts of each split (NEXT_PROMPTS_SCHEMA) beside the prepared rows in ``folder``.

    ``vectors_ID`` are those that LLMSeqSim compares items by: its lists are in the answers, and clusters are cut there.

    Raises:
        InputError: the tokenizer cannot close an answer, or there are fewer distinct names than clusters.
    """
    encoder, own = next_prompt_encoder(config, folder, tokenizer), config.ranking.llmseqprompt
    groups = None
    if own.form is Form.CLASS:
        groups = Groups(vectors_ID, training_sessions(folder), own.clusters, seed=config.seed)
    asker = _Asker(encoder, seqsim(config.ranking.llmseqsim, vectors_ID), groups, config.seed)
    for split in c.SPLITS:
        with pq.ParquetWriter(scratch / f"{split}.parquet", c.NEXT_PROMPTS_SCHEMA, compression="zstd") as writer:
            for block in asker.blocks(folder, split):
                writer.write_table(block)
    Beside.ANSWERS.publish(folder, scratch)


@dataclass(frozen=True)
class _Asker:
    encoder: NextPromptEncoder
    similar: Ranker
    groups: Groups | None
    seed: int

    def blocks(self, folder: str, split: str) -> Iterator[pa.Table]:
        """A split's prompts, some rows at a time."""
        rows = open_sessions(folder, split)
        for start in range(0, len(rows), _BLOCK_ROWS):
            ids = np.arange(start, min(start + _BLOCK_ROWS, len(rows)))
            prompts = rows.sessions(ids)
            targets = None if split == "test" else rows.frame(ids)[c.ITEM_ID].to_numpy().astype(np.int64)
            seed = derive_seed(self.seed, "offered", split, start)
            form, k = self.encoder.form, self.encoder.k
            asked = ask(form, prompts, targets, k, similar=self.similar, groups=self.groups, seed=seed)
            yield self.encoder.table(prompts, asked.answers, asked.offered)
