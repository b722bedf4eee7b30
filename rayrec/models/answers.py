"""LLMSeqPrompt's training objective: https://arxiv.org/abs/2402.01339, section 4."""

from torch import Tensor

from rayrec.batch import Batch, Prompt
from rayrec.models.sasrecllm import SASRecLLM


def answer_words(model: SASRecLLM, batch: Batch) -> Tensor:
    """Mean of -log p over all tokens of the batch's answers, none of the prompts': a causal LM's loss, fp32 scalar."""
    assert model.backbone is not None and isinstance(batch.prompt, Prompt)
    return model.backbone.answer_loss(batch.prompt)
