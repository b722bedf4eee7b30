"""What may lie beside the prepared rows, in their order: made once where a configuration asks for it."""

import json
from pathlib import Path
from typing import Any

from rayrec import storage
from rayrec.cache import file_sha256
from rayrec.config import Config
from rayrec.config.model import ENCODER
from rayrec.stages import History, Name, Stream


class Beside(Name):
    """The name is also the folder below the prepared rows; its mark is written last and names the files."""

    ASKED = "asked"  # of next items: rows for Yes and for No, read in the place of the rows
    PROMPTS = "prompts"  # of the rows, or of those
    RATED = "rated"  # histories of all rated items
    FLOOR = "floor"  # the feature floor's logits
    FEATURES = "features"  # what it knows of each row
    ANSWERS = "answers"  # prompts that ask for items by name, and their answers

    def mark(self, folder: str) -> str:
        """Where the mark lies; it is there once all files are."""
        return storage.join(folder, self.value, f"{self}.json")

    def publish(self, folder: str, scratch: Path, **facts: Any) -> None:
        """Put the files in ``scratch`` beside the rows in ``folder``, then the mark with their hashes and ``facts``."""
        files = {path.name: file_sha256(path) for path in sorted(scratch.iterdir())}
        for name in files:
            storage.write_file(storage.join(folder, self.value, name), scratch / name)
        storage.write_text(self.mark(folder), json.dumps({**facts, "files": files}, indent=2) + "\n")


def read_beside(config: Config, *streams: Stream) -> frozenset[Beside]:
    """What ``config`` reads besides the rows with these streams."""
    of_hybrids = config.encoder.offset if config.mapper.offset == ENCODER else config.mapper.offset
    offsets = {Stream.INTERACTIONS: config.encoder.offset, Stream.HYBRID_PROMPTS: of_hybrids}
    asked = {
        Beside.ASKED: any(stream.asks(config.data.task) is not config.data.task for stream in streams),
        Beside.PROMPTS: not {Stream.TEXT_PROMPTS, Stream.HYBRID_PROMPTS}.isdisjoint(streams),
        Beside.RATED: config.encoder.history is History.RATED and set(streams) != {Stream.TEXT_PROMPTS},
        Beside.FLOOR: any(offsets.get(stream) for stream in streams),
        Beside.FEATURES: config.mapper.features is not None and Stream.HYBRID_PROMPTS in streams,
        Beside.ANSWERS: Stream.ANSWER_PROMPTS in streams,
    }
    return frozenset(beside for beside, is_read in asked.items() if is_read)
