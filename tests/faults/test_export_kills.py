"""An export that is killed at a file event leaves no folder of its name, or the whole one; repeated it is whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from lab import at_event, kill, workplace
from transformers import AutoConfig, AutoTokenizer

from inlay.adapters.exports.form import ExportSource
from inlay.adapters.exports.table import EXPORTS
from inlay.adapters.lowrank import lowrank_of
from inlay.config.sections.data import DataConfig
from inlay.config.sections.generation import GenerationConfig
from inlay.data.encoding.encoder import Encoder
from inlay.methods.adapter_state import AdapterState
from inlay.models.base import BaseRef
from inlay.runs.reporter import PlainReporter
from inlay.storage import verified
from inlay.workflows.adapter_library.export import Exported, write_export
from training_runs import Forked

MODULE = "model.layers.0.self_attn.q_proj"


def source_on(base: Path) -> ExportSource:
    tensors = {
        f"base_model.model.{MODULE}.lora_A.weight": torch.ones(4, 32),
        f"base_model.model.{MODULE}.lora_B.weight": torch.ones(32, 4),
    }
    state = AdapterState({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": [MODULE]}, tensors)
    encoder = Encoder.of(AutoTokenizer.from_pretrained(str(base)), DataConfig(train="-"))
    return ExportSource(
        "a", state, lowrank_of(state, "b" * 64), "", BaseRef(str(base), base), AutoConfig.from_pretrained(str(base)), encoder,
        GenerationConfig(),
    )  # fmt: skip


def export(source: ExportSource, to: str, out: Path) -> None:
    found = Exported("a", "i" * 64, to, None, (), "float32", 8)
    write_export(found, EXPORTS[to], source, out, (), PlainReporter())


def killed_at_each(to: str, source: ExportSource, folder: Path) -> list[str]:
    faults, event = list[str](), 1
    while True:
        out = folder / f"at-{event}"
        if (pid := os.fork()) == 0:
            at_event(folder, event, kill)(None)
            export(source, to, out)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        if out.exists():
            verified(out)
        else:
            export(source, to, out)
        if verified(out)["to"] != to or EXPORTS[to].read_back(source, out).error > 1e-6:
            faults.append(f"{to}, event {event}: not the export")
        shutil.rmtree(folder)
        folder.mkdir()
        if not killed:
            return [*faults, *([] if event > 5 else [f"{to}: only {event} events"])]
        event += 1


def campaign(base: Path, found: str) -> None:
    source, faults = source_on(base), list[str]()
    with workplace() as folder:
        for to in ("gguf", "mlx", "ollama", "peft"):
            (folder / to).mkdir()
            faults += killed_at_each(to, source, folder / to)
    Path(found).write_text(json.dumps(faults))


@pytest.mark.slow
def test_an_export_killed_at_any_file_event_leaves_no_half_folder(tiny_base: Path, tmp_path: Path) -> None:
    code, printed = Forked(partial(campaign, tiny_base, str(tmp_path / "found.json")), tmp_path).wait(600)
    assert code == 0, printed
    assert json.loads((tmp_path / "found.json").read_text()) == []
