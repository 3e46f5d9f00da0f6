"""A conversation that a chat template has written already is read as its turns, or the way out is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
from inlay.data import Example, read_examples
from inlay.data.encoding.encoder import Encoder
from inlay.data.reading.rendered_text import turns_of
from inlay.data.types import Message
from inlay.errors import DataError

Turns = list[tuple[str, str]]


def _tagged(begin: str, opens: str, closes: str, **names: str):  # type: ignore[no-untyped-def]
    def write(turns: Turns) -> str:
        return begin + "".join(opens.format(names.get(role, role)) + said + closes for role, said in turns)

    return write


def _pairs(turns: Turns) -> str:
    system = f"<<SYS>>\n{turns[0][1]}\n<</SYS>>\n\n" if turns[0][0] == "system" else ""
    said = [text for role, text in turns if role != "system"]
    asked = [(system if n == 0 else "") + text for n, text in enumerate(said[::2])]
    return "".join(f"<s>[INST] {q} [/INST] {a} </s>" for q, a in zip(asked, said[1::2], strict=True))


WRITERS = {
    "ChatML": _tagged("", "<|im_start|>{}\n", "<|im_end|>\n"),
    "Llama 3": _tagged("<|begin_of_text|>", "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"),
    "Gemma": _tagged("<bos>", "<start_of_turn>{}\n", "<end_of_turn>\n", assistant="model"),
    "Phi": _tagged("", "<|{}|>\n", "<|end|>\n"),
    "Zephyr": _tagged("", "<|{}|>\n", "</s>\n"),
    "Llama 2": _pairs,
}
SPEAKERS = {
    "HH-RLHF": _tagged("", "\n\n{}: ", "", user="Human", assistant="Assistant"),
    "Guanaco": _tagged("", "### {}: ", "", user="Human", assistant="Assistant"),
    "Vicuna": _tagged("", "### {}:\n", "\n\n", user="User", assistant="Assistant"),
}
SAID = st.text(st.sampled_from("ab c\n.é"), min_size=1, max_size=12).map(lambda text: f"x{text}x")


@pytest.mark.parametrize("markup", WRITERS)
@settings(max_examples=30, deadline=None)
@given(system=st.none() | SAID, said=st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3))
def test_turns_come_out_as_they_went_in(markup: str, system: str | None, said: list[tuple[str, str]]) -> None:
    turns = [("system", system)] if system is not None else []
    turns += [turn for q, a in said for turn in (("user", q), ("assistant", a))]
    assert turns_of(WRITERS[markup](turns)) == turns


@pytest.mark.parametrize("style", SPEAKERS)
@settings(max_examples=30, deadline=None)
@given(said=st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3))
def test_turns_behind_the_names_of_their_speakers_come_out_as_they_went_in(style: str, said: Turns) -> None:
    turns = [turn for q, a in said for turn in (("user", q), ("assistant", a))]
    assert turns_of(SPEAKERS[style](turns)) == turns


@pytest.mark.parametrize(
    "text",
    ["Human: Hi\n\nHuman: Hi?\n\nAssistant: Hello", "Human: Hi\n\nAssistant: \n\nHuman: Hi?", "Human: Hi", "Assistant: Hi",
     "He said:\n\nHuman: Hi\n\nAssistant: Hello", "Human: Hi and Assistant: Hello", "### Instruction:\nAdd.\n### Response:\n4",
     "Once upon a time.", "In ChatML <|im_start|>user\nHi<|im_end|>\n is a turn.", "<|im_start|>user\nHi<|im_end|>\n",
     "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello", "<|im_start|>usr\nHi<|im_end|>\n", "[INST] Hi [/INST]"],
)  # fmt: skip
def test_a_text_that_is_more_or_less_than_turns_stays_a_text(text: str) -> None:
    assert turns_of(text) is None


def trained(example: Example) -> str:
    encoder = Encoder(toys.nano(toys.CHATML))
    ((_, tokens),) = encoder.examples([example])
    return str(encoder.tokenizer.decode(tokens.input_ids[tokens.weights > 0]))


def rows(folder: Path, *values: object) -> str:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


@pytest.mark.parametrize("markup", ["ChatML", "Llama 3", "Gemma"])
def test_such_a_file_trains_the_answers_and_says_so(tmp_path: Path, markup: str) -> None:
    text = WRITERS[markup]([("user", "2 + 2?"), ("assistant", "4"), ("user", "Sure?"), ("assistant", "Yes.")])
    found = read_examples(rows(tmp_path, {"text": text}))
    assert "read as their turns, and only answers are trained" in found.why
    assert trained(found.examples[0]) == "4<|im_end|>Yes.<|im_end|>"


def test_a_prompt_and_a_completion_cut_from_one_are_put_together(tmp_path: Path) -> None:
    value = {"prompt": "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n", "completion": "4<|im_end|>"}
    assert trained(read_examples(rows(tmp_path, value)).examples[0]) == "4<|im_end|>"


@pytest.mark.parametrize("markup", ["ChatML", "Llama 3", "Gemma", "Phi", "Zephyr"])
def test_a_completion_need_not_end_its_turn_and_a_text_must(tmp_path: Path, markup: str) -> None:
    write = WRITERS[markup]
    asked = write([("user", "Sure?"), ("assistant", "Yes."), ("user", "2 + 2?"), ("assistant", "4")]).rpartition("4")
    found = read_examples(rows(tmp_path, {"prompt": asked[0], "completion": "4"}))
    assert trained(found.examples[0]) == "4<|im_end|>"
    assert "read as their turns" in found.why
    end = asked[2].strip()
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*its last turn has no end.*where that answer was cut off") as e:
        read_examples(rows(tmp_path, {"text": asked[0] + "4"}))
    assert f"Write {end} after the last answer" in str(e.value)


def test_marks_of_a_conversation_are_not_to_be_escaped() -> None:
    encoder = Encoder(toys.nano(toys.CHATML))
    written = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"
    with pytest.raises(DataError, match="give the text of each turn") as e:
        encoder.prompt([Message("user", written)])
    assert "escape" not in str(e.value)
    with pytest.raises(DataError, match=r"data\.special_tokens: escape"):
        encoder.prompt([Message("user", "A turn is <|im_start|>user\nHi<|im_end|> in ChatML.")])


PAIR = {"chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5"}
CUT = {"prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: 2 + 2?\n\nAssistant:"}


@pytest.mark.parametrize(
    "value",
    [PAIR, PAIR | {"prompt": "2 + 2?"}, CUT | {"chosen": " 4", "rejected": " 5"}, CUT | {"completion": " 4"},
     {"text": PAIR["chosen"]}, {"text": "### Human: 2 + 2?### Assistant: 4"}],
)  # fmt: skip
def test_texts_of_named_speakers_train_the_last_answer_alone(tmp_path: Path, value: dict[str, str]) -> None:
    found = read_examples(rows(tmp_path, value))
    assert "read as their turns, and only answers are trained" in found.why
    assert trained(found.examples[0]) == "4<|im_end|>"
    assert found.examples[0].messages[-2].content == "2 + 2?"


def test_a_chosen_conversation_needs_a_rejected_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'rejected' is string '5'\. It must be a list of turns"):
        read_examples(rows(tmp_path, PAIR | {"rejected": "5"}))


ASK, SAY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}


@pytest.mark.parametrize(("pair", "form"), [([ASK, SAY], "messages"), ([HUMAN, GPT], "sharegpt")])
def test_a_row_that_is_a_list_of_turns_is_a_conversation(tmp_path: Path, pair: list[dict[str, str]], form: str) -> None:
    array, lines = tmp_path / "array.json", tmp_path / "lines.json"
    array.write_text(json.dumps([pair, pair]))
    lines.write_text((json.dumps(pair) + "\n") * 2)
    for path in (str(array), str(lines), rows(tmp_path, pair, pair)):
        found = read_examples(path)
        assert (found.format, len(found.examples)) == (form, 2)
    with pytest.raises(DataError, match=r"a\.jsonl:1: .* are those of one turn, and turns are no rows"):
        read_examples(rows(tmp_path, *pair))
