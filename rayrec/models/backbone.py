"""The language model: any causal LM of transformers, frozen, with LoRA from peft; read at one position only.

Shapes: B prompts, T tokens, H hidden width.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rayrec.batch import Prompt, SplitPrompt
from rayrec.models.attention import replace_attention
from rayrec.models.behind import Behind, filled, lay_out
from rayrec.models.catalogue_softmax import catalogue_cross_entropy
from rayrec.models.copies import Copies, lay_copies
from rayrec.models.last_mlp import LastMlp
from rayrec.models.packing import Packed, Pieces, joined, pack
from rayrec.models.products import short_of_pieces

# Rows of a prefix, or its tokens, up to which a copy of keys and values for each row costs less than two softmaxes to
# join: measured on a CPU in bf16.
_FEW_ROWS, _FEW_TOKENS = 4, 256


class WordLoss(nn.Module):
    """The output head of a language model, as its loss reads it.

    A module of its own: ZeRO-3 gathers a module's weights for its forward pass, and for nothing else in validation.
    """

    def __init__(self, weight_VH: nn.Parameter) -> None:
        super().__init__()
        self.weight_VH = weight_VH

    def forward(self, states_NH: Tensor, token_N: Tensor) -> Tensor:
        """Mean of -log p of each state's next token, fp32 scalar; 0 where N is 0."""
        return catalogue_cross_entropy(states_NH, self.weight_VH, token_N)


class Prefixes(NamedTuple):
    """What the decoder has read of prefixes: the keys and values of every layer, of shape (U, K heads, P, D) each."""

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def bytes(self) -> int:
        return sum(state.nbytes for state in (*self.keys, *self.values))


class Backbone(nn.Module):
    """Embeddings in, one logit a prompt out: "Yes" against "No" (or "Yes" alone); with a head, the loss of answers."""

    def __init__(self, decoder: nn.Module, answer_rows_2H: Tensor, *, yes_only: bool) -> None:
        """``answer_rows_2H`` are the output head's rows of "Yes" and "No"."""
        super().__init__()
        self.decoder = decoder
        self.last_mlp = LastMlp.of(decoder)
        self.word_loss: WordLoss | None = None  # where answers are words
        self.yes_only = yes_only
        self.recomputes = False  # gradient checkpointing: layers keep no keys and values
        self.parts_suffixes = False  # its attention knows suffixes from prefixes
        self.learns_by_products = False  # and is plain products where a CPU learns
        # A buffer, not a parameter: it stays fp32 whatever the engine does. Untuned answer scores differ by less than
        # bf16's rounding, which alone would reorder them.
        self.register_buffer("answer_rows_2H", answer_rows_2H.float().clone(), persistent=False)
        self.answer_rows_2H: Tensor

    def replace_attention(self, *, products: bool) -> None:
        """Attend by this project's own functions where the architecture allows it; see ``models/attention.py``."""
        self.parts_suffixes = replace_attention(self.decoder, products=products)
        self.learns_by_products = self.parts_suffixes and products

    @property
    def hidden(self) -> int:
        return self.answer_rows_2H.shape[1]

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Token ids (B, T) -> embeddings (B, T, H)."""
        return self.decoder.get_input_embeddings()(tokens_BT)  # type: ignore[operator,no-any-return]

    def answer(self, embeddings_BTH: Tensor, length_B: Tensor) -> Tensor:
        """Logit of "Yes" at each prompt's last token, fp32, shape (B,).

        No mask is needed: the padding is on the right, where causal attention never looks. No (B, T, vocabulary)
        tensor exists either: two rows of the output head at one position are all that is asked for.
        """
        states_BTH = self.decoder(inputs_embeds=embeddings_BTH, use_cache=False).last_hidden_state
        return self._logit(states_BTH[torch.arange(len(length_B), device=length_B.device), length_B - 1])

    def _logit(self, last_BH: Tensor) -> Tensor:
        yes, no = (last_BH.float() @ self.answer_rows_2H.T).unbind(-1)
        logit_B: Tensor = yes if self.yes_only else yes - no
        return logit_B

    def answer_loss(self, prompt: Prompt) -> Tensor:
        """Mean of -log p over the tokens of all answers, each predicted from what stands before it; fp32 scalar.

        Logits over the vocabulary are made for these tokens alone, and only some of them at a time.
        """
        assert self.word_loss is not None and prompt.answer_at_B is not None
        next_1T = torch.arange(1, prompt.tokens_BT.shape[1], device=prompt.tokens_BT.device)[None]
        is_answer_BT = (next_1T >= prompt.answer_at_B[:, None]) & (next_1T < prompt.length_B[:, None])
        embeddings_BTH = self.embed(prompt.tokens_BT)
        states_BTH = self.decoder(inputs_embeds=embeddings_BTH, use_cache=False).last_hidden_state
        loss: Tensor = self.word_loss(states_BTH[:, :-1][is_answer_BT], prompt.tokens_BT[:, 1:][is_answer_BT])
        return loss

    def answer_split(
        self,
        prefix_UPH: Tensor,
        suffix_BSH: Tensor,
        prompt: SplitPrompt,
        *,
        prefix_learns: bool,
        read: Prefixes | None = None,
    ) -> Tensor:
        """The same logits for prompts cut in two, shape (B,); every prefix is computed once.

        Where nothing left of the cut learns, the prefixes run without gradient and leave their keys and values: copied
        for each row where suffixes learn, are few or stand behind short prefixes, shared where many are only scored.
        Else, or where that saves neither gradients nor tokens, prefix and suffixes make up one sequence, in which a
        suffix sees its prefix and itself.
        ``read``: the prefixes, as ``read_prefixes`` left them.
        """
        if read is not None:
            return self._logit(self._behind(read, suffix_BSH, prompt))
        learns = torch.is_grad_enabled()
        shares_nothing = len(prefix_UPH) == len(suffix_BSH)
        if prefix_learns or (self.recomputes if learns else shares_nothing) or not self.parts_suffixes:
            last_BH = self._packed(prefix_UPH, suffix_BSH, prompt)
        else:
            last_BH = self._behind(self.read_prefixes(prefix_UPH), suffix_BSH, prompt)
        return self._logit(last_BH)

    @torch.no_grad()
    def read_prefixes(self, prefix_UPH: Tensor) -> Prefixes:
        """What stays the same for every suffix as long as no weight changes; only where suffixes can be parted."""
        with self._reading(torch.zeros(0, dtype=torch.int64, device=prefix_UPH.device)):
            layers = self.decoder(inputs_embeds=prefix_UPH, use_cache=True).past_key_values.layers
        return Prefixes([layer.keys for layer in layers], [layer.values for layer in layers])

    def _behind(self, prefixes: Prefixes, suffix_BSH: Tensor, prompt: SplitPrompt) -> Tensor:
        """All suffixes as one sequence without padding."""
        count, tokens = prompt.prefix_UP.shape
        few = tokens <= _FEW_TOKENS or len(prompt.suffix_BS) <= _FEW_ROWS * count
        lay = lay_copies if few or torch.is_grad_enabled() else lay_out
        layout = lay(prompt, prefixes.keys, prefixes.values)
        return self._unpadded(suffix_BSH[filled(prompt)], layout.own.position_N, layout, layout.own.last_B)

    def _packed(self, prefix_UPH: Tensor, suffix_BSH: Tensor, prompt: SplitPrompt) -> Tensor:
        packed = pack(prompt)
        if self.learns_by_products and prefix_UPH.device.type == "cpu" and torch.is_grad_enabled():
            return self._in_pieces(packed, joined(packed, prefix_UPH, suffix_BSH), prompt.prefix_of_B)
        mask = None if packed.is_plain else packed.mask()
        if mask is not None and not self.parts_suffixes:  # an attention of the architecture's own may add it to scores
            lowest = torch.finfo(prefix_UPH.dtype).min
            mask = torch.zeros_like(mask, dtype=prefix_UPH.dtype).masked_fill_(~mask, lowest)
        with self._reading(prompt.prefix_of_B * packed.position_UT.shape[1] + packed.last_B):
            states_UTH = self.decoder(
                inputs_embeds=joined(packed, prefix_UPH, suffix_BSH),
                attention_mask=mask,
                position_ids=packed.position_UT,
                use_cache=False,
            ).last_hidden_state
        last_BH: Tensor = states_UTH[prompt.prefix_of_B, packed.last_B]
        return last_BH

    def _in_pieces(self, packed: Packed, whole_UTH: Tensor, prefix_of_B: Tensor) -> Tensor:
        """A CPU's small products cost it little more than one large one, and padding costs what it is."""
        filled_UT = packed.filled
        length_U = filled_UT.sum(1)
        last_B = (length_U.cumsum(0) - length_U)[prefix_of_B] + packed.last_B
        return self._unpadded(whole_UTH[filled_UT], packed.position_UT[filled_UT], packed.pieces(), last_B)

    def _unpadded(
        self, embeddings_NH: Tensor, position_N: Tensor, layout: Behind | Copies | Pieces, last_B: Tensor
    ) -> Tensor:
        """States (B, H) at ``last_B`` of N tokens that attend as ``layout`` says; in bf16 padding goes behind them."""
        # A CPU takes up to a quarter longer for a product in bf16 of an odd number of rows than for one of a few more.
        none = short_of_pieces(len(position_N), embeddings_NH.dtype)
        embeddings_NH = nn.functional.pad(embeddings_NH, (0, 0, 0, none))
        position_N = nn.functional.pad(position_N, (0, none))
        unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=position_N.device)  # for no mask one of N x N is made
        with self._reading(last_B):
            states_1NH = self.decoder(
                inputs_embeds=embeddings_NH[None],
                attention_mask=unread,
                position_ids=position_N[None],
                use_cache=False,
                layout=layout,
            ).last_hidden_state
        last_BH: Tensor = states_1NH[0, last_B]
        return last_BH

    def _reading(self, token_R: Tensor) -> AbstractContextManager[None]:
        """For a pass whose states are read at these tokens alone; what is computed once more backwards asks for all."""
        if self.last_mlp is None or (self.recomputes and torch.is_grad_enabled()):
            return nullcontext()
        return self.last_mlp.reading(token_R)

    def embedding_spread(self) -> float:
        """Standard deviation of the token embeddings."""
        return float(self.decoder.get_input_embeddings().weight.float().std())  # type: ignore[operator]
