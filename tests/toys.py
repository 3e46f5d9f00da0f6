"""Small tokenizers and chat templates of every kind, made here."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from parts import NANO

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRIPS = CHATML.replace("{{ m.content }}", "{{ m.content | trim }}")
SYSTEM_DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
NO_END = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A: {{ m.content }}\n"
    "{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
FORGETS = (  # only the last answer keeps what stands before </think>
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' ' + m.name if m.name else '' }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<|tool_call|>{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "strips": STRIPS,
    "system default": SYSTEM_DEFAULT,
    "no end": NO_END,
    "forgets": FORGETS,
    "tools": TOOLS,
    "llama2": LLAMA2,
    "none": None,
}


def nano(template: str | None = None) -> Any:
    """The built-in byte-level tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(str(NANO))
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def sentencepiece(template: str | None = None, prefix: str = "always") -> Any:
    """A BPE with byte fallback, a space before every text, and a BOS that it adds; like Llama 2 or Mistral."""
    words = ["▁a", "▁b", "he", "ll", "hell", "▁hell", "▁hello", "th", "▁th", "▁the", "st", "IN", "INST"]
    letters = sorted({c for w in words for c in w} | set("abcdefghijklmnopqrstuvwxyzIQA[]/:.\n▁"))
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))])}
    for piece in letters + words:
        vocab.setdefault(piece, len(vocab))
    merges = [("▁", "a"), ("▁", "b"), ("h", "e"), ("l", "l"), ("he", "ll"), ("▁", "hell"), ("▁hell", "o"),
              ("t", "h"), ("▁", "th"), ("▁th", "e"), ("s", "t"), ("I", "N"), ("S", "T"), ("IN", "ST")]  # fmt: skip
    for a, b in merges:
        for piece in (a, b, a + b):
            vocab.setdefault(piece, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prefix == "always":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = template
    return made
