"""A prompt is exactly its text, whatever the titles say, in byte-level and sentencepiece tokenizers alike."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import hostile
import pytest

from rayrec.data.prompts import (
    CLOSING,
    ITEM_CLAUSE,
    NO_HISTORY,
    OPENING,
    TASK,
    USER_CLAUSE,
    PromptEncoder,
    resolve_answers,
)
from rayrec.errors import InputError

FILMS = ["The Film 12 (1987)", "A Story (1994)", "Heat", 'What "is" it?, (2001)', "Léon", "E.T.; or, 7½"]
ROWS = [([], 1), ([1], 2), ([1, 2, 3], 4), ([4, 4, 5, 6], 5), ([6, 3, 2, 1, 5, 4], 6), ([2], 2)]

HOSTILE = {
    **hostile.NAMES,
    "the prompt itself": OPENING + NO_HISTORY + USER_CLAUSE + " ⟨user⟩." + TASK + ' "x"' + ITEM_CLAUSE + "?" + CLOSING,
    "the mark of a soft token": "⟨user⟩ ⟨item⟩ {UserID} {TargetItemID}",
}


def plain(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


# The text


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_segments_are_the_whole_text(byte_level: Any, row: tuple[list[int], int]) -> None:
    encoder = PromptEncoder(byte_level, FILMS, 150)
    assert encoder.encode(*row).text == plain(byte_level, encoder.render(*row, hybrid=False))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_segments_are_the_whole_text_in_sentencepiece(sentencepiece: Any, row: tuple[list[int], int]) -> None:
    """Token by token: no blank slips in where a segment begins."""
    encoder = PromptEncoder(sentencepiece, FILMS, 150)
    assert decode(sentencepiece, encoder.encode(*row).text[1:]) == encoder.render(*row, hybrid=False)


def test_the_prompt_is_the_papers(byte_level: Any) -> None:
    assert PromptEncoder(byte_level, ["One", "Two", "Three"], 150).render([1, 2], 3, hybrid=True) == (
        '#Question: A user has given high ratings to the following items: "One", "Two". Additionally, user preferences'
        " are encoded in the feature ⟨user⟩. Using all available information, predict whether the user would enjoy the"
        ' item titled "Three" with the feature ⟨item⟩? Answer with "Yes" or "No". #Answer:'
    )


def test_without_its_clauses_the_hybrid_prompt_is_the_text(byte_level: Any) -> None:
    encoder = PromptEncoder(byte_level, FILMS, 150)
    for row in ROWS:
        hybrid = encoder.render(*row, hybrid=True)
        bare = hybrid.replace(f"{USER_CLAUSE} ⟨user⟩.", "").replace(f"{ITEM_CLAUSE} ⟨item⟩", "")
        assert bare == encoder.render(*row, hybrid=False) != hybrid


def test_a_user_without_history_is_said_to_have_none(tokenizer: Any) -> None:
    encoder = PromptEncoder(tokenizer, FILMS, 150)
    assert " items: none. Using all available information" in decode(tokenizer, encoder.encode([], 1).text)


# Where the soft tokens go


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_soft_tokens_go_behind_the_word_feature(tokenizer: Any, row: tuple[list[int], int]) -> None:
    found = PromptEncoder(tokenizer, FILMS, 150).encode(*row)
    user, item = found.user_at, found.item_at
    shown = ", ".join(f'"{FILMS[item - 1]}"' for item in row[0])
    listed = f" {shown}." if shown else NO_HISTORY
    assert decode(tokenizer, without_bos(tokenizer, found.hybrid[:user])) == OPENING + listed + USER_CLAUSE
    assert decode(tokenizer, found.hybrid[user:item]) == f'.{TASK} "{FILMS[row[1] - 1]}"{ITEM_CLAUSE}'
    assert decode(tokenizer, found.hybrid[item:]) == f"?{CLOSING}"
    behind = tokenizer.convert_ids_to_tokens([found.hybrid[user], found.hybrid[item]])
    assert behind == [".", "?"]  # decoding would have hidden a blank in front


def without_bos(tokenizer: Any, ids: list[int]) -> list[int]:
    return ids[1:] if ids[0] == tokenizer.bos_token_id else ids


# Titles


def segments(tokenizer: Any, texts: Sequence[str]) -> Iterator[list[int]]:
    return (plain(tokenizer, text) for text in texts)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_title_changes_nothing_but_itself(byte_level: Any, case: str) -> None:
    title = HOSTILE[case]
    shown = title if len(title) <= 150 else title[:149] + "…"
    encoder = PromptEncoder(byte_level, [FILMS[0], title, FILMS[2]], 150)
    listed = [OPENING, f' "{FILMS[0]}",', f' "{shown}",', f' "{FILMS[2]}".']
    assert encoder.encode([1, 2, 3], 1).text == [
        *chain(*segments(byte_level, [*listed, TASK, f' "{FILMS[0]}"?', CLOSING]))
    ]
    found = encoder.encode([1, 2, 3], 2)
    before, between = [*listed, USER_CLAUSE], ["." + TASK, f' "{shown}"', ITEM_CLAUSE]
    assert found.hybrid == [*chain(*segments(byte_level, [*before, *between, "?" + CLOSING]))]
    assert found.user_at == sum(map(len, segments(byte_level, before)))
    assert found.item_at == sum(map(len, segments(byte_level, before + between)))


@pytest.mark.parametrize("case", HOSTILE)
def test_no_title_smuggles_in_a_special_token(tokenizer: Any, case: str) -> None:
    encoder = PromptEncoder(tokenizer, [HOSTILE[case], FILMS[0]], 150)
    for history, target in (([1], 2), ([2, 1, 2], 1), ([], 1)):
        found = encoder.encode(history, target)
        for ids in (found.text, found.hybrid):
            assert not set(without_bos(tokenizer, ids)) & set(tokenizer.all_special_ids)


def test_special_tokens_would_be_found(byte_level: Any, sentencepiece: Any) -> None:
    """The check above can fail."""
    assert set(byte_level(HOSTILE["special token"])["input_ids"]) & set(byte_level.all_special_ids)
    assert set(sentencepiece(HOSTILE["start and end"])["input_ids"][1:]) & set(sentencepiece.all_special_ids)


def test_a_long_title_is_cut(tokenizer: Any) -> None:
    encoder = PromptEncoder(tokenizer, ["x" * 10_000, "y" * 20], 20)
    assert f' "{"x" * 19}…"' in encoder.render([1], 2, hybrid=False)
    assert f' "{"y" * 20}"?' in encoder.render([1], 2, hybrid=False)
    assert len(encoder.encode([1] * 10, 2).text) < 700


# BOS


def test_bos_is_put_once(sentencepiece: Any) -> None:
    encoder, bos = PromptEncoder(sentencepiece, FILMS, 150), sentencepiece.bos_token_id
    for row in ROWS:
        found = encoder.encode(*row)
        for ids in (found.text, found.hybrid):
            assert ids[0] == bos and ids.count(bos) == 1


def test_no_bos_where_the_tokenizer_puts_none(byte_level: Any) -> None:
    found = PromptEncoder(byte_level, FILMS, 150).encode([1], 2)
    assert found.text[: len(plain(byte_level, OPENING))] == plain(byte_level, OPENING)


def test_a_closing_end_mark_is_no_part_of_a_prompt() -> None:
    def characters(text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, list[int]]:
        ids = [ord(character) for character in text]
        return {"input_ids": [*ids, 1] if add_special_tokens else ids}

    found = PromptEncoder(characters, FILMS, 150).encode([1], 2)
    assert "".join(map(chr, found.text)).endswith("#Answer:")
    assert 1 not in found.text


# Answers


def test_answers_are_the_tokens_behind_the_prompt(tokenizer: Any) -> None:
    answers = resolve_answers(tokenizer)
    end = tokenizer(CLOSING, add_special_tokens=False)["input_ids"]
    for token, word in ((answers.yes, " Yes"), (answers.no, " No")):
        assert decode(tokenizer, [*end, token]) == CLOSING + word
    assert answers.yes != answers.no


def words(**same: str) -> Callable[..., Any]:
    """A tokenizer of one token a word, after ``same`` replaces words; a dash splits one."""

    def tokenise(text: str, **_: Any) -> dict[str, list[int]]:
        known = [same.get(word, word) for word in text.split()]
        return {"input_ids": [hash(piece) for word in known for piece in word.split("-")]}

    return tokenise


def test_answers_of_a_plain_tokenizer() -> None:
    found = resolve_answers(words())
    assert (found.yes, found.no) == (hash("Yes"), hash("No"))


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (words(Yes="Y-es"), 'backbone: "Yes" is 2 tokens'),
        (words(No="N-o-o"), 'backbone: "No" is 3 tokens'),
        (words(Yes="unknown", No="unknown"), '"Yes" and "No" are the same token'),
        (lambda text, **_: {"input_ids": [len(text)]}, '"Yes" is 0 tokens'),  # the answer melts into the prompt
    ],
    ids=["split", "split in three", "equal", "merged"],
)
def test_answers_that_are_not_single_and_distinct_are_refused(tokenizer: Any, message: str) -> None:
    with pytest.raises(InputError, match="choose a backbone") as caught:
        resolve_answers(tokenizer)
    assert message in str(caught.value)
