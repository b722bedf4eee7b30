"""A slow preparation of next items, interaction by interaction, the obvious way."""

import math
from collections import Counter
from typing import Any, NamedTuple

from rayrec.config.data import DataConfig, SplitConfig

Row = dict[str, Any]


class Event(NamedTuple):
    """A row of a file, in its order."""

    user: str
    item: str
    rating: float
    time: int


def in_core(sessions: dict[str, list[Event]], least: int) -> dict[str, list[Event]]:
    """One user or one item goes at a time, until none has to."""
    left = {user: list(events) for user, events in sessions.items()}
    while True:
        counts = Counter(event.item for events in left.values() for event in events)
        if few := next((user for user, events in left.items() if len(events) < least), None):
            del left[few]
        elif rare := next((item for item, count in counts.items() if count < least), None):
            left = {user: [event for event in events if event.item != rare] for user, events in left.items()}
        else:
            return left


def merged(events: list[Event], *, least_rating: float = 0.0, distinct: bool = False) -> dict[str, list[Event]]:
    """User -> interactions, oldest first, without those that repeat another."""
    sessions: dict[str, list[Event]] = {}
    for event in sorted(events, key=lambda event: event.time):  # stable: ties keep the file's order
        known = sessions.get(event.user, [])
        same = [one for one in known if one.item == event.item and (distinct or one.time == event.time)]
        if event.rating >= least_rating and not same:
            sessions[event.user] = [*known, event]
    return sessions


def sessions_of(events: list[Event], data: DataConfig) -> dict[str, list[Event]]:
    """What there is to cut."""
    sessions = merged(events, least_rating=data.min_rating or 0.0, distinct=data.resolved_repeats == "first")
    if data.core is not None:
        sessions = in_core(sessions, data.core)
    shortest = 3 if data.split.leave_one_out else 2
    return {user: known for user, known in sessions.items() if len(known) >= shortest}


def places(sessions: int, split: SplitConfig) -> tuple[int, int, int]:
    """Where valid, test and what is left out begin in the order of time."""
    if split.folds is None or split.fold is None:
        return (
            math.floor(round(sessions * split.train, 6)),
            math.floor(round(sessions * (split.train + split.valid), 6)),
            sessions,
        )
    block, later = sessions // (split.folds + 2), split.folds - split.fold
    return sessions - (later + 2) * block, sessions - (later + 1) * block, sessions - later * block


def cut(sessions: dict[str, list[Event]], data: DataConfig) -> dict[str, dict[str, list[Event]]]:
    """Set -> user -> the prompt and the target behind it."""
    if data.split.leave_one_out:
        names = {"train": 2, "valid": 1, "test": 0}
        return {name: {user: s[: len(s) - left] for user, s in sessions.items()} for name, left in names.items()}
    lasts = sorted(known[-1].time for known in sessions.values())
    valid, test, end = ([*lasts, lasts[-1] + 1][place] for place in places(len(lasts), data.split))
    spans = {"train": (0, valid), "valid": (valid, test), "test": (test, end)}
    sets = {
        name: {user: s for user, s in sessions.items() if low <= s[-1].time < high}
        for name, (low, high) in spans.items()
    }
    trained = {event.item for s in sets["train"].values() for event in s}
    for name in ("valid", "test"):
        known = {user: [event for event in s if event.item in trained] for user, s in sets[name].items()}
        sets[name] = {user: s for user, s in known.items() if len(s) >= 2}
    return sets


def prepared(events: list[Event], titles: dict[str, str], data: DataConfig) -> dict[str, list[Row]]:
    """The content of all prepared files."""
    events = [event for event in events if event.item in titles]
    sessions = sessions_of(events, data)
    sets = cut(sessions, data)
    kept = {event.item for known in sessions.values() for event in known}
    users = [user for user in dict.fromkeys(event.user for event in events) if user in sessions]
    items = [item for item in dict.fromkeys(event.item for event in events) if item in kept]
    counts = Counter(event.item for known in sets["train"].values() for event in known)
    files: dict[str, list[Row]] = {}
    for name, cut_off in sets.items():
        rows = [
            {
                "user_id": users.index(user),
                "item_id": items.index(known[-1].item) + 1,
                "rating": known[-1].rating,
                "label": 1,
                "timestamp": known[-1].time,
                "seen": len(known) - 1,
                "is_warm": counts[known[-1].item] > data.warm_over,
                "is_strict_cold": not counts[known[-1].item],
            }
            for user, known in cut_off.items()
        ]
        files[name] = sorted(rows, key=lambda row: (row["timestamp"], row["user_id"]))
    whole = sets["test"] if data.split.leave_one_out else {u: s for name in sets for u, s in sets[name].items()}
    files["users"] = [
        {
            "user_id": i,
            "source_id": user,
            "liked": [items.index(event.item) + 1 for event in whole.get(user, [])],
        }
        for i, user in enumerate(users)
    ]
    files["items"] = [
        {"item_id": i, "source_id": item, "title": titles[item] or f"Untitled {item}"}
        for i, item in enumerate(items, 1)
    ]
    return files
