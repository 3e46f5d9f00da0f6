"""Write nano_greedy.json: what `builtin:nano` says to five prompts. Run it after every export."""

import hashlib
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

GOLDEN = Path(__file__).with_name("nano_greedy.json")
NANO = Path(__file__).parents[2] / "src" / "inlay" / "builtin" / "nano"
PROMPTS = [
    "Once upon a time, there was a little girl who",
    "Photosynthesis is the process",
    [{"role": "user", "content": "Hello!"}],
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Tell me a story about a wolf."}],
]


def greedy() -> list[list[int]]:
    """New ids for each prompt, fp32 on the CPU; at most 24, because rounding may differ late in a text."""
    model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    answers = []
    for prompt in PROMPTS:
        text = prompt
        if not isinstance(prompt, str):
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs.input_ids.shape[1] :]
        answers.append(ids.tolist())
    return answers


def main() -> None:
    weights = hashlib.sha256((NANO / "model.safetensors").read_bytes()).hexdigest()
    GOLDEN.write_text(json.dumps({"weights_sha256": weights, "answers": greedy()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
