"""How others train the same stages: CoLLM's loop and ``transformers.Trainer`` with peft.

CoLLM (https://github.com/zyang1580/CoLLM): autocast over fp32 weights, prompts padded on the left to the longest of a
random batch, logits of the whole vocabulary, gradients through the whole prompt. TALLRec
(https://github.com/SAI990323/TALLRec): ``Trainer``, the answer as the last token of a causal LM's loss.
"""

import logging
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from rayrec.batch import Batch, Prompt
from rayrec.benchmark.rows import Rounds
from rayrec.config import Config
from rayrec.config.model import LoraConfig
from rayrec.data import columns as c
from rayrec.data.collate import Cut, collate
from rayrec.data.prompts import PromptEncoder
from rayrec.models.lora import lora_adapter
from rayrec.models.sasrecllm import DTYPES, ModelShape, SASRecLLM
from rayrec.ranking import candidate_table
from rayrec.stages import Part
from rayrec.training.hardware import the_device

_IGNORED = -100  # of a label, for transformers
_EACH = 16  # prompts of a batch where every candidate has its own


def causal_lm(shape: ModelShape, lora: LoraConfig) -> Any:
    """The whole causal LM in fp32, with a peft LoRA, as others load it."""
    import peft  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    assert shape.backbone is not None
    model = AutoModelForCausalLM.from_pretrained(shape.backbone, dtype=torch.float32, local_files_only=True)
    return peft.get_peft_model(model, lora_adapter(lora, "CAUSAL_LM"))


class CollmModel:
    """CoLLM's forward pass; ``soft`` holds the encoder and mapper of hybrid prompts, None for text."""

    def __init__(self, config: Config, shape: ModelShape, soft: SASRecLLM | None) -> None:
        self.config, self.soft = config, soft
        self.llm = causal_lm(shape, config.lora)
        self.answers = list(shape.answers or ())
        self.device, low = the_device(), config.engine.precision
        for module in (self.llm, soft):
            if module is not None:
                module.to(self.device)
        self.autocast = torch.autocast(self.device.type, DTYPES[low], enabled=low != "fp32")

    def logits(self, batch: Batch) -> Tensor:
        """Shape (B,), of whole prompts."""
        assert isinstance(batch.prompt, Prompt)
        with self.autocast:
            embeddings = self.llm.get_input_embeddings()(batch.prompt.tokens_BT)
            if self.soft is not None:
                rows_B11 = torch.arange(batch.rows, device=self.device)[:, None, None]
                vectors = self.soft.soft_tokens(batch).to(embeddings.dtype)
                embeddings = embeddings.index_put((rows_B11, batch.prompt.soft_at_B2K), vectors)
            embeddings, mask = _left_padded(embeddings, batch.prompt.length_B)
            logits_BTV = self.llm(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).logits
        yes_B, no_B = logits_BTV[:, -1, self.answers].float().unbind(-1)
        return yes_B - no_B  # type: ignore[no-any-return]


class CollmLoop:
    """One of CoLLM's two steps; ``soft`` as for ``CollmModel``."""

    def __init__(self, rounds: Rounds, shape: ModelShape, soft: SASRecLLM | None) -> None:
        self.rounds, self.soft = rounds, soft
        self.model = CollmModel(rounds.job.config, shape, soft)
        if soft is not None:
            self.model.llm.requires_grad_(False)
            soft.freeze_all_but((Part.ENCODER, Part.MAPPER))
        self.scaler = torch.amp.GradScaler(self.model.device.type, enabled=rounds.job.precision == "fp16")
        trained = [p for m in (self.model.llm, soft) if m is not None for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=rounds.job.settings.lr)

    def __call__(self, number: int) -> int:
        tables = self.rounds.shuffled(number)
        for table in tables:
            self.step(table)
        return sum(table.num_rows for table in tables)

    def step(self, table: pa.Table) -> float:
        """One optimizer step over a batch."""
        batch = collate(table, self.rounds.job.config.mapper.tokens, Cut.NOWHERE).to(self.model.device)
        self.model.llm.train(self.soft is None)
        if self.soft is not None:
            self.soft.set_mode((Part.ENCODER, Part.MAPPER))
        loss = F.binary_cross_entropy_with_logits(self.model.logits(batch), batch.label_B)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return float(loss.detach())


class TrainerLoop:
    """``transformers.Trainer`` over the same rows, the answer appended and alone in the loss."""

    def __init__(self, rounds: Rounds, shape: ModelShape) -> None:
        self.rounds = rounds
        self.llm = causal_lm(shape, rounds.job.config.lora)
        self.answers = shape.answers or (0, 0)
        logging.getLogger("transformers").setLevel(logging.ERROR)

    def __call__(self, number: int) -> int:
        from transformers import PrinterCallback, Trainer, TrainingArguments  # noqa: PLC0415

        examples = [example for table in self.rounds.shuffled(number) for example in self._examples(table)]
        size = self.rounds.job.settings.batch
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=size,
                max_steps=len(examples) // size,
                learning_rate=self.rounds.job.settings.lr,
                bf16=self.rounds.job.precision == "bf16",
                fp16=self.rounds.job.precision == "fp16",
                use_cpu=the_device().type == "cpu",
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                dataloader_num_workers=0,
                remove_unused_columns=False,
            )
            trainer = Trainer(model=self.llm, args=arguments, train_dataset=examples, data_collator=_collated)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return len(examples)

    def _examples(self, table: pa.Table) -> list[dict[str, list[int]]]:
        yes, no = self.answers
        return [
            {"input_ids": [*tokens, yes if label else no]}
            for tokens, label in zip(table[c.TEXT_TOKENS].to_pylist(), table[c.LABEL].to_pylist(), strict=True)
        ]


class OnePromptEach:
    """A user's candidates as rows of their own, in batches of 16, by whatever scores a batch in evaluation mode."""

    def __init__(
        self,
        score: Callable[[Batch], Tensor],
        prompts: PromptEncoder,
        config: Config,
        history: Sequence[int],
        items: Sequence[int],
        *,
        read: int,
    ) -> None:
        """``read``: the longest history that the encoder reads."""
        self.score, self.prompts, self.config, self.read = score, prompts, config, read
        self.history, self.items = history, items

    @torch.no_grad()
    def __call__(self, number: int) -> int:
        for start in range(0, len(self.items), _EACH):
            some = self.items[start : start + _EACH]
            table = candidate_table(self.prompts, self.history, some, shown=self.config.data.history, read=self.read)
            self.score(collate(table, self.config.mapper.tokens, Cut.NOWHERE).to(the_device())).cpu()
        return len(self.items)


def _collated(examples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Padded on the left; every position but the answer's is ignored by the loss."""
    longest = max(len(example["input_ids"]) for example in examples)
    tokens = torch.zeros(len(examples), longest, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    labels = torch.full_like(tokens, _IGNORED)
    for row, example in enumerate(examples):
        ids = example["input_ids"]
        tokens[row, longest - len(ids) :] = torch.tensor(ids)
        mask[row, longest - len(ids) :] = 1
        labels[row, -1] = ids[-1]
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def _left_padded(embeddings: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
    """Right-padded rows moved to the right, and their mask."""
    width = embeddings.shape[1]
    column = torch.arange(width, device=embeddings.device)
    source = (column - (width - length_B[:, None])) % width
    moved = torch.gather(embeddings, 1, source[:, :, None].expand_as(embeddings))
    return moved, (column >= width - length_B[:, None]).long()
