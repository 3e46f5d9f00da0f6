"""A template is rendered once for many conversations only where nothing but its output depends on what they say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
from inlay.data.encoding.encoder import QUESTION_ANSWER, Encoder
from inlay.data.encoding.rendering import Template
from inlay.data.encoding.special_tokens import SpecialTokens
from inlay.data.encoding.template_cache import places_text_unseen
from inlay.data.types import Example, Message, Source

LOOP = "{% for message in messages %}BODY{% endfor %}"
UNSEEN = {
    "written": "{{ message.role }}: {{ message['content'] }}\n",
    "stripped": "{{ '<' + message.role + '>' + message['content'] | trim + '</>' }}",
    "stripped by a method": "{{ message.content.strip() }}{{ message.content.rstrip() }}.",
    "asked for": "{{ message.get('content') }}",
    "under a name": "{% set c = message.content %}{% if loop.first %}{% set c = 'a' + c %}{% endif %}{{ c }}.",
    "in a namespace": "{% set ns = namespace(s='') %}{% set ns.s = message.content %}{{ ns.s | trim }}.",
    "of known type": "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text | upper }}{% endfor %}{% endif %}",
    "in a macro": "{% macro body(c) %}{% if c is string %}{{ c }}{% else %}{{ c | tojson }}{% endif %}{% endmacro %}"
    "{{ body(message.content) }}.",
    "of the first turn": "{% set rest = messages[1:] %}{{ messages[0].content }}{{ rest | length }}",
    "of the turn before": "{{ loop.previtem.content if not loop.first else '' }}{{ message.content }}",
}
SEEN = {
    "compared": "{% if message.content == 'a' %}x{% endif %}",
    "searched": "{% if '</think>' in message.content %}x{% endif %}",
    "split": "{{ message.content.split('b')[0] }}",
    "measured": "{{ message.content | length }}",
    "changed": "{{ message.content | upper }}",
    "indexed": "{{ message.content[0] }}",
    "stripped with what stands around": "{{ (' ' + message.content) | trim }}",
    "compared later": "{% set c = message.content %}{% if c == 'a' %}x{% endif %}",
    "compared through a namespace": "{% set ns = namespace(s='') %}{% if ns.s == 'a' %}x{% endif %}"
    "{% set ns.s = message.content %}",
    "under another name of a namespace": "{% set ns = namespace(s='') %}{% set ns.s = message.content %}"
    "{% set other = ns %}{% if other.s == 'a' %}x{% endif %}",
    "compared in a macro": "{% macro f(c) %}{% if c == 'a' %}x{% endif %}{% endmacro %}{{ f(message.content) }}",
    "compared among further arguments": "{% macro f() %}{% if kwargs.c == 'a' %}x{% endif %}{% endmacro %}"
    "{{ f(c=message.content) }}",
    "in all of the turn": "{{ message | tojson }}",
    "among the items": "{% for key, value in message.items() %}{{ value | upper }}{% endfor %}",
    "through the loop": "{% set l = loop %}{% if l.previtem.content == 'a' %}x{% endif %}",
    "changed when told": "{% if loop.changed(message.content) %}x{% endif %}",
    "selected": "{{ messages | selectattr('content', 'eq', 'a') | list | length }}",
    "of a type that is not certain": "{% if loop.first %}{% set c = message.content %}{% endif %}"
    "{% if c is string %}{{ c }}{% else %}{{ message.content | upper }}{% endif %}",
    "in a block": "{% set c %}{{ message.content }}{% endset %}{{ c | trim }}",
}


@pytest.mark.parametrize("body", UNSEEN.values(), ids=list(UNSEEN))
def test_a_template_that_writes_what_is_said_is_known(body: str) -> None:
    assert places_text_unseen(LOOP.replace("BODY", body))
    assert places_text_unseen(QUESTION_ANSWER)


@pytest.mark.parametrize("body", SEEN.values(), ids=list(SEEN))
def test_a_template_that_may_look_at_what_is_said_is_not(body: str) -> None:
    assert not places_text_unseen(LOOP.replace("BODY", body))


def test_what_is_no_template_is_not_known() -> None:
    assert not places_text_unseen("{% for %}")


@pytest.mark.parametrize("body", UNSEEN.values(), ids=list(UNSEEN))
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_filled_skeleton_is_what_the_template_renders(body: str, data: st.DataObject) -> None:
    template = _template(LOOP.replace("BODY", body) + "{% if add_generation_prompt %}>{% endif %}")
    roles = tuple(data.draw(st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=3)))
    words = st.text(st.sampled_from(" \n\ta<{%}é\u2003"), max_size=8).filter(str.strip)
    texts = [data.draw(words) for _ in roles]
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    for opens in (True, False):
        assert template.cache.fill(roles, texts, opens) == template.render(turns, opens)


def _template(text: str) -> Template:
    tokenizer = toys.nano(text)
    return Template(tokenizer, SpecialTokens(tokenizer))


def test_ids_are_the_same_with_and_without_a_skeleton(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Example((Message("user", f" a{n}\n"), Message("assistant", f"b {n} ", 1.0)), Source("a", n)) for n in range(40)
    ]
    with_tools = Example(rows[0].messages, Source("a", 41), ({"type": "function", "function": {"name": "f"}},))
    encoder = Encoder(toys.nano())
    fast = _ids(encoder, [*rows, with_tools])
    assert encoder._template.cache.provable
    monkeypatch.setattr(encoder._template.cache, "provable", False)
    assert _ids(encoder, [*rows, with_tools]) == fast


def _ids(encoder: Encoder, rows: list[Example]) -> list[Any]:
    return [(n, t.input_ids.tolist(), t.weights.tolist(), t.source) for n, t in encoder.examples(rows)]
