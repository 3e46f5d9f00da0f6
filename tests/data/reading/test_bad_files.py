"""Every bad file ends in one line that names the file, the line, what was found and what would be right."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from inlay.data import read_examples
from inlay.errors import DataError

OK = '{"prompt": "a", "completion": "b"}\n'


def chat(*turns: dict[str, Any], **more: Any) -> str:
    return json.dumps({"messages": list(turns), **more}) + "\n"


def share(*turns: dict[str, Any], **more: Any) -> str:
    return json.dumps({"conversations": list(turns), **more}) + "\n"


def row(**fields: Any) -> str:
    return json.dumps(fields) + "\n"


USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "hello"}
HUMAN = {"from": "human", "value": "hi"}
GPT = {"from": "gpt", "value": "hello"}
CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
GOOD_CHAT = chat(USER, BOT)
GOOD_SHARE = share(HUMAN, GPT)

# id: (file name, content, line or None where the whole file is meant, fragments of the message)
BAD: dict[str, tuple[str, str | bytes, int | None, list[str]]] = {
    # bytes
    "empty": ("a.jsonl", b"", 1, ["no rows"]),
    "only blank lines": ("a.jsonl", "\n \n", 1, ["no rows"]),
    "empty json": ("a.json", b"", 1, ["no rows"]),
    "empty array": ("a.json", "[]", 1, ["no rows"]),
    "empty csv": ("a.csv", b"", 1, ["no rows"]),
    "empty parquet": ("a.parquet", b"", 1, ["no rows"]),
    "header alone": ("a.csv", "prompt,completion\n", 1, ["no rows"]),
    "byte order mark alone": ("a.jsonl", b"\xef\xbb\xbf", 1, ["no rows"]),
    "latin-1": ("a.jsonl", OK.encode() + b'{"prompt": "caf\xe9"}', 2, ["0xe9", "byte 50", "café", "iconv"]),
    "latin-1 after a mark": ("a.jsonl", b'\xef\xbb\xbf{"prompt": "\xe9"}', 1, ["0xe9 at byte 15"]),
    "latin-1 csv": ("a.csv", b"prompt,completion\na,b\ncaf\xe9,b\n", 3, ["0xe9", "not UTF-8"]),
    "cut inside a character": ("a.jsonl", OK.encode() + '{"prompt": "é'.encode()[:-1], 2, ["not UTF-8"]),
    "utf-16": ("a.jsonl", OK.encode("utf-16"), 1, ["UTF-16", "Save it as UTF-8"]),
    "nul bytes": ("a.jsonl", OK.encode() + b"\0" * 8, 2, ["NUL byte at byte 35"]),
    "nul in csv": ("a.csv", b"prompt,completion\na,\0\n", 2, ["NUL byte"]),
    "gzip without its name": ("a.jsonl", gzip.compress(OK.encode()), 1, ["gzip data", "Add .gz"]),
    "name without gzip": ("a.jsonl.gz", OK, 1, ["gzip data is damaged", "Not a gzipped file"]),
    "gzip cut off": ("a.jsonl.gz", gzip.compress(OK.encode() * 9)[:-9], None, ["cut off"]),
    "gzip damaged": ("a.jsonl.gz", gzip.compress(OK.encode())[:12] + b"\xff" * 9, None, ["damaged"]),
    "excel as csv": ("a.csv", b"PK\x03\x04....", 1, ["Excel", "Name it .zip or .xlsx"]),
    "parquet as jsonl": ("a.jsonl", b"PAR1....", 1, ["parquet file", "Name it .parquet"]),
    "not parquet": ("a.parquet", OK, 1, ["not a whole parquet file"]),
    "unknown type": ("a.md", OK, None, ["unknown file type '.md'", ".jsonl", "plain text is read from .txt"]),
    "json lines as text": ("a.txt", OK, 1, ["JSON lines", "Name it .jsonl"]),
    "no type": ("data", OK, None, ["unknown file type ''", ".jsonl"]),
    # JSON
    "two objects on a line": ("a.jsonl", OK + OK.strip() + OK, 2, ["two objects on one line"]),
    "comma between lines": ("a.jsonl", OK.strip() + ",\n" + OK, 1, ["comma after the object"]),
    "text after the object": ("a.jsonl", OK.strip() + " x\n", 1, ["text after the object", "'x'"]),
    "cut last line": ("a.jsonl", OK * 2 + OK[:20], 3,
        ["string opened at column 17 is never closed", "cut off"]),
    "cut after a value": ("a.jsonl", OK * 2 + OK[:14], 3, ["ends before it is complete"]),
    "object over lines": ("a.jsonl", json.dumps({"prompt": "a"}, indent=1), 1, ["spread over several lines"]),
    "line break in a string": ("a.jsonl", '{"prompt": "a\nb"}', 1, ["write a line break as \\n"]),
    "tab in a string": ("a.jsonl", '{"prompt": "a\tb"}', 1, ["control character '\\t'", "column 14"]),
    "trailing comma": ("a.jsonl", OK + '{"prompt": "a",}\n', 2, ["trailing comma"]),
    "trailing comma in a list": ("a.jsonl", '{"prompt": ["a",]}\n', 1, ["comma"]),
    "single quotes": ("a.jsonl", OK + "{'prompt': 'a'}\n", 2, ["single quotes", "json.dumps"]),
    "python words": ("a.jsonl", '{"prompt": None}\n', 1, ["None", "null"]),
    "missing comma": ("a.jsonl", '{"prompt": "a" "completion": "b"}\n', 1, ["',' is missing", "column 16"]),
    "missing colon": ("a.jsonl", '{"prompt" "a"}\n', 1, ["':' is missing"]),
    "unknown escape": ("a.jsonl", '{"prompt": "C:\\data"}\n', 1, ["unknown escape at column 15", "\\\\."]),
    "plain text": ("a.jsonl", "hello there\n", 1, ["not JSON", "hello there"]),
    "nan": ("a.jsonl", OK + '{"prompt": "a", "score": NaN}\n', 2, ["NaN is not a JSON number"]),
    "infinity": ("a.jsonl", '{"prompt": "a", "score": -Infinity}\n', 1, ["-Infinity is not"]),
    "number too large": ("a.jsonl", '{"score": 1e999}\n', 1, ["1e999 is too large"]),
    "integer of 5000 digits": ("a.jsonl", '{"score": ' + "9" * 5000 + "}\n", 1,
        ["number that cannot be read"]),
    "duplicate key": ("a.jsonl", OK + '{"prompt": "a", "prompt": "b"}\n', 2, ["'prompt' appears twice"]),
    "deep duplicate key": ("a.jsonl", '{"meta": {"x": 1, "x": 1}}\n', 1, ["'x' appears twice"]),
    "lone surrogate": ("a.jsonl", OK + '{"prompt": "\\ud800"}\n', 2, ["\\ud800", "surrogate pair"]),
    "lone low surrogate key": ("a.jsonl", '{"\\uDC00": 1}\n', 1, ["\\udc00"]),
    "nested too deep": ("a.jsonl", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", 1, ["nested too deep"]),
    "row is a string": ("a.jsonl", OK + '"a"\n', 2, ["the row is string 'a'", "is an object"]),
    "row is a number": ("a.jsonl", OK + "3\n", 2, ["the row is number 3"]),
    "row is a list": ("a.jsonl", OK + '["a", "b"]\n', 2, ["the row is a list of 2"]),
    "row is null": ("a.jsonl", OK + "null\n", 2, ["the row is null"]),
    "array named jsonl": ("a.jsonl", "[\n" + OK + "]", 1, ["the row is a list", "name it .json"]),
    "array with a string": ("a.json", "[" + OK + ', "x"]', 2, ["row 2 of the array is string 'x'"]),
    "array never closed": ("a.json", "[" + OK, 1, ["never closed"]),
    "array cut off": ("a.json", "[\n" + OK + ",\n", 3, ["ends before it is complete"]),
    "array with a last comma": ("a.json", "[\n" + OK + ",\n]", 4, ["trailing comma"]),
    "array without commas": ("a.json", "[\n" + OK + OK + "]", 3, ["',' is missing between two rows"]),
    "text after the array": ("a.json", "[\n" + OK + "]\nx", 4, ["text after the array"]),
    "json is a number": ("a.json", "3", 1, ["the file is number 3", "array of objects"]),
    "two splits": ("a.json", '{"train": [{"a": 1}], "test": [{"a": 1}]}', 1, ["2 splits", "test, train"]),
    "two lists": ("a.json", '{"one": [{"a": 1}], "other": [{"a": 1}]}', 1, ["2 lists of objects", "one, other"]),
    "json duplicate key": ("a.json", '[\n{"a": 1},\n{"a": 1, "a": 2}]', 3, ["'a' appears twice"]),
    "second line of lines in json": ("a.json", OK + "{]\n", 2, ["not JSON"]),
    # tables
    "ragged row": ("a.csv", "prompt,completion\na,b\na,b,c\n", 3, ["3 cells", "header has 2"]),
    "short row": ("a.csv", "prompt,completion\na\n", 2, ["1 cells"]),
    "ragged after a long cell": ("a.csv", 'prompt,completion\n"a\n\nb",c\nx\n', 5, ["1 cells"]),
    "same column twice": ("a.csv", "prompt,prompt\na,b\n", 1, ["'prompt' twice"]),
    "column without name": ("a.csv", ",prompt\n0,b\n", 1, ["column 1", "no name", "index=False"]),
    "semicolons": ("a.csv", "prompt;completion\na;b\n", 1, ["separated by ';'"]),
    "tabs in csv": ("a.csv", "prompt\tcompletion\na\tb\n", 1, ["separated by '\\t'", ".tsv"]),
    "commas in tsv": ("a.tsv", "prompt,completion\na,b\n", 1, ["separated by ','"]),
    "quote never closed": ("a.csv", 'prompt,completion\na,"b\nc,d\n', 2, ["never closed"]),
    "text after a quote": ("a.csv", 'prompt,completion\n"a" x,b\n', 2, ['closing "', "Double a quote"]),
    "lone carriage return": ("a.csv", "prompt,completion\na\rb,c\n", 2, ["carriage return"]),
    "empty cell": ("a.csv", "prompt,completion\na,b\na,\n", 3, ["'completion'", "empty string"]),
    # which format
    "fields of no format": ("a.jsonl", row(foo="a", bar="b"), 1,
        ["fields foo, bar", "alpaca needs", "columns"]),
    "line break in a header": ("a.csv", '"a\nb",c\nd\n', 3, ["'a\\nb', c"]),
    "line break in a field": ("a.jsonl", row(**{"a\nb": 1}), 1, ["'a\\nb'"]),
    "question and answer by other names": ("a.jsonl", row(question="a", response="b"), 1,
        ["--set data.columns.prompt=question --set data.columns.completion=response"]),
    "name with a space": ("a.jsonl", row(**{"my turns": [USER, BOT]}), 1, ["--set 'data.columns.messages=my turns'"]),
    "Label Studio": ("a.json", '[{"id": 1, "data": {"text": "T"}, "annotations": [{"result": []}]}]', 1,
        ["Label Studio", "data.text", "annotations[].result[].value.choices"]),
    "no fields": ("a.jsonl", "{}\n", 1, ["no fields"]),
    "misspelt in every row": ("a.jsonl", row(instuction="a", input="", output="b") * 3, 1,
                              ["Did you mean 'instruction'", "instuction", "alpaca"]),
    "other case, with a context": ("a.jsonl", row(ID="1", Body="b", Question="a", Answer=5.0), 1, ["Rename, with 'Body' as the text that the question is about (columns: {instruction: Question, input: Body, output: Answer}, or --set data.columns.instruction=Question --set data.columns.input=Body --set data.columns.output=Answer)"]),
    "other names, with a context": ("a.jsonl", row(query="a", Passage="b", response="c"), 1, ["--set data.columns.instruction=query --set data.columns.input=Passage --set data.columns.output=response)"]),
    "context in other case": ("a.jsonl", row(question="a", answer="c", Story="b"), 1, ["'Story' is string 'b': the model would not see it", "--set data.columns.instruction=question --set data.columns.input=Story --set data.columns.output=answer)"]),
    "other case": ("a.jsonl", row(Question="a", Answer="b"), 1, ["{question: Question, answer: Answer}, or --set data.columns.question=Question --set data.columns.answer=Answer)"]),
    "two formats at once": ("a.jsonl", row(prompt="a", completion="b", question="a", answer="b"), 1,
                            ["fit 2 formats", "prompt_completion, question_answer", "(for example --set data.format=prompt_completion)."]),
    "formats mixed": ("a.jsonl", OK * 3 + GOOD_CHAT, 4, ["written as 'messages'", "'prompt_completion'"]),
    "formats mixed in half": ("a.jsonl", OK + GOOD_CHAT, 1, ["written as"]),
    "formats mixed late": ("a.jsonl", OK * 150 + GOOD_CHAT, 151, ["'messages'", "needs field 'prompt'"]),
    "text beside a column": ("a.csv", "text,category\na,b\n", 2, ["{label: category}, or --set data.columns.label=category)", "(--set data.format=text)"]),
    "pairs without a question": ("a.jsonl", row(chosen="b", rejected="c"), 1,
        ["'chosen' is string 'b'", "--set data.columns.prompt=COLUMN"]),
    "pairs asked twice": ("a.jsonl", row(prompt="a", instruction="a", chosen="b", rejected="c"), 1,
        ["'prompt' and 'instruction' are both the question"]),
    "pairs asked otherwise": ("a.jsonl", row(prompt="other", chosen=[USER, BOT], rejected=[USER, BOT]), 1,
        ["is not a part of it"]),
    "pairs half in turns": ("a.jsonl", row(chosen=[USER, BOT], rejected="c"), 1, ["'rejected' is string 'c'"]),
    "pairs that end with a question": ("a.jsonl", row(chosen=[USER], rejected=[USER]), 1, ["nothing to train on"]),
    "openai pairs without messages": ("a.jsonl", row(input={}, preferred_output=[BOT], non_preferred_output=[BOT]), 1,
        ["'input.messages' is missing"]),
    "openai pairs with a text": ("a.jsonl", row(input="a", preferred_output=[BOT], non_preferred_output=[BOT]), 1,
        ["'input' is string 'a'", '{"messages": [...]}']),
    "empty target": ("a.jsonl", row(source="a", target=" "), 1, ["'target' is only white space"]),
    "list as output": ("a.jsonl", row(input="a", output=["b"]), 1, ["'output' is a list of 1", "string"]),
    "judged answers": ("a.jsonl", row(prompt="a", completion="b", label=False), 1, ["good or bad"]),
    "context left out": ("a.jsonl", row(question="a", context="c", answer="b"), 1,
                         ["'context'", "would not see it beside the question", "--set data.columns.instruction=question --set data.columns.input=context --set data.columns.output=answer)", "(--set data.format=question_answer)"]),
    # fields
    "field missing": ("a.jsonl", OK + row(prompt="a"), 2, ["'completion' is missing", "there is prompt."]),
    "field misspelt": ("a.jsonl", OK + row(prompt="a", completon="b"), 2,
                       ["'completion' is missing", "Did you mean 'completion' where it says 'completon'"]),
    "instruction misspelt": ("a.jsonl", row(instruction="a", input="", output="b")
                             + row(instuction="a", input="", output="b"), 2, ["where it says 'instuction'"]),
    "output missing": ("a.jsonl", row(instruction="a", input="", output="b") + row(instruction="a",
        input="x"),
                       2, ["'output' is missing. Add it"]),
    "null answer": ("a.jsonl", OK + row(prompt="a", completion=None), 2, ["'completion' is null", "string"]),
    "number as answer": ("a.jsonl", row(question="a", answer=5), 1, ["'answer' is number 5", "string"]),
    "list as answer": ("a.jsonl", row(question="a", answer=["x"]), 1, ["'answer' is a list of 1"]),
    "object as answer": ("a.jsonl", row(prompt="a", completion={"x": 1}), 1, ["'completion' is an object"]),
    "boolean as answer": ("a.jsonl", row(instruction="a", output=True), 1, ["'output' is true"]),
    "empty answer": ("a.jsonl", OK + row(prompt="a", completion=""), 2, ["'completion' is an empty string"]),
    "blank answer": ("a.jsonl", row(question="a", answer=" \n\t"), 1, ["only white space"]),
    "empty question": ("a.jsonl", row(question="", answer="a"), 1, ["'question' is an empty string"]),
    "empty document": ("a.jsonl", row(text="a") + row(text=" "), 2, ["'text' is only white space"]),
    "null input list": ("a.jsonl", row(instruction="a", input=["b"], output="c"), 1,
        ["'input' is a list of 1"]),
    "history not pairs": ("a.jsonl", row(instruction="a", input="", output="c", history=[["q"]]), 1,
                          ["'history[0]'", "[question, answer]"]),
    "label missing": ("a.jsonl", row(text="a", label="b") + row(text="a"), 2, ["written as 'text'"]),
    "label null": ("a.jsonl", row(text="a", label=None), 1, ["'label' is null", "string or a number"]),
    "label boolean": ("a.jsonl", row(text="a", label=True), 1, ["'label' is true"]),
    "half conversational": ("a.jsonl", row(prompt=[USER], completion="b"), 1,
        ["'completion' is string", "both"]),
    # chat
    "no turns": ("a.jsonl", chat(), 1, ["'messages' is a list of 0", "at least one turn"]),
    "turns are text": ("a.jsonl", row(messages="hi"), 1, ["'messages' is string 'hi'"]),
    "turn is text": ("a.jsonl", row(messages=[USER, "hello"]), 1, ["'messages[1]' is string 'hello'"]),
    "role misspelt": ("a.jsonl", GOOD_CHAT + chat(USER, BOT | {"role": "asistant"}), 2,
                      ["messages[1].role", "'asistant'", "Did you mean 'assistant'?"]),
    "role in capitals": ("a.jsonl", chat(USER | {"role": "User"}, BOT), 1, ["Did you mean 'user'?"]),
    "role of sharegpt": ("a.jsonl", chat(USER, BOT | {"role": "gpt"}), 1, ["Did you mean 'assistant'?"]),
    "role null": ("a.jsonl", chat(USER, BOT | {"role": None}), 1, ["role' is null"]),
    "role missing": ("a.jsonl", chat({"rol": "user", "content": "hi"}, BOT), 1, ["where it says 'rol'"]),
    "content missing": ("a.jsonl", chat(USER, {"role": "assistant"}), 1,
        ["'messages[1].content' is missing"]),
    "content misspelt": ("a.jsonl", chat(USER, {"role": "assistant", "contnet": "a"}), 1, ["says 'contnet'"]),
    "content null": ("a.jsonl", chat(USER, BOT | {"content": None}), 1, ["content' is null", "tool_calls"]),
    "content number": ("a.jsonl", chat(USER, BOT | {"content": 3}), 1, ["content' is number 3"]),
    "content empty": ("a.jsonl", chat(USER, BOT | {"content": ""}), 1,
        ["'messages[1].content'", "assistant"]),
    "user says nothing": ("a.jsonl", chat(USER | {"content": " "}, BOT), 1,
        ["'messages[0].content'", "user"]),
    "image part": ("a.jsonl", chat(USER | {"content": [{"type": "image_url"}]}, BOT), 1, ["type 'text'"]),
    "thinking part": ("a.jsonl", chat(USER, BOT | {"content": [{"type": "thinking", "thinking": "t"}]}), 1,
        ["messages[1].content[0].type", '"reasoning_content" of the turn']),
    "call part": ("a.jsonl", chat(USER, BOT | {"content": [{"type": "tool_use", "name": "f", "input": {}}]}), 1,
        ['"tool_calls" of an assistant turn', '"arguments"']),
    "call part of Bedrock": ("a.jsonl", chat(USER, BOT | {"content": [{"toolUse": {"name": "f", "input": {}}}]}), 1,
        ["content[0].toolUse'", '"tool_calls" of an assistant turn']),
    "result part": ("a.jsonl", chat(USER | {"content": [{"type": "tool_result", "content": "4"}]}, BOT), 1,
        ['{"role": "tool", "content": "…"}']),
    "turns of LangChain": ("a.jsonl", chat({"type": "human", "data": {"content": "a"}}), 1,
        ["LangChain", '{"role": "user", "content": the text of data.content}', "ai is assistant"]),
    "part without text": ("a.jsonl", chat(USER | {"content": [{"type": "text"}]}, BOT), 1, ["text' is null"]),
    "only the user speaks": ("a.jsonl", GOOD_CHAT + chat(USER), 2, ["nothing to train on (roles: user)"]),
    "all turns masked": ("a.jsonl", chat(USER, BOT | {"weight": 0}), 1, ["nothing to train on"]),
    "only the assistant speaks": ("a.jsonl", chat(BOT), 1, ["nobody did before"]),
    "weight negative": ("a.jsonl", chat(USER, BOT | {"weight": -1}), 1, ["weight' is number -1", "0 masks"]),
    "weight boolean": ("a.jsonl", chat(USER, BOT | {"weight": True}), 1, ["weight' is true"]),
    "weight text": ("a.jsonl", chat(USER, BOT | {"weight": "1"}), 1, ["weight' is string '1'"]),
    "weight of a user turn": ("a.jsonl", chat(USER | {"weight": 1}, BOT), 1, ["Only assistant turns"]),
    "name number": ("a.jsonl", chat(USER | {"name": 3}, BOT), 1, ["name' is number 3"]),
    "calls of the user": ("a.jsonl", chat(USER | {"tool_calls": [CALL]}, BOT), 1, ["Only an assistant turn"]),
    "call without name": ("a.jsonl", chat(USER, BOT | {"tool_calls": [{"arguments": {}}]}), 1,
                          ["'messages[1].tool_calls[0].name' is missing"]),
    "arguments not JSON": ("a.jsonl", chat(USER, BOT | {"tool_calls": [{"name": "f", "arguments": "{x"}]}), 1,
                           ["tool_calls[0].arguments", "not JSON"]),
    "arguments a list": ("a.jsonl", chat(USER, BOT | {"tool_calls": [{"name": "f", "arguments": []}]}), 1,
                         ["arguments' is a list", "object"]),
    "tools an object": ("a.jsonl", chat(USER, BOT, tools={"name": "f"}), 1, ["'tools' is an object", "list"]),
    "tool without name": ("a.jsonl", chat(USER, BOT, tools=[{"type": "function"}]), 1, ["'tools[0]'"]),
    "sharegpt role misspelt": ("a.jsonl", GOOD_SHARE + share({"from": "humann", "value": "x"}, GPT), 2,
                               ["Did you mean 'human'?"]),
    "sharegpt value missing": ("a.jsonl", share(HUMAN, {"from": "gpt", "valu": "x"}), 1, ["says 'valu'"]),
    "sharegpt value null": ("a.jsonl", share(HUMAN, GPT | {"value": None}), 1, ["value' is null"]),
    "sharegpt value empty": ("a.jsonl", share(HUMAN, GPT | {"value": ""}), 1, ["value' is an empty string"]),
    "sharegpt call not JSON": ("a.jsonl", share(HUMAN, {"from": "function_call", "value": "f()"}), 1,
                               ["conversations[1].value", "not JSON"]),
    "sharegpt tools not JSON": ("a.jsonl", share(HUMAN, GPT, tools="[{]"), 1, ["'tools'", "JSON"]),
    "two system prompts": ("a.jsonl", share({"from": "system", "value": "s"}, HUMAN, GPT, system="t"), 1,
                           ["'system'", "Keep one"]),
    "messages as sharegpt": ("a.jsonl", share(USER, BOT), 1, ["role/content", "{messages: conversations}, or --set data.columns.messages=conversations)"]),
    "sharegpt as messages": ("a.jsonl", chat(HUMAN, GPT), 1, ["from/value", "{conversations: messages}"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_with_place_finding_and_remedy(tmp_path: Path, case: str) -> None:
    name, content, line, fragments = BAD[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        read_examples(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: " if line else f"{path}:"), message
    assert "\n" not in message
    assert len(message) < 800 + 2 * len(str(path))
    for fragment in fragments:
        assert fragment in message, message


def test_there_are_many_bad_files_and_no_two_are_the_same() -> None:
    assert len({(name, content) for name, content, _, _ in BAD.values()}) == len(BAD) >= 60
