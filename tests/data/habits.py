"""Chat templates of our own with the habits of those that models ship with, and what each must train.

`{}` in a turn stands for what it says, `{strip}` for the same without white space around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken

import toys

TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}},
}


def turns(start: str = "", opening: str = "", end: str = "", **roles: str) -> str:
    """A template that writes `start`, each turn as its role has it, and `opening` where an answer is asked for."""
    cases = "".join(
        f"{'el' if n else ''}if m.role == '{role}' %}}{_written(text)}{{% "
        for n, (role, text) in enumerate(roles.items())
    )
    refuses = "else %}{{ raise_exception('no turns of ' + m.role) }}{% endif %}"
    asked = f"{{% if add_generation_prompt %}}{opening}{f'{{% else %}}{end}' if end else ''}{{% endif %}}"
    return f"{start}{{% for m in messages %}}{{% {cases}{refuses}{{% endfor %}}{asked}"


def _written(text: str) -> str:
    return text.replace("{strip}", "{{ m.content | trim }}").replace("{}", "{{ m.content }}")


def same(said: str) -> str:
    return said


def stripped(said: str) -> str:
    return said.strip()


def thought_of(said: str) -> tuple[str, str]:
    thought, closes, rest = said.partition("</think>")
    return (thought.split("<think>")[-1].strip("\n"), rest) if closes else ("", said)


@dataclass(frozen=True)
class Habit:
    """One template. `trained` is the text that an answer trains, `{}` being what `says` makes of it."""

    template: str
    trained: str
    says: Callable[[str], str] = same
    eos: str = "<|im_end|>"
    refuses: tuple[str, ...] = ("tools",)
    """Features of conversations that it has no place for."""
    one_row: bool = True
    """Turns of a conversation without thoughts stand in one row."""
    moves_system: bool = False
    """Those of a conversation with a system turn do not."""

    def tokenizer(self) -> Any:
        made = toys.nano(self.template)
        marks = ["<s>", "</s>", self.eos, *(mark for mark in MARKS if mark in self.template)]
        made.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in dict.fromkeys(marks)])
        made.eos_token, made.bos_token = self.eos, "<s>"
        return made


MARKS = (
    "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>",
    "<|end_of_turn|>", "<|User|>", "<|Assistant|>", "<|end_of_sentence|>", "<|observation|>", "<|START|>", "<|END|>",
    "<|USER|>", "<|BOT|>", "<|SYSTEM|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_THINKING|>",
    "<|END_THINKING|>", "<|start|>", "<|message|>", "<|channel|>", "<|return|>", "<|turn>", "<turn|>", "<|channel>",
    "<channel|>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|im_user|>", "<|im_assistant|>",
    "<|im_system|>", "<|im_middle|>", "<seed:bos>", "<seed:eos>", "<sep>",
)  # fmt: skip

_DROP = "{{ m.content.split('</think>')[-1] }}"
_IM = "<|im_start|>{}\n{}<|im_end|>\n".replace("{}", "{{ m.role }}", 1)
_HEAD = "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{strip}<|eot_id|>"
_LAST_USER = (
    "{% set ns = namespace(u=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.u = loop.index0 %}"
    "{% endif %}{% endfor %}"
)
_SPLIT = (
    "{% set c = m.content %}{% set t = '' %}{% if '</think>' in c %}{% set t = c.split('</think>')[0].split('<think>')"
    "[-1].strip('\n') %}{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
_TOOLS_IM = (
    "{% if tools %}<|im_start|>system\nTools: {% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n"
    "{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _opened(said: str) -> str:
    thought, rest = thought_of(said)
    return f"{thought}\n</think>\n\n{rest.lstrip(chr(10))}" if thought else f"\n</think>\n\n{said}"


def _block(said: str) -> str:
    return f"<think>\n{_opened(said)}"


def _tight(said: str) -> str:
    thought, rest = thought_of(said)
    return f"{thought}</think>{rest.strip()}"


HABITS = {
    "chatml": Habit(turns(opening="<|im_start|>assistant\n", user=_IM, assistant=_IM, system=_IM), "{}<|im_end|>"),
    "chatml, strips": Habit(
        turns(opening="<|im_start|>assistant\n", **dict.fromkeys(("user", "assistant", "system"), _IM.replace("{}", "{strip}"))),
        "{}<|im_end|>", stripped,
    ),
    "chatml, strips answers on the right": Habit(
        turns(opening="<|im_start|>assistant\n", user=_IM, system=_IM, assistant=_IM.replace("{}", "{{ m.content.rstrip() }}")),
        "{}<|im_end|>", str.rstrip,
    ),
    "chatml, system by default": Habit(
        turns("{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}",
              "<|im_start|>assistant\n", user=_IM, assistant=_IM, system=_IM), "{}<|im_end|>",
    ),
    "chatml, with a bos and no line after the end": Habit(
        turns("{{ bos_token }}", "<|im_start|>assistant\n",
              **dict.fromkeys(("user", "assistant", "system"), _IM.rstrip("\n"))), "{}<|im_end|>",
    ),
    "chatml, with tools": Habit(_TOOLS_IM, "{}<|im_end|>", refuses=()),
    "chatml, thoughts only since the last question": Habit(
        _LAST_USER + turns(opening="<|im_start|>assistant\n", user=_IM, system=_IM, assistant=_SPLIT
                           + "<|im_start|>assistant\n{% if loop.index0 > ns.u %}<think>\n{{ t }}\n</think>\n\n{% endif %}"
                           "{{ c }}<|im_end|>\n"),
        "{}<|im_end|>", _block, one_row=False,
    ),
    "chatml, the prompt ends an empty thought": Habit(
        turns(opening="<|im_start|>assistant\n<think>\n</think>", user=_IM, assistant=_IM, system=_IM),
        "{}<|im_end|>", refuses=("tools", "thought"), one_row=False,
    ),
    "chatml, the prompt opens a thought": Habit(
        _LAST_USER + turns(opening="<|im_start|>assistant\n<think>\n", user=_IM, system=_IM, assistant=_SPLIT
                           + "<|im_start|>assistant\n{% if loop.index0 > ns.u %}<think>\n{{ t }}\n</think>\n\n{% endif %}"
                           "{{ c }}<|im_end|>\n"),
        "{}<|im_end|>", _opened, one_row=False,
    ),
    "chatml, the prompt opens a thought and the last answer stands as it is": Habit(
        turns(opening="<|im_start|>assistant\n<think>\n", user=_IM, system=_IM,
              assistant="<|im_start|>assistant\n{% if loop.last %}{}{% else %}" + _DROP + "{% endif %}<|im_end|>\n"),
        "{}<|im_end|>", lambda said: said.removeprefix("<think>\n") if "</think>" in said else f"\n</think>{'' if said[0].isspace() else chr(10) * 2}{said}",
        one_row=False,
    ),
    "chatml, the prompt opens a thought and an answer shows an empty one": Habit(
        turns(opening="<|im_start|>assistant\n<think>\n", user=_IM, system=_IM,
              assistant="<|im_start|>assistant\n{% if '<think>' not in m.content %}<think></think>{% endif %}"
              "{strip}<|im_end|>\n"),
        "{}<|im_end|>",
        lambda said: said.strip().removeprefix("<think>\n") if "</think>" in said else "</think>" + said.strip(),
        one_row=False,
    ),
    "chatml, only the last answer keeps its thought": Habit(
        "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        + turns(opening="<|im_start|>assistant\n", user=_IM, system=_IM,
                assistant="<|im_start|>assistant\n{% if loop.index0 == ns.last %}{}{% else %}"
                + _DROP + "{% endif %}<|im_end|>\n"),
        "{}<|im_end|>",
    ),
    "chatml, over several lines": Habit(
        "{{ bos_token }}\n{% for m in messages %}\n    {{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}\n"
        "{% endfor %}\n\n{% if add_generation_prompt %}\n    {{ '<|im_start|>assistant\n' }}\n{% endif %}",
        "{}<|im_end|>", lambda said: said.removeprefix("\n"), one_row=False,
    ),
    "llama 2": Habit(
        turns(user="{{ bos_token }}[INST] {% if messages[0].role == 'system' and loop.index0 == 1 %}<<SYS>>\n"
                   "{{ messages[0].content }}\n<</SYS>>\n\n{% endif %}{} [/INST]", system="", assistant=" {} {{ eos_token }}"),
        " {} </s>", eos="</s>",
    ),
    "llama 3": Habit(
        turns("{{ bos_token }}", "<|start_header_id|>assistant<|end_header_id|>\n\n",
              **dict.fromkeys(("user", "assistant", "system"), _HEAD)),
        "{}<|eot_id|>", stripped, eos="<|eot_id|>",
    ),
    "llama 3, with a date": Habit(
        turns("{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday: {{ strftime_now('%d %b %Y') }}\n"
              "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% endif %}<|eot_id|>",
              "<|start_header_id|>assistant<|end_header_id|>\n\n", user=_HEAD, assistant=_HEAD, system=""),
        "{}<|eot_id|>", stripped, eos="<|eot_id|>",
    ),
    "llama 3, tools in the first question": Habit(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}"
        "<|end_header_id|>\n\n{% if tools and m.role == 'user' and loop.index0 == (1 if messages[0].role == 'system' else 0)"
        " %}Tools: {{ tools | tojson }}\n\n{% endif %}{{ m.content | trim }}{% for c in m.tool_calls or [] %}"
        "{{ c.function | tojson }}{% endfor %}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "{}<|eot_id|>", stripped, eos="<|eot_id|>", refuses=(),
    ),
    "mistral, no system": Habit(
        turns("{{ bos_token }}", user="[INST] {} [/INST]", assistant="{}{{ eos_token }}"),
        "{}</s>", eos="</s>", refuses=("tools", "system"),
    ),
    "mistral, roles must alternate": Habit(
        turns("{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
              "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}",
              user="[INST]{}[/INST]", assistant="{}{{ eos_token }}"),
        "{}</s>", eos="</s>", refuses=("tools", "system", "in a row"),
    ),
    "mistral, system in the first question": Habit(
        turns("{{ bos_token }}", user="[INST] {% if loop.index0 == 1 and messages[0].role == 'system' %}"
              "{{ messages[0].content }}\n\n{% endif %}{} [/INST]", system="", assistant=" {}{{ eos_token }}"),
        " {}</s>", eos="</s>",
    ),
    "mistral, system in the last turn": Habit(
        turns("{{ bos_token }}", user="[INST] {% if loop.last and messages[0].role == 'system' %}"
              "{{ messages[0].content }}\n\n{% endif %}{} [/INST]", system="", assistant=" {}{{ eos_token }}"),
        " {}</s>", eos="</s>", moves_system=True,
    ),
    "mistral, system in marks": Habit(
        turns("{{ bos_token }}", user="[INST]{}[/INST]", system="[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]",
              assistant="{}{{ eos_token }}"), "{}</s>", eos="</s>",
    ),
    "gemma": Habit(
        turns("{{ bos_token }}", "<start_of_turn>model\n", user="<start_of_turn>user\n{strip}<end_of_turn>\n",
              assistant="<start_of_turn>model\n{strip}<end_of_turn>\n"),
        "{}<end_of_turn>", stripped, eos="<end_of_turn>", refuses=("tools", "system"),
    ),
    "gemma, system in the first question": Habit(
        turns("{{ bos_token }}", "<start_of_turn>model\n", system="", user="<start_of_turn>user\n"
              "{{ messages[0].content + '\n\n' if loop.index0 == 1 and messages[0].role == 'system' }}{strip}<end_of_turn>\n",
              assistant="<start_of_turn>model\n{strip}<end_of_turn>\n"),
        "{}<end_of_turn>", stripped, eos="<end_of_turn>",
    ),
    "gemma, the prompt ends an empty thought": Habit(
        turns("{{ bos_token }}", "<|turn>model\n<|channel>thought\n<channel|>", user="<|turn>user\n{strip}<turn|>\n",
              system="<|turn>system\n{strip}<turn|>\n", assistant="<|turn>model\n{strip}<turn|>\n"),
        "{}<turn|>", stripped, eos="<turn|>", one_row=False,
    ),
    "phi": Habit(
        turns(opening="<|assistant|>\n", end="{{ eos_token }}", user="<|user|>\n{}<|end|>\n", system="<|system|>\n{}<|end|>\n",
              assistant="<|assistant|>\n{}<|end|>\n"), "{}<|end|>", eos="<|endoftext|>",
    ),
    "zephyr": Habit(
        turns(opening="<|assistant|>\n", user="<|user|>\n{}</s>\n", system="<|system|>\n{}</s>\n",
              assistant="<|assistant|>\n{}</s>\n"), "{}</s>", eos="</s>",
    ),
    "vicuna": Habit(
        turns("A chat.", " ASSISTANT:", user=" USER: {strip}", system=" {strip}", assistant=" ASSISTANT: {strip}</s>\n"),
        " {}</s>", stripped, eos="</s>",
    ),
    "alpaca": Habit(
        turns(opening="### Response:\n", user="### Instruction:\n{strip}\n\n", system="{strip}\n\n",
              assistant="### Response:\n{strip}{{ eos_token }}\n\n"), "{}</s>", stripped, eos="</s>",
    ),
    "openchat": Habit(
        turns("{{ bos_token }}", "Assistant:", user="User: {}<|end_of_turn|>", system="{}<|end_of_turn|>",
              assistant="Assistant: {}<|end_of_turn|>"), " {}<|end_of_turn|>", eos="<|end_of_turn|>",
    ),
    "no end of turn": Habit(
        turns(opening="### Assistant:\n", user="### User:\n{}\n\n", system="### System:\n{}\n\n",
              assistant="### Assistant:\n{}\n\n"), "{}\n\n</s>", eos="</s>", one_row=False,
    ),
    "separated by lines": Habit(
        "{% for m in messages %}{{ '\n\n' if not loop.first }}{{ m.role | title }}: {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}\n\nAssistant:{% endif %}", " {}</s>", eos="</s>", one_row=False,
    ),
    "deepseek": Habit(
        turns("{{ bos_token }}", "<|Assistant|>", user="<|User|>{}", system="{}\n\n",
              assistant="<|Assistant|>{}<|end_of_sentence|>"), "{}<|end_of_sentence|>", eos="<|end_of_sentence|>",
    ),
    "deepseek, the prompt opens a thought and no answer shows one": Habit(
        turns("{{ bos_token }}", "<|Assistant|><think>\n", user="<|User|>{}", system="{}\n\n",
              assistant="<|Assistant|>" + _DROP + "<|end_of_sentence|>"),
        "{}<|end_of_sentence|>",
        lambda said: "\n".join([thought_of(said)[0], "</think>"]) + thought_of(said)[1] if "</think>" in said
        else f"\n</think>{'' if said[0].isspace() else chr(10) * 2}{said}",
        eos="<|end_of_sentence|>", one_row=False,
    ),
    "deepseek, the prompt opens a thought and every answer shows an empty one": Habit(
        turns("{{ bos_token }}", "<|Assistant|><think>", user="<|User|>{}", system="{}\n\n",
              assistant="<|Assistant|><think></think>" + _DROP + "<|end_of_sentence|>"),
        "{}<|end_of_sentence|>",
        lambda said: said.removeprefix("<think>") if "</think>" in said else f"</think>{said}",
        eos="<|end_of_sentence|>",
    ),
    "deepseek, an empty thought in prompts and answers": Habit(
        turns("{{ bos_token }}", "<|Assistant|><think></think>", user="<|User|>{}", system="{}\n\n",
              assistant="<|Assistant|><think></think>" + _DROP + "<|end_of_sentence|>"),
        "{}<|end_of_sentence|>", eos="<|end_of_sentence|>", refuses=("tools", "thought"),
    ),
    "deepseek, an answer shows the end of a thought": Habit(
        turns("{{ bos_token }}", "<|Assistant|><think></think>", user="<|User|>{}", system="{}\n\n",
              assistant="<|Assistant|></think>" + _DROP + "<|end_of_sentence|>"),
        "{}<|end_of_sentence|>", eos="<|end_of_sentence|>", refuses=("tools", "thought"), one_row=False,
    ),
    "deepseek, the prompt holds the end of a thought alone": Habit(
        turns("{{ bos_token }}", "<|Assistant|></think>", user="<|User|>{}", system="{}\n\n",
              assistant="<|Assistant|></think>{}<|end_of_sentence|>"),
        "{}<|end_of_sentence|>", eos="<|end_of_sentence|>", refuses=("tools", "thought"),
    ),
    "glm, the next speaker is the end": Habit(
        "[gMASK]" + turns(opening="<|assistant|>\n<think></think>\n", user="<|user|>\n{}", system="<|system|>\n{}",
                          assistant="<|assistant|>\n<think></think>\n{}"),
        "{}<|user|>", eos="<|user|>", one_row=False, refuses=("tools", "thought"),
    ),
    "glm, the prompt opens a thought": Habit(
        turns("[gMASK]", "<|assistant|><think>", user="<|user|>{}", system="<|system|>{}",
              assistant=_SPLIT + "<|assistant|>{{ '<think>' + t if t }}</think>{{ c.strip() }}"),
        "{}<|user|>", _tight, eos="<|user|>", one_row=False,
    ),
    "command r": Habit(
        turns("{{ bos_token }}", "<|START|><|BOT|><|START_RESPONSE|>", system="<|START|><|SYSTEM|>{}<|END|>",
              user="<|START|><|USER|>{}<|END|>", assistant="<|START|><|BOT|><|START_RESPONSE|>{}<|END_RESPONSE|><|END|>"),
        "{}<|END_RESPONSE|><|END|>", eos="<|END|>",
    ),
    "command r, always opens an answer": Habit(
        turns("{{ bos_token }}", system="<|START|><|SYSTEM|>{}<|END|>", user="<|START|><|USER|>{}<|END|>",
              assistant="<|START|><|BOT|><|START_RESPONSE|>{}<|END_RESPONSE|><|END|>")
        + "<|START|><|BOT|><|START_THINKING|><|END_THINKING|>",
        "<|START_RESPONSE|>{}<|END_RESPONSE|><|END|>", eos="<|END|>", one_row=False,
    ),
    "command r, the prompt opens a thought": Habit(
        turns("{{ bos_token }}", "<|START|><|BOT|><|START_THINKING|>", system="<|START|><|SYSTEM|>{}<|END|>",
              user="<|START|><|USER|>{}<|END|>", assistant="<|START|><|BOT|><|START_RESPONSE|>{}<|END_RESPONSE|><|END|>"),
        "<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|><|END|>", eos="<|END|>", one_row=False,
        refuses=("tools", "thought"),
    ),
    "channels, another end in the last turn": Habit(
        turns(opening="<|start|>assistant", user="<|start|>user<|message|>{}<|end|>",
              system="<|start|>system<|message|>{}<|end|>", assistant="<|start|>assistant<|channel|>final<|message|>{}"
              "{{ '<|return|>' if loop.last else '<|end|>' }}"),
        "<|channel|>final<|message|>{}<|return|>", eos="<|return|>", one_row=False,
    ),
    "granite": Habit(
        turns(opening="<|start_of_role|>assistant<|end_of_role|>",
              **dict.fromkeys(("user", "assistant", "system"), "<|start_of_role|>{{ m.role }}<|end_of_role|>{}<|end_of_text|>\n")),
        "{}<|end_of_text|>", eos="<|end_of_text|>",
    ),
    "kimi": Habit(
        turns(opening="<|im_assistant|>assistant<|im_middle|>",
              **{r: f"<|im_{r}|>{r}<|im_middle|>{{}}<|im_end|>" for r in ("user", "assistant", "system")}), "{}<|im_end|>",
    ),
    "the prompt asks whom the answer is for": Habit(
        turns(opening="<|start_header_id|>assistant<|end_header_id|>\n\n>>>", user=_HEAD, system=_HEAD,
              assistant="<|start_header_id|>assistant<|end_header_id|>\n\n>>>all\n{}<|eot_id|>"),
        "all\n{}<|eot_id|>", eos="<|eot_id|>",
    ),
    "speakers by name, thoughts dropped": Habit(
        turns("{{ bos_token }}", "Assistant:", user="User: {strip}\n\n", system="System: {}\n\n",
              assistant="Assistant: {{ m.content.split('</think>')[-1] | trim }}\n\n"),
        " {}\n\n</s>", stripped, eos="</s>", refuses=("tools", "thought"), one_row=False,
    ),
    "seed": Habit(
        turns(opening="<seed:bos>assistant\n", end="", **dict.fromkeys(
            ("user", "assistant", "system"), "<seed:bos>{{ m.role }}\n{}<seed:eos>")), "{}<seed:eos>", eos="<seed:eos>",
    ),
}  # fmt: skip
