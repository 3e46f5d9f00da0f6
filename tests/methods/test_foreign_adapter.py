"""An adapter from elsewhere computes here what it computes in PEFT, or is refused in one line that harms nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

from families import family
from inlay.errors import AdapterError
from inlay.methods import adapter_file_checks as checks
from inlay.methods.adapter_state import AdapterState
from inlay.methods.method import plain
from inlay.models.base import find_base
from methods.hostile_adapters import (
    BOMB,
    CASES,
    SETTINGS,
    WEIGHTS,
    entry,
    file_of,
    honest_settings,
    honest_tensors,
    write,
)
from methods.test_adapter import decoder, logits

DIGEST = "0" * 64
SECONDS, MEGABYTES = 1.0, 100


@pytest.fixture(scope="module")
def base() -> Any:
    """The tiny Llama that every refused folder is offered to."""
    return decoder("llama")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An honest adapter, to be damaged."""
    write(tmp_path / "adapter")
    return tmp_path / "adapter"


def peak_bytes(*, reset: bool = False) -> int:
    """The most memory that this process has held since the last reset; 0 where the system does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0
    except OSError:
        return 0


def outcome(folder: Path, base: Any) -> str:
    """The error that a folder ends with, empty where it is loaded."""
    try:
        AdapterState.read(folder, DIGEST).attach_to(base)
    except AdapterError as error:
        return str(error)
    return ""


BARE = decoder("llama")


def as_it_was(base: Any, fresh: Any = BARE) -> Iterator[bool]:
    """Whether modules, parameters and their values are those of the bare base."""
    yield [(name, type(module)) for name, module in base.named_modules()] == [
        (name, type(module)) for name, module in fresh.named_modules()
    ]
    yield not hasattr(base, "peft_config")
    yield all(torch.equal(one, two) for one, two in zip(base.parameters(), fresh.parameters(), strict=True))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs links and FIFOs")
@pytest.mark.parametrize("case", CASES)
def test_a_hostile_folder_is_refused_in_one_line_soon_and_in_little_memory(case: str, folder: Path, base: Any) -> None:
    CASES[case](folder)
    before, began = peak_bytes(reset=True), time.process_time()
    message = outcome(folder, base)
    took, held = time.process_time() - began, peak_bytes() - before
    assert message.startswith(f"{folder}: ")
    assert message.isprintable()
    assert len(message) < len(str(folder)) + 700
    assert took < SECONDS
    assert held < MEGABYTES * 2**20
    assert all(as_it_was(base))


def test_the_honest_folder_that_the_others_are_made_of_is_loaded(folder: Path) -> None:
    model = AdapterState.read(folder, DIGEST).attach_to(decoder("llama"))
    assert torch.equal(logits(model), logits(PeftModel.from_pretrained(decoder("llama"), str(folder)).eval()))
    assert not torch.equal(logits(model), logits(decoder("llama")))


IN_PATTERNS: dict[str, dict[str, Any]] = {
    "target_modules": {"target_modules": BOMB},
    "exclude_modules": {"target_modules": ["q_proj", "down_proj"], "exclude_modules": BOMB},
    "rank_pattern": {"rank_pattern": {BOMB: 7}},
    "layers_pattern": {"layers_to_transform": [0, 1], "layers_pattern": BOMB},
    "an invalid one": {"target_modules": "(q_proj", "rank_pattern": {"*": 3}},
}


@pytest.mark.parametrize("where", IN_PATTERNS)
def test_no_regular_expression_of_a_file_is_run(where: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits(AdapterState.read(folder).attach_to(decoder("llama")))
    write(folder, honest_settings(**IN_PATTERNS[where]))
    seen: list[str] = []
    for name in ("match", "fullmatch", "search", "compile"):
        real = getattr(re, name)
        monkeypatch.setattr(
            re, name, lambda pattern, *a, real=real, **k: [seen.append(str(pattern)), real(pattern, *a, **k)][1]
        )
    model = AdapterState.read(folder).attach_to(decoder("llama"))
    monkeypatch.undo()
    assert not [pattern for pattern in seen if BOMB in pattern or "(q_proj" in pattern]
    assert torch.equal(logits(model), expected)


@pytest.mark.filterwarnings("ignore")
def test_ranks_of_experts_are_those_of_peft(tmp_path: Path) -> None:
    torch.manual_seed(1)
    settings = LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=3, target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        rank_pattern={"layers.0.mlp.experts.down_proj": 3, "layers.1.mlp.experts.gate_up_proj": 4},
        alpha_pattern={"experts.down_proj": 7},
    )  # fmt: skip
    model: Any = get_peft_model(family("qwen2_moe"), settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    model.save_pretrained(str(tmp_path))
    expected = logits(PeftModel.from_pretrained(family("qwen2_moe"), str(tmp_path)).eval())
    assert torch.equal(logits(AdapterState.read(tmp_path).attach_to(family("qwen2_moe"))), expected)


BREAKS = {
    "links": ("inlay.folder_files.Path.is_symlink", lambda self: False, "settings are a link"),
    "sizes of JSON": ("inlay.folder_files.require_at_most", lambda *_: None, "settings one byte too large"),
    "settings": ("inlay.methods.lora.refuse_settings", lambda *_: None, "an unknown setting that is off"),
    "starts": ("inlay.methods.lora.refuse_start", lambda *_: None, "init_lora_weights is 'pissa' (str)"),
    "alpha patterns": ("inlay.methods.lora.refuse_alpha_patterns", lambda *_: None, "an endless alpha_pattern"),
    "names": ("inlay.methods.lora.refuse_names", lambda *_: None, "a name with .."),
    "ties": ("inlay.methods.lora.refuse_tied_embedding", lambda *_: None, "two targets tied"),
    "ranks": ("inlay.methods.lora.refuse_ranks", lambda *_: None, "r is '3' (int)"),
    "large ranks": ("inlay.methods.adapter_state.refuse_large_ranks", lambda *_: None, "a rank of 513"),
    "pairs": (
        "inlay.methods.lora.require_pairs inlay.methods.stored_layers.require_pairs", lambda *_: None, "no A",
    ),
    "shapes": ("inlay.methods.stored_layers._require_fit", lambda *_: None, "A for other inputs"),
    "finite values": ("inlay.methods.adapter_files.torch.isfinite", lambda _: torch.tensor(True), "NaN in B"),
    "the base": ("inlay.methods.adapter_state._require_base", lambda *_: None, "a card of another base"),
    "twice the same key": ("inlay.methods.adapter_files.parsed", json.loads, "a key twice"),
    "the base as it was": ("inlay.methods.peft_layers._take_back", lambda *_: None, "a layer that is no linear one"),
}  # fmt: skip


@pytest.mark.parametrize("check", BREAKS)
def test_without_a_check_its_case_ends_otherwise(check: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets, nothing, case = BREAKS[check]
    CASES[case](folder)
    expected = outcome(folder, decoder("llama"))
    base = decoder("llama")
    for target in targets.split():
        monkeypatch.setattr(target, nothing)
    try:
        found = outcome(folder, base)
    except Exception as error:  # noqa: BLE001 -- whatever no check has refused before
        found = repr(error)
    assert found != expected or not all(as_it_was(base))


@pytest.mark.parametrize(
    ("config", "known"),
    [(LoraConfig, checks.LORA), (IA3Config, checks.IA3), (PromptTuningConfig, checks.PROMPT_TUNING)],
)
def test_every_setting_that_peft_knows_is_in_the_closed_list(config: Any, known: dict[str, Any]) -> None:
    fields = {field.name for field in dataclasses.fields(config)} - {"runtime_config"}  # never written
    assert fields <= set(known)
    defaults = {name: value for name, value in plain(config().to_dict()).items() if value is not None}
    checks.refuse_settings(Path("x"), defaults, known)


def test_a_file_larger_than_any_adapter_of_its_base_is_not_read(tiny_base: Path, folder: Path) -> None:
    base = find_base(str(tiny_base))
    AdapterState.read(folder, base)
    write(folder, honest_settings(r=512))
    size = 4 * 512 * 2**16
    header = {
        f"base_model.model.l.lora_{half}.weight": entry(at, at + size, (512, 2**16))
        for half, at in (("A", 0), ("B", size))
    }
    (folder / WEIGHTS).write_bytes(file_of(header))
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size + 2 * size)
    before = peak_bytes(reset=True)
    with pytest.raises(AdapterError, match=r"more than rank 512 on all layers of .* can have"):
        AdapterState.read(folder, base)
    assert peak_bytes() - before < MEGABYTES * 2**20


def test_an_entry_of_the_hubs_cache_is_read_through_its_links(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--o--n" / "snapshots" / ("a" * 40), tmp_path / "models--o--n" / "blobs"
    write(snapshot)
    blobs.mkdir()
    for number, name in enumerate((SETTINGS, WEIGHTS)):
        blob = blobs / f"{number}".rjust(64, "0")
        (snapshot / name).rename(blob)
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    assert AdapterState.read(snapshot).tensors.keys() == honest_tensors().keys()
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdapterError, match=r"cannot be opened|is a link"):
        AdapterState.read(snapshot)


def test_a_config_of_a_model_beside_an_adapter_does_not_make_a_model_of_it(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    assert AdapterState.read(folder).method.name == "lora"
