"""Answers in words, by transformers' own ``generate``. Shapes: B prompts or samples, T tokens."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor


class Generator:
    """A causal LM of transformers and its tokenizer: token ids of prompts in, the text of answers out."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Both as transformers loads them; an answer goes up to the tokenizer's end mark."""
        from transformers import GenerationConfig  # noqa: PLC0415

        model.generation_config = GenerationConfig()  # a checkpoint's own penalties and cuts are for conversations
        self._model, self._tokenizer, self._end = model.eval(), tokenizer, tokenizer.eos_token_id

    @torch.no_grad()
    def likeliest(self, prompts: Sequence[Sequence[int]], longest: int) -> list[str]:
        """The likeliest token after another for each prompt, at most ``longest`` of them.

        Prompts of like length waste least: shorter ones are padded on the left.
        """
        width = max(map(len, prompts))
        tokens_BT = torch.tensor([[self._end] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        length_B1 = torch.tensor([[len(prompt)] for prompt in prompts])
        mask_BT = torch.arange(width, 0, -1) <= length_B1
        return self._generate(tokens_BT, mask_BT, longest, do_sample=False)

    @torch.no_grad()
    def samples(self, prompt: Sequence[int], *, count: int, temperature: float, longest: int, seed: int) -> list[str]:
        """``count`` answers drawn from softmax(logits / temperature); they depend on this prompt and ``seed`` alone.

        The prompt goes through the model once, whatever the count.
        """
        tokens_1T = torch.tensor([list(prompt)])
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        behind = self._model.get_decoder()(tokens_1T[:, :-1].to(self._model.device), use_cache=True).past_key_values
        behind.batch_repeat_interleave(count)
        tokens_BT = tokens_1T.repeat(count, 1)
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            settings = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            return self._generate(tokens_BT, torch.ones_like(tokens_BT), longest, past_key_values=behind, **settings)

    def _generate(self, tokens_BT: Tensor, mask_BT: Tensor, longest: int, **settings: Any) -> list[str]:
        device = self._model.device
        whole: Tensor = self._model.generate(
            input_ids=tokens_BT.to(device),
            attention_mask=mask_BT.long().to(device),
            max_new_tokens=longest,
            eos_token_id=self._end,
            pad_token_id=self._end,
            **settings,
        )
        answers = whole[:, tokens_BT.shape[1] :].tolist()
        said = [list(takewhile(lambda token: token != self._end, answer)) for answer in answers]
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return [self._tokenizer.decode(tokens, **options) for tokens in said]
