"""Programs that run in an interpreter of their own, with another program's packages, and answer golden prompts there.

Each is called with BASE EXPORT GOLDENS OUT and writes {"version", "adapter": [ids, …], "base": [ids, …]} to OUT.
"""

from __future__ import annotations

_HEAD = """
import importlib.metadata, json, os, sys
base, export, goldens, out = sys.argv[1:]
goldens = [json.loads(line) for line in open(goldens, encoding="utf-8")]

def write(package, adapter, bare):
    found = {"version": package + " " + importlib.metadata.version(package), "adapter": adapter, "base": bare}
    with open(out, "w", encoding="utf-8") as file:
        json.dump(found, file)
"""

LLAMACPP = (
    _HEAD
    + """
import glob, urllib.request
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = base
params.n_ctx, params.n_parallel, params.port = 256, 1, 0
lora = xllamacpp.CommonAdapterLoraInfo()
lora.path, lora.scale = glob.glob(export + "/*.gguf")[0], 1.0
params.lora_adapters = [lora]
server = xllamacpp.Server(params)

def answers(scale):
    found = []
    for golden in goldens:
        request = {
            "prompt": golden["prompt_ids"], "n_predict": len(golden["ids"]), "temperature": 0.0, "repeat_penalty": 1.0,
            "return_tokens": True, "lora": [{"id": 0, "scale": scale}],
        }
        body = json.dumps(request).encode()
        asked = urllib.request.Request(server.listening_address + "/completion", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked) as answer:
            found.append(json.load(answer)["tokens"])
    return found

write("xllamacpp", answers(1.0), answers(0.0))
os._exit(0)  # its server's threads do not end by themselves
"""
)

MLX = (
    _HEAD
    + """
import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import generate_step

def answers(adapter):
    model, _ = load(base, adapter_path=adapter)
    found = []
    for golden in goldens:
        steps = generate_step(mx.array(golden["prompt_ids"]), model, max_tokens=len(golden["ids"]))
        found.append([int(token) for token, _ in steps])
    return found

write("mlx-lm", answers(export), answers(None))
"""
)

VLLM = (
    _HEAD
    + """
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":
    model = LLM(
        base, enable_lora=True, max_lora_rank=8, dtype="float32", enforce_eager=True, max_model_len=256,
        skip_tokenizer_init=True, max_num_seqs=4,
    )

    def answers(adapter):
        found = []
        for golden in goldens:
            sampling = SamplingParams(temperature=0.0, max_tokens=len(golden["ids"]), ignore_eos=True, detokenize=False)
            done = model.generate({"prompt_token_ids": golden["prompt_ids"]}, sampling, lora_request=adapter, use_tqdm=False)
            found.append(list(done[0].outputs[0].token_ids))
        return found

    write("vllm", answers(LoRARequest("support", 1, export)), answers(None))
"""
)
