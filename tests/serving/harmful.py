"""A base whose chat template does harm when the first message is a certain word."""

from __future__ import annotations

from pathlib import Path

from parts import NANO, make_base

HARM = {
    "SPIN": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "HEAP": "{{ (messages[0].content * (2 ** 33)) | length }}",
}
"""Word -> loops that take for ever; more memory than a prompt may have."""


def make_harmful_base(folder: Path) -> Path:
    """A tiny random Llama with that template."""
    make_base(folder)
    harm = [f"{{%- if messages[0].content == '{word}' %}}{text}{{% endif -%}}" for word, text in HARM.items()]
    ordinary = (NANO / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text("".join(harm) + ordinary, encoding="utf-8")
    return folder
