"""YAML and ``--set`` -> a ``Config``; every mistake in them becomes one line that names the key and the mend."""

import copy
import difflib
from collections.abc import Mapping, Sequence
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
    tree: dict[str, Any] = {}
    origin = str(path) if path else "--set"
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; give --config an existing YAML file") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path}: not readable as YAML: {error}") from None
        if loaded is not None and not isinstance(loaded, dict):
            raise InputError(f"{path}: expected `key: value` lines at the top level, found a {type(loaded).__name__}")
        tree = loaded or {}
    return validate(override(tree, overrides), origin)


def override(tree: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of ``tree`` with each ``dotted.path=value`` set; values are read as YAML (``1e-3`` as a number)."""
    result: dict[str, Any] = copy.deepcopy(dict(tree))
    for assignment in assignments:
        dotted, sign, text = assignment.partition("=")
        if not sign or not dotted:
            raise InputError(f"--set {assignment}: expected dotted.path=value, for example --set engine.zero_stage=1")
        node = result
        *parents, leaf = dotted.split(".")
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise InputError(f"--set {assignment}: {key!r} is a value, not a section")
        try:
            node[leaf] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"--set {assignment}: the value is not readable as YAML: {error}") from None
    return result


def validate(tree: Mapping[str, Any], origin: str) -> Config:
    """``tree`` as a ``Config``; every error of pydantic becomes one line that names the key and the mend."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{origin}: {'; '.join(_explain(dict(e)) for e in error.errors())}") from None


def _explain(error: Mapping[str, Any]) -> str:
    path = [str(key) for key in error["loc"] if not isinstance(key, str) or "[" not in key]
    dotted = ".".join(path) or "config"
    if error["type"] == "extra_forbidden":
        known = _keys_at(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        mend = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {dotted!r}; {mend}"
    if error["type"] == "value_error":
        return f"{dotted}: {error['ctx']['error']}"
    return f"{dotted}: {error['msg']}, got {error['input']!r}"


def _keys_at(path: Sequence[str]) -> list[str]:
    section: type[BaseModel] = Config
    for key in path:
        annotation = section.model_fields[key].annotation
        options = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not options:
            return []
        section = options[0]
    return list(section.model_fields)
