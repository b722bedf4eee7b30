"""The loss of answers in words: transformers' own with labels of -100, without logits of whole sequences."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rayrec.batch import Batch, Prompt
from rayrec.config.model import LoraConfig
from rayrec.errors import InputError
from rayrec.models import catalogue_softmax
from rayrec.models.answers import answer_words
from rayrec.models.loading import load_causal_lm, speaking_backbone
from rayrec.models.lora import add_lora
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.stages import Part

LENGTHS, STARTS = (9, 23, 14, 2), (5, 9, 13, 1)  # the last two answers are one token


@pytest.fixture
def whole(tiny: Path) -> Any:
    return load_causal_lm(tiny, dtype=torch.float32)


@pytest.fixture
def model(whole: Any) -> SASRecLLM:
    """Around the weights of ``whole``, with a LoRA that shows."""
    torch.manual_seed(0)
    backbone = speaking_backbone(whole, answers=(5, 6))
    add_lora(backbone, LoraConfig())
    made = SASRecLLM(None, None, backbone)
    for parameter in made.parts()[Part.LORA].values():
        nn.init.normal_(parameter, std=0.3)
    return made.eval()


def batch() -> Batch:
    torch.manual_seed(1)
    length_B, answer_at_B = torch.tensor(LENGTHS), torch.tensor(STARTS)
    tokens_BT = torch.randint(3, 400, (len(LENGTHS), max(LENGTHS)))
    tokens_BT[torch.arange(max(LENGTHS)) >= length_B[:, None]] = 0
    nothing = torch.zeros(len(LENGTHS), dtype=torch.int64)
    return Batch(
        nothing, nothing[:, None], nothing, nothing.float(), Prompt(tokens_BT, length_B, answer_at_B=answer_at_B)
    )


def theirs(whole: Any, asked: Batch) -> Tensor:
    assert isinstance(asked.prompt, Prompt)
    place = torch.arange(max(LENGTHS))[None]
    is_token = place < torch.tensor(LENGTHS)[:, None]
    labels = asked.prompt.tokens_BT.masked_fill(~is_token | (place < torch.tensor(STARTS)[:, None]), -100)
    loss: Tensor = whole(input_ids=asked.prompt.tokens_BT, attention_mask=is_token.long(), labels=labels).loss
    return loss


@pytest.mark.parametrize("piece", [1, 3 * 400, 2**20], ids=["a token at a time", "uneven pieces", "whole"])
def test_value_and_gradients_are_those_of_transformers(
    model: SASRecLLM, whole: Any, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue_softmax, "_PIECE", piece)
    model.freeze_all_but([Part.LORA])
    lora = model.parts()[Part.LORA]
    found = []
    for loss in (answer_words(model, batch()), theirs(whole, batch())):
        loss.backward()  # type: ignore[no-untyped-call]
        found.append((loss.detach(), {name: p.grad for name, p in lora.items() if p.grad is not None}))
        model.zero_grad()
    (ours, our_grads), (their_loss, their_grads) = found
    assert float(ours) == pytest.approx(float(their_loss), abs=1e-5)
    assert max(float(grad.abs().max()) for grad in their_grads.values()) > 1e-3
    assert our_grads.keys() == their_grads.keys() == lora.keys()
    for name, grad in their_grads.items():
        torch.testing.assert_close(our_grads[name], grad, atol=1e-5, rtol=1e-5)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {f"backbone.decoder.{n}" for n in lora}


class Widest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most rows of any tensor as wide as the vocabulary; the head itself, transposed, is none."""

    def __init__(self, head_VH: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary, self.hidden = head_VH.shape
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, Tensor) and made.shape[-1:] == (self.vocabulary,) and made.shape[:-1] != (self.hidden,):
                self.rows = max(self.rows, made.numel() // self.vocabulary)
        return result


def test_logits_are_of_answers_alone(model: SASRecLLM, whole: Any) -> None:
    model.freeze_all_but([Part.LORA])
    with Widest(whole.lm_head.weight) as ours:
        answer_words(model, batch()).backward()  # type: ignore[no-untyped-call]
    assert ours.rows == sum(length - start for length, start in zip(LENGTHS, STARTS, strict=True))
    with Widest(whole.lm_head.weight) as seen:
        theirs(whole, batch()).backward()  # type: ignore[no-untyped-call]
    assert seen.rows == len(LENGTHS) * max(LENGTHS)  # where they are whole, it is seen


def test_a_tied_head_is_no_weight_more(model: SASRecLLM, whole: Any) -> None:
    assert not [name for name, _ in model.named_parameters() if "word_loss" in name]
    assert model.backbone is not None and model.backbone.word_loss is not None
    assert model.backbone.word_loss.weight_VH is whole.lm_head.weight


def test_a_head_with_a_bias_is_refused(whole: Any) -> None:
    whole.lm_head = nn.Linear(whole.config.hidden_size, whole.config.vocab_size)
    with pytest.raises(InputError, match="output head has a bias"):
        speaking_backbone(whole, answers=(5, 6))


def test_what_it_learns_it_says(whole: Any, byte_level: Any) -> None:
    """Three sessions by heart: prompts, loss and generation speak of the same places."""
    from rayrec.data.next_prompts import NextPromptEncoder  # noqa: PLC0415
    from rayrec.models.generator import Generator  # noqa: PLC0415
    from rayrec.stages import Form  # noqa: PLC0415

    names = ["The Film 12 (1987)", "A Story (1994)", "Heat", "Léon"]
    encoder = NextPromptEncoder(byte_level, names, Form.GENLIST, k=2, shown=5, chars=50)
    rows = [encoder.encode([1, 2], [3, 4]), encoder.encode([2, 4], [1, 3]), encoder.encode([4], [2, 1])]
    length_B = torch.tensor([len(row.tokens) for row in rows])
    tokens_BT = nn.utils.rnn.pad_sequence([torch.tensor(row.tokens) for row in rows], batch_first=True)
    prompt = Prompt(tokens_BT, length_B, answer_at_B=torch.tensor([row.answer_at for row in rows]))
    model = SASRecLLM(None, None, speaking_backbone(whole, answers=(5, 6)))
    whole.requires_grad_(True)  # so few random layers learn little through a LoRA
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    blank = torch.zeros(3)
    asked = Batch(blank.long(), blank.long()[:, None], blank.long(), blank, prompt)
    for _ in range(60):
        optimizer.zero_grad()
        loss = answer_words(model, asked)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(loss.detach()) < 0.1
    said = Generator(whole, byte_level).likeliest([row.tokens[: row.answer_at] for row in rows], longest=80)
    assert [encoder.said([text]) for text in said] == [["Heat", "Léon"], [names[0], "Heat"], [names[1], names[0]]]
