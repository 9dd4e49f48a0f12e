"""Translates a parameter from the notation of other tools into ours, for a refusal that shows the line as it should be.

Understood are W&B (distribution, min, max, values), NNI (_type, _value), Katib (parameterType, feasibleSpace),
HyperMapper and ConfigSpace (parameter_type, lower, upper, sequence), hyperopt's names, and bare lists and values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hpo_service.domain.search_space import Parameter, log_grid

_TYPE_KEYS = ("type", "_type", "distribution", "parameterType", "parameter_type", "kind", "dist")
_ENDS = {
    "low": ("low", "min", "lower", "minimum", "lo", "start", "from", "minval", "a"),
    "high": ("high", "max", "upper", "maximum", "hi", "end", "stop", "to", "maxval", "b"),
}
_CHOICES = ("choices", "values", "options", "categories", "list", "sequence", "items", "grid", "choice", "elements")
_STEPS = ("step", "q", "quantization", "increment", "step_size")
_LOG = ("log", "log_scale", "logarithmic", "is_log")
_KNOWN = re.compile("uniform|log|int|real|double|number|choice|categor|ordinal|bool|discrete|range|enum|option")
_NUMERIC = ("real", "integer", "int", "float", "double")
_OUR_KEYS = {"type", "low", "high", "log", "step", "choices", "ordered", "when"}
_THEIR_KEYS = {*_TYPE_KEYS, *_ENDS["low"], *_ENDS["high"], *_CHOICES, *_STEPS, *_LOG, "_value", "value"} - _OUR_KEYS
_THEIR_KEYS |= {"bounds", "range", "feasibleSpace", "scale"}
_WORDS_FOR_LOG = ("log", "loguniform", "reverselog", "logarithmic")

_ADAPTER: TypeAdapter[Any] = TypeAdapter(Parameter)


def in_our_words(given: Any) -> dict[str, Any] | None:
    """The same parameter in our notation; None if that cannot be told, or if it is in ours already."""
    said = _said(given) if _is_foreign(given) else None
    if said is None or said == given:
        return None
    try:
        _ADAPTER.validate_python(said)
    except ValidationError:
        return None
    return said


def as_toml(name: str, parameter: Mapping[str, Any]) -> str:
    key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
    return f"{key} = {_toml(parameter)}"


def as_json(name: str, parameter: Mapping[str, Any]) -> str:
    return f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(parameter, ensure_ascii=False)}"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def is_parameter(given: Any) -> bool:
    """Whether this is a parameter, in our words or another tool's."""
    return isinstance(given, Mapping) and ("type" in given or in_our_words(given) is not None)


def _is_foreign(given: Any) -> bool:
    """Whether it is another tool's notation, and not a slip in ours, such as a type that is missing or misspelt."""
    if not isinstance(given, Mapping):
        return isinstance(given, list)
    if "type" in given and given["type"] not in ("float", "int", "categorical"):
        return _KNOWN.search(_word(given)) is not None
    return not _THEIR_KEYS.isdisjoint(given) or ("type" not in given and "choices" in given)


def _said(given: Any) -> dict[str, Any] | None:
    if isinstance(given, list):
        return _choice(given)
    if not isinstance(given, Mapping):
        return None
    if isinstance(given.get("feasibleSpace"), Mapping):
        given = {**given, **given["feasibleSpace"]}
    word = _word(given)
    if "normal" in word:  # a normal distribution has no range
        return None
    if isinstance(given.get("_value"), list):
        given = {**given, **_positional(word, given["_value"])}
    for key in ("bounds", "range", *(("values",) if word in _NUMERIC else ())):
        given = _with_ends(given, key)
    if word in ("bool", "boolean"):
        return _when(given, _choice([True, False]))
    choices = next((given[key] for key in _CHOICES if isinstance(given.get(key), list)), None)
    if choices is not None:
        numbers = [_number(choice) for choice in choices] if word == "discrete" else [None]
        ordered = given.get("ordered") is True or word == "ordinal"
        return _when(given, _choice(choices if None in numbers else list(numbers), ordered))
    if "value" in given and len(given) <= 2:
        return _choice([given["value"]])
    return _when(given, _range(word, given))


def _with_ends(given: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Read a list of two numbers as low and high: Ax' bounds, and HyperMapper's values of a number."""
    ends = given.get(key)
    if not isinstance(ends, list) or len(ends) != 2 or any(_number(end) is None for end in ends):
        return given
    return {"low": ends[0], "high": ends[1], **{name: each for name, each in given.items() if name != key}}


def _word(given: Mapping[str, Any]) -> str:
    return next(_words(given), "")


def _words(given: Mapping[str, Any]) -> Iterator[str]:
    """The words that name the type; Katib has two, parameterType and distribution."""
    for key in _TYPE_KEYS:
        if isinstance(given.get(key), str):
            yield re.sub(r"[^a-z]", "", given[key].lower())


def _positional(word: str, values: list[Any]) -> dict[str, Any]:
    """NNI writes [low, high] and [low, high, q], or the choices."""
    if word in ("choice", "categorical", "") or not 1 < len(values) < 4:
        return {"choices": values}
    named = dict(zip(("low", "high", "q"), values, strict=False))
    if word == "randint" and isinstance(named["high"], int):
        named["high"] -= 1  # NNI's randint excludes the upper end
    return named


def _choice(values: list[Any], ordered: bool = False) -> dict[str, Any]:
    said: dict[str, Any] = {"type": "categorical", "choices": values}
    return {**said, "ordered": True} if ordered else said


def _when(given: Mapping[str, Any], said: dict[str, Any] | None) -> dict[str, Any] | None:
    return {**said, "when": given["when"]} if said is not None and "when" in given else said


def _range(word: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
    ends = {
        end: next((number for key in keys if (number := _number(given.get(key))) is not None), None)
        for end, keys in _ENDS.items()
    }
    low, high = ends["low"], ends["high"]
    if low is None or high is None:
        return None
    step = next((number for key in _STEPS if (number := _number(given.get(key))) is not None), None)
    scale = re.sub(r"[^a-z]", "", str(given.get("scale", given.get("prior", ""))).lower())
    words = "".join(_words(given))
    log = "log" in words or any(given.get(key) is True for key in _LOG) or scale in _WORDS_FOR_LOG
    whole = "int" in words or _are_whole(low, high, step, word)
    if log and (low < 0 or high <= 0) and high < 100:  # hyperopt and W&B's log_uniform give exponents
        low, high = (float(f"{math.exp(end):.6g}") for end in (low, high))
        whole = False
    said: dict[str, Any] = {"type": "int" if whole else "float"}
    said |= {"low": int(low) if whole else low, "high": int(high) if whole else high}
    if log and step is not None:
        return _choice(log_grid(said["low"], said["high"], step), ordered=True)
    if log:
        said["log"] = True
    elif step is not None:
        said["step"] = int(step) if whole else step
    return said


def _are_whole(low: float, high: float, step: float | None, word: str) -> bool:
    """Whether a range without a named distribution means integers: with whole ends and step, as W&B has it."""
    return word in ("", "range") and all(isinstance(each, int) for each in (low, high, 0 if step is None else step))


def _number(value: Any) -> float | None:
    """The number, also from a text: Katib writes its numbers in quotes."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return value
    try:
        return int(value) if re.fullmatch(r"[-+]?\d+", value) else float(value)
    except (TypeError, ValueError):
        return None
