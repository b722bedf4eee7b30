"""LLMSeqPrompt: prompts of sessions -> what the language model says -> lists of items.

Paper: https://arxiv.org/abs/2402.01339, section 4. Shapes: I items, D width.
"""

from dataclasses import dataclass

import pyarrow as pa

from rayrec.data import columns as c
from rayrec.data.next_prompts import NextPromptEncoder
from rayrec.embeddings import NameModel, name_embeddings
from rayrec.generation import GenerationJob, generated
from rayrec.models.ranking.matching import Matched, NameMatcher
from rayrec.models.reductions import Rows
from rayrec.sessions import IntArray, Sessions
from rayrec.stages import Form


@dataclass(frozen=True)
class Catalogue:
    """Items as prompts write them, and what tells which of them a name is nearest to."""

    encoder: NextPromptEncoder
    embeddings_ID: Rows  # of the items' names, by ``names``
    names: NameModel


def recommended(
    job: GenerationJob,
    catalogue: Catalogue,
    prompts: Sessions,
    sessions: IntArray,
    store: str,
    *,
    offered: Sessions | None = None,
) -> Matched:
    """Lists of items that follow each of the prompts; Ray is connected.

    Args:
        job: who answers, and how.
        catalogue: the items.
        prompts: items of each session, of which the encoder shows the newest.
        sessions: their ids, which decide what is drawn.
        store: where answers and embeddings of names are kept.
        offered: the items that each prompt offers; None: the form offers none.

    Raises:
        InputError: one of the models cannot be had.
    """
    encoder, cluster = catalogue.encoder, job.config.cluster
    table = encoder.table(prompts, None, offered).append_column(c.USER_ID, pa.array(sessions))
    said = [encoder.said(texts) for texts in generated(job, table, store)]
    matcher = NameMatcher(encoder.names, catalogue.embeddings_ID)
    unknown = matcher.unknown(said)
    vectors = name_embeddings(unknown, catalogue.names, store, cluster) if unknown else catalogue.embeddings_ID[:0]
    return matcher.match(
        said,
        prompts,
        encoder.k,
        dict(zip(unknown, vectors, strict=True)),
        offered=offered,
        replaced_last=encoder.form is Form.GENITEM,
    )
