"""A tiny random LLaMA with its own tokenizer, made on the spot: for tests and demonstrations without any download."""

from pathlib import Path

import torch

SOURCE = "tiny"  # backbone.sources: [tiny]

_CORPUS = (
    '#Question: A user has given high ratings to the following items: "The Film 12 (1987)", "A Story (1994)".',
    " Additionally, user preferences are encoded in the feature . Using all available information, predict whether",
    ' the user would enjoy the item titled "Film" with the feature ? Answer with "Yes" or "No". #Answer: Yes',
    "#Answer: No",
)


def write_tiny_llama(folder: Path, *, seed: int = 0, hidden: int = 64, layers: int = 2) -> None:
    """Write model and tokenizer into ``folder`` in transformers' layout; the same seed gives the same files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415  (seconds to import)
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: PLC0415

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        min_frequency=1,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
