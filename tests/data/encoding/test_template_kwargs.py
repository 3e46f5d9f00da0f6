"""Switches of chat templates: which there are, what they change, and where they are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inlay
import toys
from inlay.config.sections.data import DataConfig
from inlay.data.encoding.encoder import Encoder
from inlay.data.encoding.rendering import _head, _tail
from inlay.data.encoding.template_kwargs import switches_of, with_switches
from inlay.data.types import Example, Message, Source
from inlay.errors import ConfigError, DataError
from inlay.evaluation.score import held_out
from parts import make_base

THINKS = (
    "{% set style = style | default('plain') %}{% macro turn(role, text, mark='') %}<|im_start|>{{ role }}\n{{ text }}"
    "<|im_end|>\n{% endmacro %}{% for m in messages %}{% set text = m.content.split('</think>')[-1] if not loop.last "
    "else m.content %}{{ turn(m.role, text) }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n{% else %}<think></think>{% endif %}{% endif %}"
)
"""Reads `enable_thinking` and `style`, and has names of its own."""
ROW = (Message("user", "What is 17 + 26?"), Message("assistant", "Tens first.\n</think>\n\n43", 1.0))


def made(template: str = THINKS, **switches: Any) -> Encoder:
    return Encoder.of(toys.nano(template), DataConfig(train="-", template_kwargs=switches))


def test_the_switches_of_a_template_are_the_names_that_it_reads_and_nobody_gives_it() -> None:
    assert switches_of(THINKS) == ("enable_thinking", "style")
    assert switches_of(toys.CHATML) == ()
    assert switches_of("{% generation %}{{ x }}{% endgeneration %}") == ("x",)
    assert switches_of("{% if %}") == ()


def test_the_switches_of_a_row_are_those_of_the_settings_for_that_row_alone() -> None:
    off, on = made(), made(enable_thinking=True)
    plain = (ROW[0], Message("assistant", "43", 1.0))
    thinks = Example(ROW, Source("a", 1), switches=(("enable_thinking", True), ("python_tools", False)))
    found = [row for _, row in off.examples([Example(plain, Source("a", 2)), thinks, Example(plain, Source("a", 3))])]
    ((_, wanted),) = on.examples([Example(ROW, Source("a", 1))])
    assert np.array_equal(found[1].input_ids, wanted.input_ids)
    assert np.array_equal(found[0].input_ids, found[2].input_ids)
    assert (
        off.prompt(ROW[:1], (), thinks.switches)
        == on.prompt(ROW[:1])
        == wanted.input_ids[: len(on.prompt(ROW[:1]))].tolist()
    )
    back = Example(plain, Source("a", 4), switches=(("enable_thinking", False),))
    ((_, row),) = on.examples([back])
    assert np.array_equal(row.input_ids, found[0].input_ids)


def test_a_held_out_row_is_prompted_with_its_own_switches() -> None:
    encoder = made()
    rows = [Example(ROW, Source("a", 1), switches=(("enable_thinking", True),)),
            Example((ROW[0], Message("assistant", "43", 1.0)), Source("a", 2))]  # fmt: skip
    found = held_out(rows, encoder, 512, "drop", ())
    for n, ids in found.prompt_ids.items():
        assert found.tokens.row(n).input_ids[: len(ids)].tolist() == ids
    assert found.prompt_ids[0] == made(enable_thinking=True).prompt(ROW[:1]) != found.prompt_ids[1]


def test_a_row_with_a_switch_that_the_template_does_not_read_is_refused_unless_it_is_off() -> None:
    row = Example((ROW[0], Message("assistant", "43", 1.0)), Source("a", 1), switches=(("thinking", True),))
    with pytest.raises(DataError, match=r"a:1: the row sets the switch 'thinking'.*It reads enable_thinking, style\."):
        list(made().examples([row]))
    ((_, off),) = made(toys.CHATML).examples([replace(row, switches=(("thinking", False),))])
    ((_, none),) = made(toys.CHATML).examples([replace(row, switches=())])
    assert np.array_equal(off.input_ids, none.input_ids)


def test_a_switch_that_the_template_does_not_read_is_refused_with_those_that_it_reads() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.template_kwargs\.enable_thinkin: .*mean 'enable_thinking'.*thinking, style\."
    ):
        made(enable_thinkin=True)
    with pytest.raises(ConfigError, match=r"It reads none"):
        made(toys.CHATML, enable_thinking=True)


def test_a_switch_turns_thoughts_on_in_the_prompt_that_is_trained_and_served() -> None:
    off, on = made(), made(enable_thinking=True)
    with pytest.raises(DataError, match=r"ends the thought.*data\.template_kwargs: \{enable_thinking: true\}"):
        list(off.examples([Example(ROW, Source("a", 1))]))
    ((_, row),) = on.examples([Example(ROW, Source("a", 1))])
    prompt = on.prompt(ROW[:1])
    assert row.input_ids[: len(prompt)].tolist() == prompt
    assert str(on.tokenizer.decode(prompt)).endswith("assistant\n<think>\n")
    assert on.tokenizer.decode(row.input_ids[row.weights > 0]) == f"{ROW[1].content}<|im_end|>"
    assert on.template_hash != off.template_hash


def test_the_switch_that_turns_thoughts_on_is_named_by_what_it_does_and_the_others_beside_it() -> None:
    other = THINKS.replace("enable_thinking", "open_thinking").replace("{% for m", "{{ keep_thinking }}{% for m", 1)
    with pytest.raises(DataError, match=r"\{open_thinking: true\}\).*Its other switches: keep_thinking, style\.") as e:
        list(made(other).examples([Example(ROW, Source("a", 1))]))
    assert "('<|im_end|>\\n<|im_start|>assistant\\n<think></think>')" in str(e.value)  # from the beginning of a mark
    assert len(list(made(other, open_thinking=True).examples([Example(ROW, Source("a", 1))]))) == 1
    assert made(other).template_summary.endswith("reads keep_thinking, open_thinking, style (data.template_kwargs)")
    assert made(toys.CHATML).template_summary == "the tokenizer's own"


def test_a_long_rendering_is_quoted_from_and_to_whole_marks_and_words() -> None:
    assert _tail("a" * 70 + "<|im_end|>\n<|im_start|>assistant\n") == "…<|im_end|>\n<|im_start|>assistant\n"
    assert _tail("<|im_start|>" * 6) == "…" + "<|im_start|>" * 5
    assert _head("<|im_start|>" * 6) == "<|im_start|>" * 5 + "…"
    assert (_tail("short"), _head("short")) == ("short", "short")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return toys.nano()


@settings(max_examples=40, deadline=None)
@given(value=st.one_of(st.booleans(), st.integers(-999, 999), st.text(max_size=20), st.sampled_from([0.5, 1e-9, 3e20])))
def test_a_value_is_what_the_template_sees_and_a_caller_may_set_another(tokenizer: Any, value: Any) -> None:
    tokenizer.chat_template = with_switches("{{ messages[0].content }}{{ level | string }}", {"level": value})
    turns = [{"role": "user", "content": "a"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == f"a{value}"
    assert tokenizer.apply_chat_template(turns, tokenize=False, level="own") == "aown"
    assert with_switches(tokenizer.chat_template, {"level": value}) == tokenizer.chat_template


def test_a_run_keeps_its_switches_and_answers_with_them(tmp_path: Path, config_tree: Any) -> None:
    base = make_base(tmp_path / "base")
    (base / "chat_template.jinja").write_text(THINKS)
    tree = config_tree(data={"template_kwargs": {"enable_thinking": True}}, train={"max_steps": 1, "epochs": 1})
    run = inlay.train(tree | {"model": tree["model"] | {"base_model": str(base)}})
    assert json.loads((run.trained / "card.json").read_text())["template_kwargs"] == {"enable_thinking": True}
    loaded = inlay.load(run)
    assert str(loaded.encoder.tokenizer.decode(loaded.encoder.prompt(ROW[:1]))).endswith("<think>\n")
