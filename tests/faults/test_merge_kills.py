"""A merge that is killed at a file event leaves no folder of its name, or the whole one; repeated it is as if never killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from lab import at_event, kill, workplace
from transformers import AutoModelForCausalLM

from inlay.adapters.reference import reference
from inlay.methods.adapter_state import AdapterState
from inlay.runs.reporter import PlainReporter
from inlay.storage import StorageError, verified
from inlay.workflows.adapter_library.merge import MergeOptions, merge
from training_runs import Forked

MODULES = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]


def sharded(whole: Path, folder: Path) -> Path:
    """The base in several files: its merge is then several files, too."""
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(folder, max_shard_size="150KB")
    return folder


def write_adapter(folder: Path, base: Path) -> None:
    """One that changes a weight in each layer."""
    tensors = {}
    for module in MODULES:
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.ones(4, 32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.ones(32, 4)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": MODULES}
    AdapterState(settings | {"base_model_name_or_path": str(base)}, tensors).write(folder)


def killed_at_each(merged: Callable[[Path], object], folder: Path, step: int) -> list[str]:
    """Faults after kills at every `step`th event, and what was not as after a merge that nothing killed."""
    merged(folder / "unbroken")
    whole, faults, event = verified(folder / "unbroken")["files"], list[str](), 1
    shutil.rmtree(folder / "unbroken")
    while True:
        out = folder / "merged"
        if (pid := os.fork()) == 0:
            at_event(folder, event, kill)(None)
            merged(out)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        try:
            if not out.exists():
                merged(out)
            if verified(out)["files"] != whole:
                faults.append(f"event {event}: another model")
        except StorageError as error:
            faults.append(f"event {event}: {error}")
        left = sorted(path.name for path in folder.iterdir() if path != out)
        faults += [f"event {event}: left {', '.join(left)}"] if left else []
        shutil.rmtree(folder)
        folder.mkdir()
        if not killed:
            return [*faults, *([] if event > 15 else [f"only {event} events"])]
        event += step


def campaign(whole: Path, step: int, found: str) -> None:
    with workplace() as folder:
        base = sharded(whole, folder / "base")
        (folder / "adapter").mkdir()
        write_adapter(folder / "adapter", base)
        one = reference(str(folder / "adapter"), str(folder))
        merged = partial(merge, [(one, 0.5)], options=MergeOptions(check=False), reporter=PlainReporter())
        (folder / "merges").mkdir()
        faults = killed_at_each(lambda out: merged(out=out), folder / "merges", step)
    Path(found).write_text(json.dumps(faults))


def faults_of_campaign(base: Path, folder: Path, step: int) -> list[str]:
    code, printed = Forked(partial(campaign, base, step, str(folder / "found.json")), folder).wait(600)
    assert code == 0, printed
    found: list[str] = json.loads((folder / "found.json").read_text())
    return found


def test_a_killed_merge_leaves_no_half_folder(tiny_base: Path, tmp_path: Path) -> None:
    assert faults_of_campaign(tiny_base, tmp_path, step=9) == []


@pytest.mark.slow
def test_a_merge_killed_at_any_file_event_leaves_no_half_folder(tiny_base: Path, tmp_path: Path) -> None:
    assert faults_of_campaign(tiny_base, tmp_path, step=1) == []
