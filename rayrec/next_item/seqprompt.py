"""LLMSeqPrompt: prompts of sessions -> what the language model says -> lists of items.

Paper: https://arxiv.org/abs/2402.01339, section 4. Shapes: I items, D width.
"""

from dataclasses import dataclass

import pyarrow as pa

from rayrec import storage
from rayrec.config import Config
from rayrec.data import columns as c
from rayrec.data.beside import Beside
from rayrec.data.catalogue import item_names, lists_table, open_sessions
from rayrec.data.next_prompts import NextPromptEncoder
from rayrec.data.plan import Ids
from rayrec.data.store import open_table
from rayrec.data.tokenise import load_tokenizer
from rayrec.models.checkpoints import local_backbone
from rayrec.models.names import Pooling
from rayrec.models.ranking.matching import Matched, NameMatcher
from rayrec.models.reductions import Rows
from rayrec.names.embeddings import NameModel, name_embeddings
from rayrec.next_item.generation import Decoding, GenerationJob, generated
from rayrec.questions import next_prompt_encoder
from rayrec.run import Run
from rayrec.sessions import IntArray, Sessions
from rayrec.stages import Form, Part, StageName
from rayrec.store import store_folder


@dataclass(frozen=True)
class Catalogue:
    """Items as prompts write them, and what tells which of them a name is nearest to."""

    encoder: NextPromptEncoder
    embeddings_ID: Rows  # of the items' names, by ``names``
    names: NameModel


def answered_lists(run: Run, ids: Ids) -> pa.Table:
    """RANKED and SCORES, which there are none of, for the test rows ``ids``, with SAID, UNKNOWN and BARRED of each.

    Ray is connected. Blocks of answers that the store has are not generated again.

    Raises:
        InputError: one of the models cannot be had.
    """
    config, folder, store = run.config, run.data.folder, store_folder(run.config)
    names = NameModel(config.names.sources, Pooling(config.names.pooling))
    tokenizer = load_tokenizer(local_backbone(config.backbone.sources))
    catalogue = Catalogue(
        encoder=next_prompt_encoder(config, folder, tokenizer),
        embeddings_ID=name_embeddings(item_names(folder), names, store, config.cluster),
        names=names,
    )
    job = GenerationJob(
        config=config, lora=run.part_folder(StageName.TUNE_ANSWERS, Part.LORA), decoding=_decoding(config)
    )
    rows = open_sessions(folder, "test")
    asked, offered = rows.sessions(ids), _offered(folder, ids)
    found = recommended(job, catalogue, asked, rows.user_ids[ids], store, offered=offered)
    lists = lists_table(found.lists_SK)
    for name, counts_S in ((c.SAID, found.said_S), (c.UNKNOWN, found.unknown_S), (c.BARRED, found.barred_S)):
        lists = lists.append_column(name, pa.array(counts_S, pa.int32()))
    return lists


def _decoding(config: Config) -> Decoding:
    own = config.ranking.llmseqprompt
    draws = own.form is Form.GENITEM
    return Decoding(
        longest=own.name_tokens * (1 if draws else own.k),
        batch=config.evaluation.batch,
        samples=own.k if draws else None,
        temperature=own.temperature,
    )


def _offered(folder: str, ids: Ids) -> Sessions | None:
    """What the questions offer that were written beside the rows; None where they offer nothing."""
    asked = open_table(storage.join(folder, Beside.ANSWERS.value, "test.parquet"))
    offered = asked[c.OFFERED].take(pa.array(ids))
    return None if offered.null_count else Sessions.of(offered.to_pylist())


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
