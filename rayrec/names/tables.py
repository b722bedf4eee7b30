"""Name embeddings as somebody reads them, reduced to a width: a file in the store that all workers and actors share.

``{store}/name_tables/{fingerprint}/``: the address follows from the catalogue and all settings, so that finding a table
needs no language model. Whoever learns from a table goes by the hash of its content.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

from rayrec import storage
from rayrec.config import Config, fingerprint
from rayrec.config.ranking import LLMSeqSimConfig, NamesConfig, Reduction
from rayrec.config.training import ClusterConfig
from rayrec.data.catalogue import item_names
from rayrec.data.vectors import has_vectors, save_vectors
from rayrec.models import reductions
from rayrec.models.names import Pooling
from rayrec.models.ranking import Decay, LLMSeqSim, Nearness
from rayrec.models.reductions import Rows
from rayrec.names.embeddings import NameModel, code_of, name_embeddings
from rayrec.stages import Part
from rayrec.systems import SYSTEMS, SystemName

FOLDER: Final = "name_tables"
_DIGITS: Final = 16  # of a fingerprint, in the name of a folder
_EPOCHS: Final = 30  # of the autoencoder: from there on it misses what PCA misses
_COMPARES_NAMES: Final = frozenset(
    {
        SystemName.LLMSEQSIM,
        SystemName.EMBEDDING_ENSEMBLE,
        SystemName.LLMSEQSIM_POPULARITY,
        SystemName.LLMSEQSIM_SEQUENTIAL,
    }
)


def _pca(embeddings_ID: Rows, width: int, *, seed: int) -> Rows:
    """Nothing of it is drawn."""
    return reductions.pca(embeddings_ID, width)


def _lda(embeddings_ID: Rows, width: int, *, seed: int) -> Rows:
    """A catalogue as prepared has no categories: the fewest clusters that give ``width`` stand in for them."""
    return reductions.lda(embeddings_ID, width, reductions.clusters(embeddings_ID, width + 1, seed=seed))


_REDUCE: Mapping[Reduction, Callable[..., Rows]] = MappingProxyType(
    {
        "pca": _pca,
        "random_projection": reductions.random_projection,
        "lda": _lda,
        "autoencoder": partial(reductions.autoencoder, epochs=_EPOCHS),
    }
)


@dataclass(frozen=True, kw_only=True)
class NameTable:
    """Which table; plain data."""

    names: NamesConfig
    reduction: Reduction | None
    width: int | None = None  # None: that of the embeddings, with no reduction
    permuted: bool = False
    seed: int = 0

    def folder(self, items: str, store: str) -> str:
        """Where the table of a catalogue lies; ``items`` is the hash of its file."""
        settings = asdict(self) | {"names": self.names.model_dump(mode="json")}
        content = {**settings, "items": items, "code": code_of(reductions)}
        return storage.join(store, FOLDER, fingerprint(content)[:_DIGITS])

    def rows(self, embeddings_ID: Rows) -> Rows:
        """The embeddings as this table has them; shape (I, W).

        Raises:
            InputError: the width is not to be had of them.
        """
        rows_IW = embeddings_ID
        if self.reduction is not None:
            rows_IW = _REDUCE[self.reduction](embeddings_ID, self.width, seed=self.seed)
        return reductions.permuted(rows_IW, seed=self.seed) if self.permuted else rows_IW


def initial_table(config: Config) -> NameTable | None:
    """What the encoder's items start from; None where they are drawn."""
    initial = config.encoder.initial
    if initial is None:
        return None
    return NameTable(
        names=config.names,
        reduction=initial.names,
        width=config.encoder.width,
        permuted=initial.permuted,
        seed=config.seed,
    )


def nearness_table(config: Config) -> NameTable:
    """What LLMSeqSim compares items by."""
    return _compared(config, config.ranking.llmseqsim, config.names)


def ensemble_table(config: Config) -> NameTable:
    """What the other LLMSeqSim of an EmbeddingEnsemble compares items by."""
    own = config.ranking.embedding_ensemble
    return _compared(config, own, own.names or config.names)


def _compared(config: Config, own: LLMSeqSimConfig, names: NamesConfig) -> NameTable:
    width = None if own.reduction is None else own.width
    return NameTable(names=names, reduction=own.reduction, width=width, seed=config.seed)


def tables_read(config: Config, systems: Iterable[SystemName]) -> list[NameTable]:
    """What the systems, and the encoder of one that has it, read; each table once."""
    found: list[NameTable] = []
    for system in systems:
        near = nearness_table(config) if system in _COMPARES_NAMES else None
        first = ensemble_table(config) if system is SystemName.EMBEDDING_ENSEMBLE else None
        initial = initial_table(config) if Part.ENCODER in SYSTEMS[system].parts else None
        found += [table for table in (near, first, initial) if table is not None and table not in found]
    return found


def seqsim(own: LLMSeqSimConfig, vectors_IW: Rows) -> LLMSeqSim:
    """LLMSeqSim over its table."""
    return LLMSeqSim(vectors_IW, None if own.decay == "last" else Decay(own.decay), Nearness(own.nearness))


def write_table(folder: str, table: NameTable, data: str, store: str, cluster: ClusterConfig) -> None:
    """Write the table of the prepared ``data`` where it is not there yet; ray is connected.

    Raises:
        InputError: the names' model cannot be had, or the width not with these items.
    """
    if not has_vectors(folder):
        model = NameModel(table.names.sources, Pooling(table.names.pooling))
        rows_IW = table.rows(name_embeddings(item_names(data), model, store, cluster))
        save_vectors(folder, rows_IW, {"reduction": table.reduction, "permuted": table.permuted, "seed": table.seed})
