"""Every finished answer to a schema is JSON that fits it; a hostile schema is refused in time."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

import toys
from inlay.data.encoding.encoder import Encoder
from inlay.generation.choice import ChoiceRow, choose
from inlay.generation.constraint import Grammars
from inlay.generation.request import Sampling
from inlay.generation.text import Detokenizer
from inlay.serving import grammar as grammar_module
from inlay.serving.engine import Refusal
from inlay.serving.grammar import json_grammar

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "any object": None,
    "closed object": PERSON,
    "list of objects": {"type": "array", "items": PERSON, "minItems": 1, "maxItems": 2},
    "enum": {"enum": ["red", "green", 3, None, True]},
    "reference": {
        "$defs": {"node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                           "required": ["next"], "additionalProperties": False}},
        "$ref": "#/$defs/node",
    },
    "pattern": {"type": "string", "pattern": "^[a-c]{2,5}-[0-9]+$", "maxLength": 12},
    "formats": {"type": "object", "properties": {"d": {"type": "string", "format": "date"}}, "required": ["d"]},
    "numbers": {"type": "array", "items": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2}, "maxItems": 3},
    "multiples": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": "x"}], "items": False, "minItems": 2},
    "optional": {"type": "object", "properties": {c: {"type": "boolean"} for c in "abcd"}, "additionalProperties": False},
}  # fmt: skip
UNSUPPORTED = {
    "not": {"not": {"type": "string"}},
    "if": {"if": {"type": "string"}, "then": {"minLength": 2}},
    "oneOf": {"oneOf": [{"type": "string"}, {"minLength": 2}]},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "x-guidance": {"x-guidance": {"lenient": True}, "type": "string"},
}


def chain(depth: int, end: Any) -> Any:
    """A reference in `depth` definitions, each of which names the next one twice."""
    both = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(depth)}
    return {"$ref": "#/$defs/a0", "$defs": both | {f"a{depth}": end}}


def nested(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


HOSTILE = {
    "deep": nested(40),
    "very deep": nested(700),
    "huge enum": {"enum": [f"value {n}" for n in range(20_000)]},
    "patterns that meet": {"allOf": [{"type": "string", "pattern": f".*a.{{{n}}}b.*"} for n in range(12)]},
    "objects that meet": {"allOf": [{"properties": {f"p{n}": {"pattern": "a.*b"}, "q": {"pattern": f".*{n}"}}} for n in range(40)]},
    "ways that multiply": {"allOf": [{"anyOf": [{"properties": {f"a{n}{k}": {"type": "string"}}, "required": [f"a{n}{k}"]}
                                                for k in range(4)]} for n in range(8)]},
    "thousands of properties": {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(2000)}},
    "itself": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "elsewhere": {"$ref": "http://example.com/schema"},
    "nothing": {"type": "integer", "minimum": 5, "maximum": 1},
}  # fmt: skip
HARMLESS = {
    "references that double": chain(24, {"type": "object", "properties": {"x": {"type": "string"}}}),
    "repetitions in repetitions": {"type": "string", "pattern": "((a{1,100}){1,100}){1,100}"},
    "a pattern that backtracks": {"type": "string", "pattern": "^(a+)+$"},
    "a million items": {"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000},
    "a long enum": {"enum": [f"value number {n}" for n in range(2000)]},
}


@pytest.fixture(scope="module")
def grammars() -> tuple[Encoder, Grammars]:
    encoder = Encoder(toys.nano())
    return encoder, Grammars(encoder.tokenizer, encoder.stop_ids)


def answer(grammars: tuple[Encoder, Grammars], grammar: str, seed: int, most: int = 150) -> str | None:
    """The text of a random answer that the grammar allows; None for one that has not ended by then."""
    encoder, made = grammars
    constraint = made(grammar)
    row = ChoiceRow(
        [1], Sampling(temperature=1.0, seed=seed, min_new_tokens=3), encoder.stop_ids, constraint=constraint
    )
    text, said = Detokenizer(encoder.tokenizer).answer(), ""
    rng = np.random.default_rng(seed)
    closing = [id_ for token, id_ in encoder.tokenizer.get_vocab().items() if token[-1] in '"}],']
    for _ in range(most):
        logits = rng.standard_normal(4096).astype(np.float32)
        logits[closing] += 3  # random strings would not end
        (id_,) = choose(torch.from_numpy(logits)[None], [row]).ids
        assert id_ >= 0
        if id_ in encoder.stop_ids:
            return said + text.end()
        row.append(id_)
        said += text.add(id_)
        if constraint.is_complete:
            return said + text.end()
    return None


@pytest.fixture
def _without_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the process in which a schema is tried: these are known to be harmless."""
    monkeypatch.setattr(grammar_module, "_try", lambda grammar, param: None)
    grammar_module._compiled.cache_clear()


@pytest.mark.usefixtures("_without_trial")
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_finished_answer_fits_its_schema(name: str, grammars: tuple[Encoder, Grammars]) -> None:
    schema = SCHEMAS[name]
    grammar = json_grammar(schema)
    found = [text for seed in range(6) if (text := answer(grammars, grammar, seed)) is not None]
    assert found
    for text in found:
        jsonschema.validate(json.loads(text), schema or {"type": "object"}, format_checker=jsonschema.FormatChecker())


@pytest.mark.usefixtures("_without_trial")
def test_an_answer_that_may_go_on_is_not_complete(grammars: tuple[Encoder, Grammars]) -> None:
    encoder, made = grammars
    rule = made(json_grammar({"enum": [1, 12]}))
    one, two = (encoder.tokenizer.convert_tokens_to_ids(digit) for digit in "12")
    rule.advance(one)
    assert not rule.is_complete
    assert rule.allowed()[[two, *encoder.stop_ids]].all()
    rule.advance(two)
    assert rule.is_complete


def some(names: Any, *quick: str) -> list[Any]:
    """Every name as a test; those that are not quick as slow ones."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("keyword", some(UNSUPPORTED, "not", "x-guidance"))
def test_a_keyword_that_is_not_supported_is_named(keyword: str) -> None:
    with pytest.raises(Refusal, match=f"{keyword}.*not supported") as caught:
        json_grammar(UNSUPPORTED[keyword])
    assert (caught.value.status, caught.value.param) == (400, "response_format")


@pytest.mark.parametrize("name", some(HOSTILE, "very deep", "huge enum", "itself"))
def test_a_hostile_schema_is_refused_in_time(name: str) -> None:
    began = time.perf_counter()
    with pytest.raises(Refusal) as caught:
        json_grammar(HOSTILE[name])
    assert time.perf_counter() - began < 3
    assert caught.value.status == 400


@pytest.mark.usefixtures("_without_trial")
@pytest.mark.parametrize("name", HARMLESS)
def test_a_large_grammar_holds_no_step_up(name: str, grammars: tuple[Encoder, Grammars]) -> None:
    grammar = json_grammar(HARMLESS[name])
    began = time.process_time()
    answer(grammars, grammar, 0, 30)
    assert time.process_time() - began < 1.5


def generated(rng: random.Random, depth: int = 0) -> Any:
    """A schema at random, of keywords that are supported."""
    kind = rng.choice(
        ["string", "integer", "number", "enum", "boolean"] + ["object", "array", "any of"] * (2 * (depth < 3))
    )
    if kind == "object":
        names = rng.sample(["a", "b c", "ü", "d'", 'e"', "f"], rng.randrange(4))
        return {"type": "object", "properties": {n: generated(rng, depth + 1) for n in names},
                "required": [n for n in names if rng.random() < 0.6], "additionalProperties": rng.random() < 0.3}  # fmt: skip
    if kind == "array":
        least = rng.randrange(3)
        return {
            "type": "array",
            "items": generated(rng, depth + 1),
            "minItems": least,
            "maxItems": least + rng.randrange(3),
        }
    if kind == "string":
        return {"type": "string"} | rng.choice([{"minLength": 2, "maxLength": 9}, {"pattern": "^[a-d]+(x|y)?$", "maxLength": 7},
                                                {"format": "date"}, {"maxLength": 12}])  # fmt: skip
    if kind in ("integer", "number"):
        low = rng.randrange(-50, 50)
        return {"type": kind} | rng.choice(
            [{}, {"minimum": low}, {"minimum": low, "maximum": low + 30}, {"exclusiveMaximum": low}]
        )
    if kind == "any of":
        return {"anyOf": [generated(rng, depth + 1) for _ in range(rng.randrange(1, 4))]}
    return {"enum": rng.sample([1, "one", None, False, 2.5, "zwei"], 3)} if kind == "enum" else {"type": "boolean"}


@pytest.mark.slow
@pytest.mark.usefixtures("_without_trial")
def test_a_finished_answer_fits_its_schema_for_hundreds_of_schemas(grammars: tuple[Encoder, Grammars]) -> None:
    rng, finished = random.Random(0), 0
    for _ in range(500):
        schema = generated(rng)
        grammar = json_grammar(schema)
        for seed in range(3):
            if (text := answer(grammars, grammar, seed)) is not None:
                jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
                finished += 1
    assert finished > 750
