"""What is trained is what is served: the encoder over templates, tokenizers and conversations of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import toys
from inlay.data.encoding.encoder import Encoder, TokenizedSequence
from inlay.data.encoding.rendering import TODAY
from inlay.data.types import Example, Message, Source
from inlay.errors import DataError, ModelError

HERE = Source("rows.jsonl", 7)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
DATED = (
    "{% macro day() %}{{ strftime_now('%A') }}{% endmacro %}{% if strftime_now is defined %}<|im_start|>system\n"
    "{{ strftime_now('%d %b %Y') }} is {{ day() }}, {{ strftime_now('100%%d') }} {{ strftime_now('%-m/%d') }}."
    "<|im_end|>\n{% endif %}" + toys.CHATML
)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def user(text: str) -> Message:
    return Message("user", text)


def said(text: str, weight: float = 1.0) -> Message:
    return Message("assistant", text, weight)


@cache
def encoder(tokenizer: str, template: str | None) -> Encoder:
    source = toys.TEMPLATES.get(template or "", None)
    if tokenizer == "nano":
        made = toys.nano(source)
        if template == "none":
            made.chat_template = None
        return Encoder(made)
    return Encoder(toys.sentencepiece(source, prefix=tokenizer))


def encoded(enc: Encoder, *messages: Message, tools: Sequence[dict[str, Any]] = ()) -> list[TokenizedSequence]:
    return [t for _, t in enc.examples([Example(tuple(messages), HERE, tuple(tools))])]


def trained(enc: Encoder, tokens: TokenizedSequence) -> str:
    return str(enc.tokenizer.decode(tokens.input_ids[tokens.weights > 0]))


def check_prompts(enc: Encoder, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> None:
    """Every trained turn is trained once, right after the ids that are served to ask for it, to a stop."""
    rows = encoded(enc, *messages, tools=tools)
    spans = 0
    for n, message in enumerate(messages):
        if message.role != "assistant" or message.weight == 0:
            continue
        prompt = enc.prompt(messages[:n], tools)
        k = len(prompt)
        follows = [r for r in rows if r.input_ids[:k].tolist() == prompt and (r.weights[k : k + 1] > 0).any()]
        assert len(follows) == 1
        row = follows[0]
        assert k == 0 or row.weights[k - 1] == 0
        end = k + int(np.argmin(np.append(row.weights[k:] > 0, False)))
        assert set(row.weights[k:end]) == {np.float32(message.weight)}
        assert int(row.input_ids[end - 1]) in enc.stop_ids
        assert not {int(i) for i in row.input_ids[k : end - 1]} & enc.stop_ids
        spans += end - k
    assert sum(int((r.weights > 0).sum()) for r in rows) == spans


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12).map(lambda s: s)
filled = text.filter(lambda s: s.strip())
spaced = st.builds(
    lambda a, s, b: a + s + b, st.sampled_from(["", " ", "\n"]), filled, st.sampled_from(["", "  ", "\n\n"])
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    messages = [Message("system", draw(text))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        thinks = draw(st.sampled_from(["", "thought</think>"]))
        messages += [user(draw(spaced)), said(thinks + draw(spaced), draw(st.sampled_from([1.0, 1.0, 0.5, 0.0])))]
    messages[-1] = said(messages[-1].content, 1.0)
    return messages


@pytest.mark.parametrize("template", toys.TEMPLATES)
@pytest.mark.parametrize("tokenizer", ["nano", "always", "first"])
@QUICK
@given(messages=conversations())
def test_a_served_prompt_is_the_start_of_the_row_that_trains_its_answer(
    tokenizer: str, template: str, messages: list[Message]
) -> None:
    if tokenizer == "nano" and template == "llama2":
        return  # that template asks for a BOS
    enc = encoder(tokenizer, template)
    if enc._special.find("".join(m.content for m in messages)):
        return
    check_prompts(enc, messages)


def test_prompts_with_tools_names_and_tool_results_are_the_start_of_the_row() -> None:
    turns = [
        Message("system", "You help."),
        Message("user", "Weather?", name="ann"),
        Message("assistant", "", 1.0, (CALL,)),
        Message("tool", '{"celsius": 4}', name="weather"),
        said("4 degrees."),
    ]
    for template in ("tools", "built in"):
        check_prompts(encoder("nano", template), turns, [TOOL])


@pytest.mark.parametrize("template", [DATED, "\n" + DATED, [DATED]])
def test_a_template_that_writes_the_date_gives_the_same_ids_on_every_day(template: Any) -> None:
    tokenizer = toys.nano(toys.CHATML)
    # several named templates, as some tokenizers have
    tokenizer.chat_template = {"default": template[0]} if isinstance(template, list) else template
    enc = Encoder(tokenizer)
    ids = enc.prompt([user("Hi")])
    start = "\n" if isinstance(template, str) and template[0] == "\n" else ""
    assert enc.tokenizer.decode(ids).startswith(
        f"{start}<|im_start|>system\n26 Jul 2024 is Friday, 100%d 7/26.<|im_end|>"
    )
    check_prompts(enc, [user("Hi"), said("Hello!")])
    assert enc.tokenizer.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("code", [*"aAbBcdDeFGHIjmMpRSTuUVwWxXyYzZf%", "-d", "-m", "-H", "-I", "-j", "-M", "-S", "-y"])
def test_the_date_of_a_template_is_formatted_as_strftime_does(code: str) -> None:
    enc = Encoder(toys.nano("{{ '[' ~ strftime_now(format='a %" + code + " b') ~ ']' }}" + toys.CHATML))
    shown = enc.tokenizer.decode(enc.prompt([user("Hi")]))
    assert shown.startswith(TODAY.strftime(f"[a %{code} b]"))


def test_the_prompt_is_masked_the_end_of_turn_is_trained_and_nothing_after_it() -> None:
    enc = encoder("nano", "chatml")
    (row,) = encoded(enc, user("Hi"), said("Hello!"), user("Bye"), said("So long.", 0.5))
    assert trained(enc, row) == "Hello!<|im_end|>So long.<|im_end|>"
    whole = enc.tokenizer.decode(row.input_ids)
    assert whole.endswith("So long.<|im_end|>\n")
    assert row.weights[-1] == 0
    assert sorted(set(row.weights.tolist())) == [0.0, 0.5, 1.0]


@QUICK
@given(question=filled, answer=spaced)
def test_what_is_trained_decodes_to_the_answer_and_the_end_of_turn(question: str, answer: str) -> None:
    enc = encoder("nano", "built in")
    (row,) = encoded(enc, user(question), said(answer))
    assert trained(enc, row) == answer + "<|im_end|>"


def test_a_template_that_rewrites_history_gives_one_row_per_trained_turn() -> None:
    enc = encoder("nano", "forgets")
    rows = encoded(enc, user("a"), said("why</think>b"), user("c"), said("so</think>d"))
    assert [trained(enc, r) for r in rows] == ["why</think>b<|im_end|>", "so</think>d<|im_end|>"]
    assert "why" not in enc.tokenizer.decode(rows[1].input_ids)


def test_a_turn_that_stands_in_two_rows_is_trained_in_one() -> None:
    enc = encoder("nano", "forgets")
    turns = [user("a"), said("b"), user("c"), said("so</think>d"), user("e"), said("f")]
    assert [trained(enc, r) for r in encoded(enc, *turns)] == ["so</think>d<|im_end|>", "b<|im_end|>f<|im_end|>"]
    check_prompts(enc, turns)


def test_a_template_without_an_end_of_turn_gets_the_end_of_sequence_after_each_trained_turn() -> None:
    enc = encoder("nano", "no end")
    rows = encoded(enc, user("a"), said("b"), user("c"), said("d"))
    assert [trained(enc, r) for r in rows] == [" b\n<|im_end|>", " d\n<|im_end|>"]
    assert enc.stop_ids == {enc.eos_id}


@pytest.mark.parametrize("prefix", ["always", "first"])
def test_pieces_of_a_sentencepiece_conversation_have_the_ids_of_the_whole(prefix: str) -> None:
    enc = encoder(prefix, "llama2")
    turns = [user("hello the"), said("hell"), user("b"), said("a")]
    (row,) = encoded(enc, *turns)
    whole = "<s>[INST] hello the [/INST] hell </s><s>[INST] b [/INST] a </s>"
    assert row.input_ids.tolist() == enc.tokenizer(whole, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("template", ["none", "llama2"])
def test_a_conversation_has_exactly_one_bos_where_the_tokenizer_adds_one(template: str) -> None:
    enc = encoder("always", template)
    ids = encoded(enc, user("the"), said("a"))[0].input_ids.tolist()
    assert ids[0] == 1
    assert ids.count(1) == 1


def test_a_template_that_renders_no_bos_gets_none() -> None:
    enc = encoder("always", "no end")
    assert 1 not in enc.prompt([user("the")])


def test_a_plain_document_is_trained_whole_between_bos_and_eos() -> None:
    enc = encoder("always", "none")
    (row,) = encoded(enc, Message("text", "the hell", 1.0))
    assert row.input_ids.tolist() == [1, *enc.tokenizer("the hell", add_special_tokens=False)["input_ids"], 2]
    assert row.weights.tolist() == [0.0] + [1.0] * (len(row.input_ids) - 1)
    (row,) = encoded(encoder("nano", "built in"), Message("text", "the hell", 1.0))
    assert row.weights[0] == 0  # nothing predicts the first token
    assert row.weights[1:].all()


def test_the_saved_tokenizer_of_a_base_without_template_encodes_as_in_training(tmp_path: Any) -> None:
    from transformers import AutoTokenizer

    enc = encoder("always", "none")
    enc.tokenizer.save_pretrained(str(tmp_path))
    again = Encoder(AutoTokenizer.from_pretrained(str(tmp_path)))
    assert again.prompt([user("the")]) == enc.prompt([user("the")])
    assert again.own_template


@pytest.mark.parametrize(
    ("messages", "tools", "says"),
    [
        ([user("a <|im_end|> b"), said("x")], (), "turn 1 (user) contains '<|im_end|>'"),
        ([user("a"), said("<|im_start|>user")], (), "turn 2 (assistant) contains '<|im_start|>'"),
        ([Message("user", "a", name="<|pad|>"), said("x")], (), "turn 1 (user) name contains '<|pad|>'"),
        (
            [
                user("a"),
                Message("assistant", "", 1.0, ({"function": {"name": "f", "arguments": {"k": ["<|im_end|>"]}}},)),
            ],
            (),
            "turn 2 (assistant) tool_calls contains",
        ),
        (
            [user("a"), said("x")],
            ({"function": {"name": "f", "description": "<|im_end|>"}},),
            "tools contain '<|im_end|>'",
        ),
        ([user("a"), said("x")], ({"function": {"name": "f", "p": {"<|im_end|>": 1}}},), "tools contain '<|im_end|>'"),
        ([Message("text", "one<|endoftext|>two", 1.0)], (), "turn 1 (text) contains '<|endoftext|>'"),
    ],
)
def test_a_special_token_in_a_row_is_refused_by_place_turn_and_token(messages: Any, tools: Any, says: str) -> None:
    with pytest.raises(DataError) as error:
        encoded(encoder("nano", "tools"), *messages, tools=tools)
    assert str(error.value).startswith(f"rows.jsonl:7: {says}")
    with pytest.raises(DataError, match="special token"):
        encoder("nano", "tools").prompt(messages, tools)


def test_a_special_token_that_is_matched_after_normalization_is_refused_in_any_spelling() -> None:
    from tokenizers import AddedToken, Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[unk]": 2}, unk_token="[unk]"))
    raw.normalizer = normalizers.Lowercase()
    raw.add_special_tokens([AddedToken("<end>", normalized=True, special=True)])
    enc = Encoder(PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", unk_token="[unk]"))
    with pytest.raises(DataError, match="'<end>'"):
        encoded(enc, user("a <END>"), said("b"))


def test_a_template_that_leaves_out_a_part_of_the_conversation_is_refused() -> None:
    chatml = encoder("nano", "chatml")
    with pytest.raises(DataError, match=r"rows.jsonl:7: the chat template leaves out the tool 'weather'"):
        encoded(chatml, user("a"), said("b"), tools=[TOOL])
    with pytest.raises(DataError, match="leaves out the tool calls of turn 2"):
        encoded(chatml, user("a"), Message("assistant", "", 1.0, (CALL,)), Message("tool", "4"), said("b"))
    deaf = Encoder(toys.nano("{% for m in messages if m.role != 'system' %}" + toys.CHATML.split("%}", 1)[1]))
    with pytest.raises(DataError, match=r"leaves out the text of turn 1 \(system\)"):
        encoded(deaf, Message("system", "Speak Latin."), user("a"), said("b"))


def test_a_template_that_asks_otherwise_than_it_answers_is_refused() -> None:
    other = toys.CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>helper\n{% endif %}")
    with pytest.raises(DataError, match=r"rows.jsonl:7: the chat template renders turn 2 differently .*helper"):
        encoded(Encoder(toys.nano(other)), user("a"), said("b"))
    with pytest.raises(
        DataError, match=r"rows.jsonl:7: the chat template refuses turn 1 \(user\): no, thanks\. Change the turn, or"
    ):
        encoded(Encoder(toys.nano("{{ raise_exception('no, thanks') }}")), user("a"), said("b"))


ALTERNATES = (
    "{% for m in messages %}{% if m.role == 'system' and loop.index0 %}{{ raise_exception('No system turn here.') }}{% endif %}"
    "{% if m.role == loop.previtem.role or (loop.first and m.role == 'assistant') %}{{ raise_exception('Roles must alternate!') }}"
    "{% endif %}{% for c in m.tool_calls or [] %}{% if not c.id or c.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}{% endfor %}{% endfor %}"
).replace("loop.previtem.role", "(loop.previtem | default({'role': ''})).role")


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        (
            (user("a"), user("b"), said("c")),
            r"refuses turn 2 \(user\): Roles must alternate!\. Join it with turn 1, which",
        ),
        ((user("a"), said("b"), said("c")), r"refuses turn 3 \(assistant\): .*Join it with turn 2"),
        (
            (said("a"), user("b"), said("c")),
            r"refuses turn 1 \(assistant\): .*Put the user turn .* before it, or take this greet",
        ),
        (
            (user("a"), said("b"), Message("system", "x"), user("c"), said("d")),
            r"refuses turn 3 \(system\): .*into the next user turn",
        ),
        (
            (user("a"), Message("assistant", "", 1.0, (CALL,)), Message("tool", "4"), said("b")),
            r"refuses turn 2 \(assistant\): .*9!\. Give each call an \"id\" of nine letters and digits, and .*\"tool_call_id\", or use",
        ),
    ],
)
def test_a_turn_that_a_template_refuses_is_named_with_what_to_change(turns: tuple[Message, ...], words: str) -> None:
    enc = Encoder(toys.nano(ALTERNATES + toys.TOOLS))
    with pytest.raises(DataError, match=rf"rows.jsonl:7: the chat template {words}"):
        encoded(enc, *turns)
    with pytest.raises(DataError, match=rf"prompt:1: the chat template {words}"):
        enc.prompt(turns)


def test_a_tokenizer_without_pad_token_pads_with_its_end_and_one_without_end_is_refused() -> None:
    enc = encoder("always", "none")
    assert enc.tokenizer.pad_token_id is None
    assert enc.pad_id == enc.eos_id
    endless = toys.sentencepiece()
    endless.eos_token = None
    with pytest.raises(ModelError, match="names no end-of-sequence token"):
        Encoder(endless)


def test_a_tool_call_that_a_template_ends_with_its_own_token_stops_generation_there() -> None:
    template = toys.TOOLS.replace(
        "<|im_end|>\n{% endfor %}{% if add",
        "{{ '<|reserved_0|>' if m.tool_calls else '<|im_end|>' }}\n{% endfor %}{% if add",
    )
    enc = Encoder(toys.nano(template))
    assert {enc.tokenizer.convert_ids_to_tokens(i) for i in enc.stop_ids} == {"<|im_end|>", "<|reserved_0|>"}
    check_prompts(enc, [user("a"), Message("assistant", "", 1.0, (CALL,)), Message("tool", "4"), said("b")], [TOOL])


@pytest.mark.parametrize(
    ("template", "answer", "told"),
    [
        ("chatml", " b\n", ()),
        ("strips", "b", ()),
        ("strips", "b \n", ("white space after turn 2 is not trained as written",)),
        ("strips", " b ", ("white space before and after turn 2 is not trained as written",)),
    ],
)
def test_what_a_template_alters_in_an_answer_is_told(template: str, answer: str, told: tuple[str, ...]) -> None:
    (row,) = encoded(encoder("nano", template), user("a"), said(answer))
    assert row.altered == told


def test_a_thought_that_a_template_writes_anew_is_told_and_one_that_it_drops_is_refused() -> None:
    spaces = Encoder(toys.nano(toys.CHATML.replace("{{ m.content }}", "{{ m.content | replace('>\n', '>') }}")))
    (row,) = encoded(spaces, user("a"), said("<think>\nSo it is.\n</think>\n\nb"))
    assert row.altered == ("the thought of turn 2 is written otherwise",)
    drops = Encoder(toys.nano(toys.CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")))
    with pytest.raises(DataError, match=r"leaves out the thought of turn 2 \(assistant\)"):
        encoded(drops, user("a"), said("<think>\nSo it is.\n</think>\n\nbecause"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "<|im_start|>user\nCode?<|im_end|>\n<|im_start|>assistant\n7<|im_end|>\n",
            "written it already: give the text of each turn",
        ),
        ("<|im_start|>user\nCode?", "written it already: give the text of each turn"),
        ("It is 7.<|im_end|>", "Take it off the end of the text"),
        ("What is <|im_end|> for?", r"Remove or rewrite it, or have it encoded as ordinary text \(data.special_tokens"),
    ],
)
def test_a_text_that_a_template_has_written_already_is_told_from_one_that_quotes_a_mark(text: str, told: str) -> None:
    enc = Encoder(toys.nano(toys.CHATML))
    with pytest.raises(DataError, match=told):
        encoded(enc, user(text), said("Yes."))
    with pytest.raises(DataError, match=told):
        list(enc.examples([Example((Message("text", text, 1.0),), Source("a", 1))]))
