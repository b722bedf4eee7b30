"""LLMSeqPrompt: a session's names -> a question for what follows, and the names that answer it. Pure.

Paper: https://arxiv.org/abs/2402.01339, section 4; what it asks is put in this project's words. Every item is a line of
its own, in questions and answers alike, and is tokenised on its own, once per catalogue. A name is cleaned so that it
is one line. So no name can merge with its surroundings, end the list it stands in or smuggle in a special token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import pyarrow as pa

from rayrec.data import columns as c
from rayrec.data.prompts import Tokenizer, cut, segment, start_tokens
from rayrec.errors import InputError
from rayrec.sessions import IntArray, Sessions
from rayrec.stages import Form

Ids = Sequence[int] | IntArray

OPENING = "#Question: A user has chosen these items, the oldest first:"
OFFER = "\nThese items are available:"
_LINE = "\n- "
_CHOOSE = "List {k} of the available items that the user may choose next, the likeliest first."
_TASKS: Mapping[Form, str] = MappingProxyType(
    {
        Form.GENITEM: "Name the item that the user chooses next.",
        Form.GENLIST: "List {k} items that the user may choose next, the likeliest first.",
        Form.CLASS: _CHOOSE,
        Form.RANK: _CHOOSE,
    }
)


def clean_name(name: str, chars: int) -> str:
    """A name on one line, at most ``chars`` characters: how questions and answers write it."""
    return cut(" ".join(name.split()), chars)


@dataclass(frozen=True)
class EncodedAnswer:
    """Token ids of a prompt and of its answer, which starts at ``answer_at`` and closes with the end mark."""

    tokens: list[int]
    answer_at: int


class NextPromptEncoder:
    """Encodes sessions of one catalogue for one form; plain data for any task once it is made."""

    def __init__(
        self, tokenizer: Tokenizer, titles: Sequence[str], form: Form, *, k: int, shown: int, chars: int
    ) -> None:
        """``titles[i]`` belongs to item id ``i + 1`` and is cut to ``chars`` characters.

        Lists of ``k`` items are asked for; of a session, the newest ``shown`` items are told.

        Raises:
            InputError: the tokenizer has no mark for the end of a text, so that no answer could end.
        """
        end = getattr(tokenizer, "eos_token_id", None)
        if end is None:
            raise InputError("backbone: its tokenizer has no end mark to close answers with; choose another backbone")
        self.form, self.k = form, k
        self.names = [clean_name(title, chars) for title in titles]
        self._shown, self._chars, self._end = shown, chars, int(end)
        self._question = f"\n{_TASKS[form].format(k=k)} #Answer:"
        self._opening = start_tokens(tokenizer) + segment(tokenizer, OPENING, after="")
        self._offer = segment(tokenizer, OFFER, after=".")
        self._closing = segment(tokenizer, self._question, after=".")
        self._lines = [segment(tokenizer, _LINE + name, after=":") for name in self.names]

    def encode(self, history: Ids, answer: Ids = (), offered: Ids = ()) -> EncodedAnswer:
        """A prompt of item ids, oldest first, and the ids that answer it; none: the prompt alone."""
        offer = self._offer + self._listed(offered) if len(offered) else []
        prompt = self._opening + self._listed(history[-self._shown :]) + offer + self._closing
        answered = [*self._listed(answer), self._end] if len(answer) else []
        return EncodedAnswer(prompt + answered, len(prompt))

    def said(self, texts: Sequence[str]) -> list[str]:
        """The names in answers to one prompt, as ``names`` writes them: all of a list's, a single item's first line."""
        most = 1 if self.form is Form.GENITEM else None
        return [name for text in texts for name in self._read(text)[:most]]

    def table(self, prompts: Sessions, answers: Sessions | None, offered: Sessions | None) -> pa.Table:
        """A row for each session (NEXT_PROMPTS_SCHEMA)."""
        none: Sequence[Ids] = [()] * len(prompts)
        parts = (prompts.each(), answers.each() if answers else none, offered.each() if offered else none)
        rows = [self.encode(*row) for row in zip(*parts, strict=True)]
        columns = {
            c.TEXT_TOKENS: [row.tokens for row in rows],
            c.ANSWER_AT: [row.answer_at for row in rows],
            c.OFFERED: [items.tolist() for items in offered.each()] if offered else [None] * len(rows),
        }
        return pa.table(columns, schema=c.NEXT_PROMPTS_SCHEMA)

    def render(self, history: Ids, answer: Ids = (), offered: Ids = ()) -> str:
        """The same as a person reads it, without the end mark."""

        def lines(items: Ids) -> str:
            return "".join(_LINE + self.names[item - 1] for item in items)

        offer = OFFER + lines(offered) if len(offered) else ""
        return f"{OPENING}{lines(history[-self._shown :])}{offer}{self._question}{lines(answer)}"

    def _listed(self, items: Ids) -> list[int]:
        return [token for item in items for token in self._lines[item - 1]]

    def _read(self, text: str) -> list[str]:
        lines = (clean_name(line.strip().removeprefix(_LINE.strip()), self._chars) for line in text.split("\n"))
        return [line for line in lines if line]
