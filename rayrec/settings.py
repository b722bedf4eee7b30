"""YAML and ``--set`` -> a ``Config``; every mistake in them becomes one line that names the key and the mend."""

import copy
import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rayrec.config import Config
from rayrec.errors import InputError


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file (default: the embedded one) with ``dotted.path=value`` overrides on top.

    Raises:
        InputError: the file is missing or no YAML mapping; a key is unknown; a value has the wrong type or size.
    """
    tree = read_tree(path) if path is not None else {}
    return validate(override(tree, overrides), str(path) if path else "--set")


def read_tree(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        InputError: no such file, or something else is in it.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give --config an existing YAML file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not readable as YAML: {error}") from None
    if loaded is not None and not isinstance(loaded, dict):
        raise InputError(f"{path}: expected `key: value` lines at the top level, found a {type(loaded).__name__}")
    return loaded or {}


def override(tree: Mapping[str, Any], assignments: Sequence[str], *, by_path: Collection[str] = ()) -> dict[str, Any]:
    """A copy of ``tree`` with each ``dotted.path=value`` set; values are read as YAML (``1e-3`` as a number).

    The keys of the sections ``by_path`` are dotted paths themselves.
    """
    values: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        dotted, sign, text = assignment.partition("=")
        if not sign or not dotted:
            raise InputError(f"--set {assignment}: expected dotted.path=value, for example --set engine.zero_stage=1")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"--set {assignment}: the value is not readable as YAML: {error}") from None
        section, _, path = dotted.partition(".")
        if section in by_path and path:
            paths.setdefault(section, {})[path] = value
        else:
            values[dotted] = value
    result = with_values(tree, values, "--set ")
    for section, given in paths.items():
        held = result.get(section) or {}
        if not isinstance(held, dict):
            raise InputError(f"--set {section}.{next(iter(given))}: {section!r} is a value, not a section")
        result[section] = held | given
    return result


def with_values(tree: Mapping[str, Any], values: Mapping[str, Any], origin: str = "") -> dict[str, Any]:
    """A copy of ``tree`` with the value at each dotted path set.

    Raises:
        InputError: a path leads through something that is no section.
    """
    result: dict[str, Any] = copy.deepcopy(dict(tree))
    for dotted, value in values.items():
        node = result
        *parents, leaf = dotted.split(".")
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise InputError(f"{origin}{dotted}={value}: {key!r} is a value, not a section")
        node[leaf] = value
    return result


def validate(tree: Mapping[str, Any], origin: str) -> Config:
    """``tree`` as a ``Config``; every error of pydantic becomes one line that names the key and the mend."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{origin}: {explain(error, Config)}") from None


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """What pydantic found, in one line."""
    return "; ".join(_explain(dict(found), root) for found in error.errors())


def _explain(error: Mapping[str, Any], root: type[BaseModel]) -> str:
    path = [str(key) for key in error["loc"] if not isinstance(key, str) or "[" not in key]
    dotted = ".".join(path) or "config"
    if error["type"] == "extra_forbidden":
        known = _keys_at(path[:-1], root)
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        mend = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {dotted!r}; {mend}"
    if error["type"] == "value_error":
        return f"{dotted}: {error['ctx']['error']}"
    if error["type"] == "missing":
        return f"{dotted}: missing; it has no default"
    return f"{dotted}: {error['msg']}, got {error['input']!r}"


def _keys_at(path: Sequence[str], root: type[BaseModel]) -> list[str]:
    section = root
    for key in path:
        if key not in section.model_fields:  # the key of a mapping to sections, or the kind of one of several
            continue
        options = _sections(section.model_fields[key].annotation)
        if not options:
            return []
        section = options[0]
    return list(section.model_fields)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a type admits, however it is put together."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]
