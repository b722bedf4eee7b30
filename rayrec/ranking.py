"""Re-ranking: many candidates for one user cost one prefix, since all that stands left of a title is the same.

Shapes: B sessions, N candidates, K places of a list.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from rayrec.config import Config
from rayrec.data import columns as c
from rayrec.data.beside import Beside, read_beside
from rayrec.data.collate import Cut, collate
from rayrec.data.prompts import EncodedPrompt, PromptEncoder
from rayrec.data.rows import HISTORY
from rayrec.data.tokenise import load_tokenizer, open_encoder
from rayrec.models.checkpoints import local_backbone
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.sessions import Sessions
from rayrec.stages import History, Stream
from rayrec.training.hardware import the_device
from rayrec.training.model import ScoringJob, scoring_model

_AT_ONCE = 34  # candidates: the states of more are too large for a C library to keep their memory for the next layer


class Reranker:
    """A language model that puts candidates in order, each session's behind one prefix."""

    def __init__(self, job: ScoringJob, folder: str) -> None:
        """``folder`` holds the prepared data.

        Raises:
            InputError: a part is damaged, or the backbone cannot be had.
        """
        tokenizer = load_tokenizer(local_backbone(job.config.backbone.sources))
        prompts = open_encoder(folder, job.config.data, tokenizer)
        self._scores = partial(score_candidates, scoring_model(job).to(the_device()), prompts, job.config)

    def order(
        self, sessions: Sessions, users: NDArray[np.int32], candidates_BN: NDArray[np.int64], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best k of each session's candidates, and their probabilities of "like"; (B, K) each.

        0 is no candidate, and no item in a list's last places. Among equals the candidates' order stays.
        """
        ids_BK, scores_BK = np.zeros((len(sessions), k), np.int64), np.zeros((len(sessions), k), np.float32)
        for row, (own, user, candidates) in enumerate(zip(sessions.each(), users, candidates_BN, strict=True)):
            items = candidates[candidates > 0]
            if len(items):
                found = self._scores(own.tolist(), items.tolist(), user=int(user))
                best = np.argsort(-found, kind="stable")[:k]
                ids_BK[row, : len(best)], scores_BK[row, : len(best)] = items[best], found[best]
        return ids_BK, scores_BK


@torch.no_grad()
def score_candidates(
    model: SASRecLLM,
    prompts: PromptEncoder,
    config: Config,
    history: Sequence[int],
    candidates: Sequence[int],
    *,
    user: int = c.UNKNOWN_USER,
    rated: Sequence[tuple[int, bool]] | None = None,
    floor: Sequence[float] | None = None,
    features: NDArray[np.float32] | None = None,
) -> NDArray[np.float64]:
    """Probability of "like" for each candidate item, shape (candidates,); the prefix is read once.

    ``history`` is the user's liked items, oldest first; the prompt shows the newest ``data.history`` of them and the
    encoder reads as many as it can. ``user`` is the prepared data's id, for encoders that know users by name. ``rated``
    are all items that the user has rated, oldest first, and whether each was liked, for an encoder that reads them;
    ``floor`` is the feature floor's logit of each candidate, for a score that starts from it, and ``features`` are its
    standardised features, shape (candidates, FEATURES), for a mapper that reads them. A model without a mapper reads
    titles alone.

    Raises:
        ValueError: the configuration reads what is not given.
    """
    stream = Stream.TEXT_PROMPTS if model.mapper is None else Stream.HYBRID_PROMPTS
    if stream is Stream.HYBRID_PROMPTS and rated is None and config.encoder.history is History.RATED:
        raise ValueError("encoder.history: rated; give all rated items, too")
    if floor is None and Beside.FLOOR in read_beside(config, stream):
        raise ValueError(f"mapper.offset: {config.mapper.offset}; give the feature floor's logits, too")
    if features is None and Beside.FEATURES in read_beside(config, stream):
        raise ValueError(f"mapper.features: {config.mapper.features}; give its features, too")
    model.set_mode(())
    read = 1 if model.encoder is None else model.encoder.max_len
    table = candidate_table(
        prompts,
        history,
        candidates,
        shown=config.data.history,
        read=read,
        stream=stream,
        user=user,
        rated=rated,
        floor=floor,
        features=features,
    )
    device = next(model.parameters()).device
    likely, prefix = np.empty(len(table)), None
    prompt = c.TEXT_TOKENS if stream is Stream.TEXT_PROMPTS else c.HYBRID_TOKENS
    by_length = np.argsort(pc.list_value_length(table[prompt]), kind="stable")  # titles of like length: less padding
    for start in range(0, len(table), _AT_ONCE):
        ids = by_length[start : start + _AT_ONCE]
        batch = collate(table.take(ids), config.mapper.tokens, Cut.TITLE).to(device)
        prefix = prefix or model.read_prefixes(batch)
        likely[ids] = torch.sigmoid(model(batch, prefix).double()).cpu().numpy()
    return likely


def candidate_table(
    prompts: PromptEncoder,
    history: Sequence[int],
    items: Sequence[int],
    *,
    shown: int,
    read: int,
    stream: Stream = Stream.HYBRID_PROMPTS,
    user: int = c.UNKNOWN_USER,
    rated: Sequence[tuple[int, bool]] | None = None,
    floor: Sequence[float] | None = None,
    features: NDArray[np.float32] | None = None,
) -> pa.Table:
    """The candidates as rows of one user, with what ``collate`` reads."""
    more: dict[str, pa.Array] = {}
    if rated is not None:
        labels = [int(is_liked) for _, is_liked in rated[-read:]]
        more[c.HISTORY_LABELS] = pa.array([labels] * len(items), pa.list_(pa.int8()))
    if floor is not None:
        more[c.FLOOR] = pa.array(floor, pa.float32())
    if features is not None:
        more[c.FEATURES] = pa.array(features.tolist(), pa.list_(pa.float32()))
    seen = history if rated is None else [item for item, _ in rated]
    return pa.table(
        {
            c.USER_ID: pa.array([user] * len(items), pa.int32()),
            c.ITEM_ID: pa.array(items, pa.int32()),
            c.LABEL: pa.array(np.zeros(len(items)), pa.int8()),  # unknown, and not read
            HISTORY: pa.array([list(seen[-read:])] * len(items), pa.list_(pa.int32())),
            c.SHARED: pa.array(np.zeros(len(items)), pa.int64()),
            **_prompt_columns([prompts.encode(history[-shown:], item) for item in items], stream),
            **more,
        }
    )


def _prompt_columns(encoded: Sequence[EncodedPrompt], stream: Stream) -> dict[str, pa.Array]:
    if stream is Stream.TEXT_PROMPTS:
        return {
            c.TEXT_TOKENS: pa.array([e.text for e in encoded], pa.list_(pa.int32())),
            c.TEXT_TITLE_AT: pa.array([e.text_title_at for e in encoded], pa.int32()),
        }
    return {
        c.HYBRID_TOKENS: pa.array([e.hybrid for e in encoded], pa.list_(pa.int32())),
        c.USER_AT: pa.array([e.user_at for e in encoded], pa.int32()),
        c.TITLE_AT: pa.array([e.title_at for e in encoded], pa.int32()),
        c.ITEM_AT: pa.array([e.item_at for e in encoded], pa.int32()),
    }
