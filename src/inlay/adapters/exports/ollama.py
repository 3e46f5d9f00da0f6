"""Ollama: the GGUF file of the adapter, and a Modelfile with the run's sampling and its chat template where that is proven."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from inlay.adapters.exports import gguf
from inlay.adapters.exports.form import ExportSource, Form
from inlay.storage import write_file

Conversation = Sequence[tuple[str, str]]
"""(role, text) of each message."""


class Turns(NamedTuple):
    """A chat template that writes each message alike; Ollama's text and the rendering to compare are made of it."""

    name: str
    before: str
    """Text before a message, with `{role}`."""
    after: str
    opening: str
    """Text that opens an answer."""
    assistant: str = "assistant"
    """Name of the assistant's role."""

    def rendered(self, conversation: Conversation) -> str:
        """The prompt of a conversation."""
        return "".join(map(self._message, conversation)) + self.opening

    def _message(self, message: tuple[str, str]) -> str:
        role, text = message
        return self.before.format(role=self.assistant if role == "assistant" else role) + text + self.after

    def for_ollama(self) -> str:
        """The same as a template of Go."""
        role = "{{ .Role }}"
        if self.assistant != "assistant":
            role = f'{{{{ if eq .Role "assistant" }}}}{self.assistant}{{{{ else }}}}{{{{ .Role }}}}{{{{ end }}}}'
        message = self.before.replace("{role}", role) + "{{ .Content }}" + self.after
        return "{{- range .Messages }}" + message + "{{ end }}" + self.opening


KNOWN: Final = (
    Turns("ChatML", "<|im_start|>{role}\n", "<|im_end|>\n", "<|im_start|>assistant\n"),
    Turns(
        "Llama 3", "<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    Turns("Gemma", "<start_of_turn>{role}\n", "<end_of_turn>\n", "<start_of_turn>model\n", "model"),
)  # fmt: skip
_PLAIN: Final[tuple[Conversation, ...]] = (
    (("user", "One?"),),
    (("user", "One?"), ("assistant", "Two."), ("user", "Three\nfour?")),
)
_SYSTEM: Final = ("system", "Be brief.")


class Proven(NamedTuple):
    """A known template that renders what the base's own does."""

    turns: Turns
    system: str
    """System message that the base's template adds where a conversation has none."""
    takes_system: bool
    """Whether conversations with a system message are rendered alike, too."""


def proven_template(tokenizer: Any) -> Proven | None:
    """The known template with the same text as the tokenizer's for conversations with and without a system message."""

    def own(turns: Turns, conversation: Conversation) -> str | None:
        messages = [{"role": role, "content": text} for role, text in conversation]
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception:  # noqa: BLE001 -- a template may refuse a conversation with any error
            return None
        bos = tokenizer.bos_token or ""  # Ollama adds it; that of SmolLM2 is the ordinary opening of a message
        return text if bos and turns.before.startswith(bos) else text.removeprefix(bos)

    if not tokenizer.chat_template:
        return None
    for turns in KNOWN:
        takes_system = all(own(turns, (_SYSTEM, *one)) == turns.rendered((_SYSTEM, *one)) for one in _PLAIN)
        system = _added_system(own(turns, _PLAIN[0]) or "", turns)
        first = (("system", system),) if system else ()
        if all(own(turns, one) == turns.rendered((*first, *one)) for one in _PLAIN):
            return Proven(turns, system, takes_system)
    return None


def _added_system(rendered: str, turns: Turns) -> str:
    """The system message at the beginning of a rendered conversation that has none."""
    before = turns.before.format(role="system")
    return rendered.removeprefix(before).partition(turns.after)[0] if rendered.startswith(before) else ""


def write(source: ExportSource, folder: Path) -> None:
    """Writes the GGUF file and `Modelfile`."""
    gguf.write(source, folder)
    write_file(folder / "Modelfile", modelfile(source))


def modelfile(source: ExportSource) -> str:
    """The Modelfile."""
    base = source.base
    lines = [
        f"# The model that {source.name} was trained on: {base.hub_id or base.name}. It may be replaced by the same weights in",
        "# another place: a GGUF file, or a model of Ollama. Quantized weights are another base than was measured.",
        f"FROM {base.gguf.file.absolute() if base.gguf else base.folder.absolute()}",
        f"ADAPTER ./{gguf.file_name(source)}",
        *_parameters(source),
        *_template(source),
    ]
    return "\n".join(lines) + "\n"


def _parameters(source: ExportSource) -> list[str]:
    sampling, encoder = source.generation, source.encoder
    values = {
        "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k,
        "repeat_penalty": sampling.repetition_penalty, "repeat_last_n": -1, "num_predict": sampling.max_new_tokens,
        "seed": sampling.seed,
    }  # fmt: skip
    stops = [*sampling.stop, *(encoder.piece(one) for one in sorted(encoder.stop_ids))]
    lines = [f"PARAMETER {name} {value}" for name, value in values.items()]
    for text in dict.fromkeys(stops):
        can_be_quoted = text and not text.endswith('"') and '"""' not in text
        lines.append(
            f"PARAMETER stop {_quoted(text)}"
            if can_be_quoted
            else f"# A Modelfile cannot quote the stop string {text!r}."
        )
    if sampling.no_repeat_ngram_size:
        lines.append(
            f"# generation.no_repeat_ngram_size ({sampling.no_repeat_ngram_size}) has no counterpart in Ollama."
        )
    return lines


def _template(source: ExportSource) -> list[str]:
    proven = proven_template(source.encoder.tokenizer)
    if proven is None:
        known = ", ".join(turns.name for turns in KNOWN)
        return [
            f"# TEMPLATE is not written: the chat template of the training renders other text than {known} do.",
            "# Write it yourself, or keep the one of the base in Ollama.",
        ]
    lines = [f"# {proven.turns.name}: renders the same text as the chat template of the training."]
    if not proven.takes_system:
        lines.append("# Not with a system message: the training's template writes or refuses that in another way.")
    lines.append(f'TEMPLATE """{proven.turns.for_ollama()}"""')
    return [*lines, f"SYSTEM {_quoted(proven.system)}"] if proven.system else lines


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'


def commands(source: ExportSource, folder: Path) -> list[str]:
    """The model made and run."""
    name = shlex.quote(source.name)
    return [f"ollama create {name} -f {shlex.quote(str(folder / 'Modelfile'))}", f"ollama run {name}"]


OLLAMA = Form(
    "Ollama", gguf.limits, write, gguf.read_back, commands,
    "Ollama was not run, and no version of it was tried: the Modelfile follows its documentation.",
)  # fmt: skip
