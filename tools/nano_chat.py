"""The turns, special tokens and tokenizer of `builtin:nano`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

END, START, STOP, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
CALL, RESULT, IMAGE = "<|tool_call|>", "<|tool_result|>", "<|image|>"
SPECIAL = [END, START, STOP, PAD, CALL, RESULT, IMAGE] + [f"<|reserved_{i}|>" for i in range(9)]

CHAT_TEMPLATE = """\
{%- macro body(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content is mapping or content is not iterable -%}{{ content if content is not none else '' }}
{%- else -%}
{%- for part in content -%}
{{- '<|image|>' if part is mapping and part.type in ('image', 'image_url') else part if part is string \
else part.text -}}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set system_first = messages and messages[0].role == 'system' -%}
{%- if tools and not system_first -%}
{{- '<|im_start|>system\\nTools:\\n' -}}
{%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'tool' -%}{{- '<|tool_result|>' -}}{%- endif -%}
{{- body(message.content) -}}
{%- if loop.first and system_first and tools -%}
{{- '\\n\\nTools:\\n' -}}
{%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function or call -%}
{{- '<|tool_call|>{"name": ' + (function.name | tojson) + ', "arguments": ' -}}
{{- function.arguments if function.arguments is string else function.arguments | tojson -}}
{{- '}' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def render(messages: list[dict], tools: list[dict] | None = None) -> str:
    """The text of a conversation, equal to what CHAT_TEMPLATE gives (tests hold the two together)."""
    listed = "Tools:\n" + "".join(json.dumps(t, ensure_ascii=False) + "\n" for t in tools) if tools else ""
    turns = []
    for i, m in enumerate(messages):
        text = (RESULT if m["role"] == "tool" else "") + (m.get("content") or "")
        if listed and i == 0 and m["role"] == "system":
            text, listed = f"{text}\n\n{listed}", ""
        for call in m.get("tool_calls") or []:
            function = call.get("function", call)
            name, arguments = function["name"], function["arguments"]
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            text += f'{CALL}{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}'
        turns.append(f"{START}{m['role']}\n{text}{STOP}\n")
    head = f"{START}system\n{listed}{STOP}\n" if listed else ""
    return head + "".join(turns)


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE: no text has an unknown token; a digit and a line break are always one token each.

    No token crosses a line break, so the ids of a prompt ending in one begin the ids of prompt and answer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    marks = [AddedToken(t, normalized=False, special=True) for t in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    markup = re.compile("|".join(map(re.escape, SPECIAL)))
    tokenizer.train_from_iterator((markup.sub(" ", t) for t in texts), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """The files AutoTokenizer reads. PreTrainedTokenizerFast makes it keep the pre-tokenizer as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": STOP,
        "pad_token": PAD,
        "additional_special_tokens": [t for t in SPECIAL if t not in (STOP, PAD)],
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
