"""Every column name and Arrow schema of the prepared data, once.

Item ids are dense and start at 1, so that 0 pads a history; user ids are dense and start at 0, those of all users, in
training or not. A row's history is not stored with the row: it is the first ``seen`` entries of its user's ``liked``
sequence, for whatever length is wanted.

Of next items a user is a session, LIKED are all of its items, and a row is a target in it with label 1. A history is
then everything before the target. Warm and strict cold speak of the item alone: a session is always new.
"""

from typing import Final

import pyarrow as pa

USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
RATING: Final = "rating"
LABEL: Final = "label"
TIMESTAMP: Final = "timestamp"
ROW: Final = "row"
SEEN: Final = "seen"
HISTORY: Final = "history"
REPEATED: Final = "repeated"
CUT_SHORT: Final = "cut_short"
IS_WARM: Final = "is_warm"
IS_STRICT_COLD: Final = "is_strict_cold"
LIKED: Final = "liked"
RATED: Final = "rated"
RATED_LABELS: Final = "rated_labels"
SEEN_RATED: Final = "seen_rated"
HISTORY_LABELS: Final = "history_labels"
FLOOR: Final = "floor"
FEATURES: Final = "features"
SOURCE_ID: Final = "source_id"
TITLE: Final = "title"
SCORE: Final = "score"
HELD_OUT: Final = "held_out"
RANKED: Final = "ranked"
SCORES: Final = "scores"
TEXT_TOKENS: Final = "text_tokens"
HYBRID_TOKENS: Final = "hybrid_tokens"
USER_AT: Final = "user_at"
ITEM_AT: Final = "item_at"
TITLE_AT: Final = "title_at"
TEXT_TITLE_AT: Final = "text_title_at"
SHARED: Final = "shared"
ANSWER_AT: Final = "answer_at"
OFFERED: Final = "offered"
SAID: Final = "said"
UNKNOWN: Final = "unknown"
BARRED: Final = "barred"

UNKNOWN_USER: Final = -1  # a user id that no prepared row has

SPLITS: Final = ("train", "valid", "test")

RAW_SCHEMA: Final = pa.schema(
    [
        (USER_ID, pa.string()),
        (ITEM_ID, pa.string()),
        (RATING, pa.float32()),
        (TIMESTAMP, pa.int64()),  # seconds since 1970; where a dataset has none, the place in the user's order
        (ROW, pa.int64()),  # position in the file: breaks ties in time
    ]
)
# Of a dataset that comes split and labelled: its RATING is the label, 0 or 1.
GIVEN_SCHEMA: Final = pa.schema(
    [
        *RAW_SCHEMA,
        (HISTORY, pa.list_(pa.string())),  # liked items before the row, oldest first
        (IS_WARM, pa.bool_()),  # null where the file does not say
    ]
)
RAW_ITEM_SCHEMA: Final = pa.schema([(ITEM_ID, pa.string()), (TITLE, pa.string())])

ROWS_SCHEMA: Final = pa.schema(
    [
        (USER_ID, pa.int32()),
        (ITEM_ID, pa.int32()),
        (RATING, pa.float32()),
        (LABEL, pa.int8()),  # 1: rating >= threshold, or the label that came with the row
        (TIMESTAMP, pa.int64()),
        (SEEN, pa.int32()),  # liked items of this user strictly before this row
        (IS_WARM, pa.bool_()),  # as the file says; else: user and item both have more than `warm_over` training rows
        (IS_STRICT_COLD, pa.bool_()),  # neither user nor item occurs in training
    ]
)
USERS_SCHEMA: Final = pa.schema([(USER_ID, pa.int32()), (SOURCE_ID, pa.string()), (LIKED, pa.list_(pa.int32()))])
ITEMS_SCHEMA: Final = pa.schema([(ITEM_ID, pa.int32()), (SOURCE_ID, pa.string()), (TITLE, pa.string())])
# Of all items that each user has rated, by user id; a row's history is the first SEEN_RATED of its user's.
RATED_SCHEMA: Final = pa.schema([(RATED, pa.list_(pa.int32())), (RATED_LABELS, pa.list_(pa.int8()))])
SEEN_RATED_SCHEMA: Final = pa.schema([(SEEN_RATED, pa.int32())])
FLOOR_SCHEMA: Final = pa.schema([(FLOOR, pa.float32())])  # log-odds of "like"
FEATURES_SCHEMA: Final = pa.schema([(FEATURES, pa.list_(pa.float32()))])  # standardised, as many in every row
PROMPTS_SCHEMA: Final = pa.schema(
    [
        (TEXT_TOKENS, pa.list_(pa.int32())),
        (HYBRID_TOKENS, pa.list_(pa.int32())),
        (USER_AT, pa.int32()),  # the user's soft tokens go before this index of HYBRID_TOKENS
        (ITEM_AT, pa.int32()),
        (TITLE_AT, pa.int32()),  # the target's title starts at this index of HYBRID_TOKENS
        (TEXT_TITLE_AT, pa.int32()),  # the same of TEXT_TOKENS
    ]
)
NEXT_PROMPTS_SCHEMA: Final = pa.schema(
    [
        (TEXT_TOKENS, pa.list_(pa.int32())),  # the prompt, then its answer
        (ANSWER_AT, pa.int32()),  # where the answer starts; the length of the prompt where there is none
        (OFFERED, pa.list_(pa.int32())),  # item ids that the prompt offers; null where it offers none
    ]
)
PREDICTIONS_SCHEMA: Final = pa.schema(
    [
        (USER_ID, pa.int32()),
        (ITEM_ID, pa.int32()),
        (LABEL, pa.int8()),
        (SCORE, pa.float64()),  # probability of "like"
        (IS_WARM, pa.bool_()),
        (IS_STRICT_COLD, pa.bool_()),
    ]
)
# Of next items: a session's list.
LISTS_SCHEMA: Final = pa.schema(
    [
        (USER_ID, pa.int32()),
        (HELD_OUT, pa.list_(pa.int32())),  # what followed
        (RANKED, pa.list_(pa.int32())),  # item ids, best first; shorter where a system knows no more
        (SCORES, pa.list_(pa.float32())),  # of RANKED; null where a system has none
    ]
)
# The same of a system that answers in words.
ANSWERS_SCHEMA: Final = pa.schema(
    [
        *LISTS_SCHEMA,
        (SAID, pa.int32()),  # names that were looked at: no more than the list has places
        (UNKNOWN, pa.int32()),  # of them those that no item has
        (BARRED, pa.int32()),  # those of an item that was named before, is in the prompt or was not offered
    ]
)
