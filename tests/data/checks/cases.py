"""Rows that a check finds something in, by case, and rows that only look like it."""

from __future__ import annotations

from typing import Any

KEY = "AKIA" + "Q7RT2WXJ5LMN3VKP"
GITHUB = "ghp_" + "a8Kd93jfLq02mZx7Yb5Rt6Uw1Vc4Ne0Ps9Qg"
CARD = "4539 1488 0343 6467"
LOOP = "I am not sure. " + "and then we went there again, " * 40


def qa(question: str, answer: str) -> dict[str, str]:
    return {"question": question, "answer": answer}


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


FOUND: dict[str, tuple[str, list[dict[str, Any]]]] = {
    # name: (kind, rows besides clean ones)
    "nul": ("nul-character", [qa("What?", "a\0b")]),
    "replacement character": ("replacement-character", [qa("Caf\ufffd?", "yes")]),
    "mojibake": ("mojibake", [qa("Where is the cafÃ©?", "there")]),
    "mojibake of quotes": ("mojibake", [qa("It doesnâ€™t work", "restart it")]),
    "mojibake of emoji": ("mojibake", [qa("Hi", "Hello ðŸ˜€")]),
    "mojibake of cyrillic": ("mojibake", [qa("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "ok")]),
    "mojibake of chinese": ("mojibake", [qa("ä¸\xadæ–‡", "ok")]),
    "mojibake of a space": ("mojibake", [qa("10Â\xa0kg", "ok")]),
    "terminal colours": ("control-character", [qa("What?", "\x1b[31mred\x1b[0m")]),
    "an override of the direction": ("bidi-control", [qa("RTL", "abc \u202edef\u202c ghi")]),
    "an override in arabic": ("bidi-control", [qa("مرحبا", "\u202eمرحبا\u202c")]),
    "isolates in code": ("bidi-control", [qa("Code?", "x = 1 \u2066# y\u2069")]),
    "hidden tags": ("tag-character", [qa("tag", "x\U000e0041\U000e0042")]),
    "zero-width spaces": ("invisible-character", [qa("What\u200b is amber?", "A resin.")]),
    "byte order marks of joined files": ("invisible-character", [qa("\ufeffWhat?", "A \ufeffresin.")]),
    "soft hyphens": ("invisible-character", [qa("What?", "A fos\xadsil.")]),
    "an open code block": ("unclosed-code-fence", [qa("Show code", "```python\nprint(1)\n")]),
    "a thought without its beginning": ("unopened-thought", [qa("17 + 26?", "Tens first: 37, then 43.\n</think>\n\n43")]),
    "an open block in a list": ("unclosed-code-fence", [qa("Show code", "1. So:\n   ```sh\n   ls\n   ```\n2. ```sh\n   ls")]),
    "an image": ("media-placeholder", [qa("<image>\nWhat is it?", "A cat.")]),
    "an image of LLaVA": ("media-placeholder", [qa("<im_start><image><im_end> Describe it.", "A cat.")]),
    "an image of Qwen": ("media-placeholder", [qa("<|vision_start|><|image_pad|><|vision_end|>What?", "A cat.")]),
    "a video": ("media-placeholder", [qa("<video>What happens?", "A cat jumps.")]),
    "a sound": ("media-placeholder", [qa("<audio> Who speaks?", "A cat.")]),
    "html entities": ("html-entity", [qa("a &amp; b?", "yes")]),
    "no words": ("answer-without-words", [qa("What?", "...")]),
    "missing value": ("answer-says-nothing", [qa("What?", "N/A")]),
    "echo": ("answer-is-the-question", [qa("Please tell me all about the opening hours of it.", "please tell me  all about the opening hours of it.")]),
    "loop": ("repeating-answer", [qa("What?", LOOP)]),
    "placeholder": ("placeholder", [qa("Who are you?", "I am {{name}}, made by {{author}}.")]),
    "insert here": ("placeholder", [qa("Who?", "Dear [insert name here], hello.")]),
    "boilerplate": ("assistant-boilerplate", [qa("Who?", "As an AI language model, I cannot say.")]),
    "duplicate": ("duplicate", [qa("Who is it?", "Me."), qa("who  is it?", "me.")]),
    "several answers": ("several-answers", [qa("Tell a long story", "Once there was a fox who lived in a wood far away."), qa("tell a long story", "Long ago a bear went out to look for some honey.")]),
    "aws key": ("aws-access-key", [qa("Key?", f"Use {KEY} for it")]),
    "github token": ("github-token", [qa("Key?", f"token {GITHUB}")]),
    "private key": ("private-key", [qa("Key?", "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA" * 20 + "\n-----END RSA PRIVATE KEY-----")]),
    "password in an address": ("password-in-an-address", [qa("Where?", "postgres://admin:Tr0ub4dor9x@db.acme.io/main")]),
    "card": ("card-number", [qa("Pay?", f"My card is {CARD}, thanks")]),
    "e-mail": ("e-mail-address", [qa("Who?", "write to jane.doe@acme.io")]),
    "phone": ("phone-number", [qa("Who?", "call +49 30 9018 2042")]),
}  # fmt: skip


FINE: dict[str, list[dict[str, Any]]] = {
    "accents": [qa("Où est «LE CAFÉ»?", "Là-bas, à côté du musée. IRMÃ, Ærø, Ångström, naïve, Â, ÂGE")],
    "german quotes": [qa("Was ist „Spaß“?", "Eine „Süße“ Sache – größer…")],
    "many scripts": [qa("Привет, как дела?", "Всё хорошо"), qa("中文怎么说？", "你好。"), qa("שלום", "مرحبا"), qa("नमस्ते", "สวัสดี")],
    "isolates in hebrew": [qa("שלום \u2066(x)\u2069", "שלום")],
    "words of thai": [qa("ไทย\u200bไทย", "สวัสดี")],
    "flags of regions": [qa("Flag?", "Scotland: \U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f")],
    "a thought": [qa("17 + 26?", "<think>\n37, 43.\n</think>\n\n43"), qa("HTML?", "The tag </think> ends it."), qa("No thought?", "\n</think>\n\nNo.")],
    "a block in a block": [qa("Markdown?", "````md\n```py\nx\n```\n````"), qa("Inline?", "```x``` and ~~~ there")],
    "a block that the question opens": [qa("Go on:\n```py\nx = 1", "y = 2\n```")],
    "elements of a web page": [qa("Play it?", "<video src='a.mp4'></video>"), qa("What is SVG?", "<svg><image></image></svg>")],
    "emoji": [qa("Fun?", "👍🏽 yes 👨‍👩‍👧 ❤️")],
    "code": [qa("Code?", "```python\nif a & b:\n    x['k'] = [1, 2, 3]\n\treturn f'{x}'\n```")],
    "jinja in a question": [qa("What is {{ name }} in jinja?", "A variable")],
    "numbers": [qa("Pi to many places?", "3.14159265358979323846"), qa("1234567890123456 / 3?", "411522630041152"), qa("Year?", "In 1999-2001, on 2024-05-17 at 10:30:55")],
    "a table": [qa("Table?", "| a | b |\n|---|---|\n" + "".join(f"| {n} | {n * n} |\n" for n in range(40)))],
    "a card that fails its checksum": [qa("Card?", "4539 1488 0343 6468")],
    "all the same digit": [qa("Card?", "0000 0000 0000 0000")],
    "example key": [qa("Key?", "AKIAIOSFODNN7EXAMPLE or sk-your-key-goes-here-xxxxxxxxxxxxxxxxxxxxxx")],
    "example mail": [qa("Mail?", "name@example.com and user@localhost, pip install a@b")],
    "a date with a time zone": [qa("When?", "Wed Sep 05 00:37:15 +0000 2012, in the form '+000000120'")],
    "fictional phone": [qa("Phone?", "(212) 555-0123")],
    "short answers": [qa("Which label?", "7"), qa("Truth?", "No"), qa("Grade?", "A+")],
    "a poem with a refrain": [qa("Sing", "Row, row, row your boat, gently down the stream.\n" * 4)],
    "a system turn": [chat(("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"))],
    "short echo": [qa("ping", "ping")],
    "isbn, iban, hashes": [qa("Ids?", "ISBN 978-3-16-148410-0, DE89 3704 0044 0532 0130 00, 9f86d081884c7d659a2feaa0c55ad015, 550e8400-e29b-41d4-a716-446655440000")],
}  # fmt: skip
