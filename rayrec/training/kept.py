"""What frozen layers have read of validation rows, kept from one evaluation of a stage to the next."""

from rayrec.batch import Batch
from rayrec.models.backbone import Prefixes
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.stages import Part, Stream
from rayrec.training.job import StageJob


class KeptPrefixes:
    """Keys and values left of the first token that learns, of as many batches as ``most`` bytes hold."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._held: dict[int, Prefixes] = {}

    def of(self, model: SASRecLLM, batch: Batch, name: int) -> Prefixes | None:
        """Of the batch that is always called ``name``; None where the model's attention cannot part prompts."""
        held = self._held.get(name)
        if held is not None:
            return held
        read = model.read_prefixes(batch)
        if read is not None and read.bytes + sum(one.bytes for one in self._held.values()) <= self._most:
            self._held[name] = read
        return read


def kept_bytes(job: StageJob) -> float:
    """How much a worker may keep; 0 where prefixes change, or where nothing is kept.

    On a GPU, memory is dear and a prefix soon read. Under ZeRO-3 every forward pass is a collective, and a worker that
    left one out would keep the others waiting.
    """
    frozen = job.spec.reads is Stream.HYBRID_PROMPTS and Part.LORA not in job.trains
    here = not job.config.cluster.gpus_per_worker and job.config.engine.zero_stage < 3
    return job.config.fast.kept_prefixes_gb * 1e9 if frozen and here and job.config.fast.split_prompts else 0.0
