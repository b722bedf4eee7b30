"""Row -> prompt -> token ids, with the places of the soft tokens kept as positions. Pure.

The prompt is paper section 3.1.3; its text-only form is the same without the two feature clauses. A prompt is tokenised
in segments: the fixed text, and each title on its own, once per catalogue. So a title can neither merge with its
surroundings nor smuggle in a special token, and encoding a row is a concatenation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Protocol

from rayrec.errors import InputError

OPENING = "#Question: A user has given high ratings to the following items:"
NO_HISTORY = " none."
USER_CLAUSE = " Additionally, user preferences are encoded in the feature"
TASK = " Using all available information, predict whether the user would enjoy the item titled"
ITEM_CLAUSE = " with the feature"
CLOSING = ' Answer with "Yes" or "No". #Answer:'


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    def __call__(self, text: str, **options: Any) -> Any: ...


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of both forms of a row's prompt; the soft tokens go in before ``user_at`` and ``item_at``.

    The target's title starts at ``title_at`` and ``text_title_at``: what stands left of it depends on the user and the
    history alone.
    """

    text: list[int]
    hybrid: list[int]
    user_at: int
    item_at: int
    title_at: int
    text_title_at: int


class PromptEncoder:
    """Encodes rows of one catalogue. Every title is tokenised here, once; afterwards it is plain data for any task."""

    def __init__(self, tokenizer: Tokenizer, titles: Sequence[str], title_chars: int) -> None:
        """``titles[i]`` belongs to item id ``i + 1``; longer ones are cut to ``title_chars`` characters."""
        self._quoted = [f'"{cut(title, title_chars)}"' for title in titles]
        fixed = partial(segment, tokenizer)
        self._opening = start_tokens(tokenizer) + fixed(OPENING, after="")
        self._no_history = fixed(NO_HISTORY, after=":")
        self._user_clause = fixed(USER_CLAUSE, after=".")
        self._task_after_feature = fixed("." + TASK, after=" ")
        self._task = fixed(TASK, after=".")
        self._item_clause = fixed(ITEM_CLAUSE, after='"')
        self._closing_after_feature = fixed("?" + CLOSING, after=" ")
        self._closing = fixed(CLOSING, after="?")
        self._inner = self._titles(tokenizer, ",")  # another title follows
        self._last = self._titles(tokenizer, ".")  # the end of the history
        self._target = self._titles(tokenizer, "")  # the feature clause follows
        self._asked = self._titles(tokenizer, "?")  # the question of the text-only form ends

    def encode(self, history: Sequence[int], target: int) -> EncodedPrompt:
        """The prompt of one row: liked item ids, oldest first, and the item that is asked about."""
        shown = self._no_history
        if len(history):
            shown = [*chain(*(self._inner[item - 1] for item in history[:-1])), *self._last[history[-1] - 1]]
        start = self._opening + shown
        before_text_title = start + self._task
        before_user = start + self._user_clause
        before_title = before_user + self._task_after_feature
        before_item = before_title + self._target[target - 1] + self._item_clause
        return EncodedPrompt(
            text=before_text_title + self._asked[target - 1] + self._closing,
            hybrid=before_item + self._closing_after_feature,
            user_at=len(before_user),
            item_at=len(before_item),
            title_at=len(before_title),
            text_title_at=len(before_text_title),
        )

    def render(self, history: Sequence[int], target: int, *, hybrid: bool) -> str:
        """The same prompt as a person reads it."""
        shown = ", ".join(self._quoted[item - 1] for item in history)
        user = f"{USER_CLAUSE} ⟨user⟩." if hybrid else ""
        item = f"{ITEM_CLAUSE} ⟨item⟩" if hybrid else ""
        listed = f" {shown}." if shown else NO_HISTORY
        return f"{OPENING}{listed}{user}{TASK} {self._quoted[target - 1]}{item}?{CLOSING}"

    def _titles(self, tokenizer: Tokenizer, mark: str) -> list[list[int]]:
        return [segment(tokenizer, f" {quoted}{mark}", after=",") for quoted in self._quoted]


def cut(title: str, limit: int) -> str:
    """At most ``limit`` characters."""
    return title if len(title) <= limit else title[: limit - 1] + "…"


def segment(tokenizer: Tokenizer, text: str, *, after: str) -> list[int]:
    """Token ids of ``text`` as it stands behind the character ``after``, special tokens taken as plain text.

    Tokenisers of the sentencepiece kind put a blank before a text that begins one; behind a character they do not.
    """
    before = _plain_ids(tokenizer, after) if after else []
    both = _plain_ids(tokenizer, after + text)
    return both[len(before) :] if both[: len(before)] == before else _plain_ids(tokenizer, text)


def _plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]]


def start_tokens(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before every text: a BOS token or nothing. A closing EOS is not part of a prompt."""
    bos = getattr(tokenizer, "bos_token_id", None)
    ids = list(tokenizer("")["input_ids"])
    return [int(bos)] if bos is not None and ids[:1] == [bos] else []


@dataclass(frozen=True)
class Answers:
    """The token ids of "Yes" and "No" as they follow a prompt."""

    yes: int
    no: int


def resolve_answers(tokenizer: Tokenizer) -> Answers:
    """The tokens that really follow the prompt's last character, checked to be single and distinct.

    Raises:
        InputError: this tokenizer splits an answer, or gives both the same token.
    """

    def ids(text: str) -> list[int]:
        return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]

    prompt = ids(CLOSING)
    found: list[int] = []
    for answer in (" Yes", " No"):
        both = ids(CLOSING + answer)
        if both[: len(prompt)] != prompt or len(both) != len(prompt) + 1:
            raise InputError(
                f'backbone: "{answer.strip()}" is {len(both) - len(prompt)} tokens behind the prompt in this tokenizer;'
                " choose a backbone whose answers are one token each"
            )
        found.append(both[-1])
    yes, no = found
    if yes == no:
        raise InputError(f'backbone: "Yes" and "No" are the same token {yes}; choose a backbone that tells them apart')
    return Answers(yes, no)
