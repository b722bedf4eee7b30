"""Rankers of the next-item track: sessions in, the k best items of the catalogue out."""

from rayrec.models.ranking.decay import Decay
from rayrec.models.ranking.neighbours import SessionKNN, Similarity
from rayrec.models.ranking.popular import MostPopular
from rayrec.models.ranking.ranker import Ranker
from rayrec.models.ranking.seqsim import LLMSeqSim, Nearness
from rayrec.models.ranking.topk import Catalogue, rank, top_k

__all__ = [
    "Catalogue",
    "Decay",
    "LLMSeqSim",
    "MostPopular",
    "Nearness",
    "Ranker",
    "SessionKNN",
    "Similarity",
    "rank",
    "top_k",
]
