"""Every proof of a run holds for a sound run and fails for one that was broken on purpose."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inlay import api, storage
from inlay.data.encoding.encoder import Encoder, TokenizedSequence
from inlay.errors import RunError, TrainingError
from inlay.proof import verify
from inlay.runs.folder import Run
from parts import make_base, qa_rows, save_base, write_rows
from training_runs import train

NAMES = {
    "files", "adapter finite", "adapter moved", "trained tokens", "mask", "end of turn", "saved = in memory",
    "adapter off = base", "served = trained",
}  # fmt: skip
Tree = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, its data and two runs, `a` and `b`, of three steps."""
    folder = tmp_path_factory.mktemp("sound")
    make_base(folder / "base")
    write_rows(folder / "data.jsonl", qa_rows(40))
    for name, seed in (("a", 0), ("b", 1)):
        train(tree(folder, name, seed=seed))
    return folder


def tree(folder: Path, name: str, **over: Any) -> dict[str, Any]:
    steps = {"batch_size": 8, "micro_batch_size": 4, "max_steps": 3, "eval_steps": 3, "learning_rate": 1e-2}
    return {
        "model": {"base_model": str(folder / "base"), "device": "cpu", "dtype": "float32"},
        "adapter": {"rank": 4, "init": over.pop("init", "default")},
        "data": {"train": str(folder / "data.jsonl")},
        "train": steps | over,
        "eval": {"resamples": 100},
        "track": {"trackers": []},
        "output": {"folder": str(folder / "results"), "name": name},
    }


def test_a_state_space_model_read_back_is_the_one_in_memory_to_the_bit(tmp_path: Path) -> None:
    """Its matmuls are others where a weight requires a gradient."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 1, "vocab_size": 4096, "initializer_range": 0.15}
    save_base(tmp_path / "base", MambaForCausalLM(MambaConfig(**shape)))
    write_rows(tmp_path / "data.jsonl", [{"question": f"Which {n}?", "answer": f"That {n}."} for n in range(10)])
    settings = tree(tmp_path, "a", max_steps=1)
    settings["adapter"]["target_modules"] = ["in_proj", "x_proj"]
    run = train(settings)
    assert json.loads((run.path / verify.PROOFS).read_text())["passed"]
    assert run.record.status == "finished"


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Run:
    """A copy of run `a` whose base and data may be broken too."""
    shutil.copytree(sound, tmp_path / "w")
    copy = Run(tmp_path / "w" / "results" / "a")
    for path in (copy.path / "config.yaml", copy.path / "proofs.json"):
        path.write_text(path.read_text().replace(str(sound), str(tmp_path / "w")))
    note = json.loads((copy.path / "proofs.json").read_text())
    note["evidence"]["files"]["config.yaml"] = storage.sha256_of(copy.path / "config.yaml")
    (copy.path / "proofs.json").write_text(json.dumps(note))
    return copy


def outcomes(run: Run) -> dict[str, bool | None]:
    return {proof["name"]: proof["passed"] for proof in api.verify(run)["proofs"]}


def failing(run: Run) -> set[str]:
    return {name for name, passed in outcomes(run).items() if passed is False}


def test_every_proof_of_a_sound_run_holds_at_its_end_and_later(run: Run) -> None:
    at_the_end = json.loads((run.path / "proofs.json").read_text())
    assert at_the_end["passed"]
    assert {proof["name"] for proof in at_the_end["proofs"]} == NAMES
    assert outcomes(run) == dict.fromkeys(NAMES, True)
    mask = next(proof for proof in api.verify(run)["proofs"] if proof["name"] == "mask")
    assert mask["samples"][0].endswith(": 'We take care of parcels number 0.<|im_end|>'")


def test_the_proofs_hold_for_an_adapter_that_starts_from_the_weights(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    write_rows(tmp_path / "data.jsonl", qa_rows(40))
    assert failing(train(tree(tmp_path, "p", init="pissa", learning_rate=1e-3))) == set()


def test_without_its_data_a_run_keeps_its_other_proofs(run: Run) -> None:
    (run.path.parents[1] / "data.jsonl").unlink()
    assert outcomes(run) == dict.fromkeys(NAMES, True) | {"trained tokens": None}


@pytest.mark.parametrize(
    "broken", ["checkpoints/step-000003/optimizer.safetensors", "metrics.jsonl", "adapter/card.json"]
)
def test_a_changed_byte_in_a_file_of_the_run_is_found(run: Run, broken: str) -> None:
    content = bytearray((run.path / broken).read_bytes())
    content[len(content) // 2] ^= 1
    (run.path / broken).write_bytes(content)
    assert "files" in failing(run)


def test_an_edited_config_is_found(run: Run) -> None:
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    assert "files" in failing(run)


def change_weights(run: Run, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Other weights in the adapter folder, under a manifest that says so."""
    path = run.adapter / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    storage.write_manifest(run.adapter, {"step": 3})


def first(tensors: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    return tensors[min(name for name in tensors if kind in name)]


def test_a_value_that_is_not_finite_is_found(run: Run) -> None:
    change_weights(run, lambda tensors: first(tensors, "lora_A")[0].fill_(float("nan")))
    assert "adapter finite" in failing(run)


def test_a_matrix_that_never_moved_is_found(run: Run) -> None:
    change_weights(run, lambda tensors: first(tensors, "lora_B").zero_())
    assert failing(run) == {"adapter moved", "saved = in memory"}


def test_the_adapter_of_another_run_is_found(run: Run, sound: Path) -> None:
    shutil.rmtree(run.adapter)
    shutil.copytree(sound / "results" / "b" / "adapter", run.adapter)
    assert failing(run) == {"saved = in memory"}


def test_a_wrong_count_of_trained_tokens_is_found(run: Run) -> None:
    result = replace(run.result, trained_tokens_seen=run.result.trained_tokens_seen - 1)
    run.write_record(replace(run.record, result=result))
    assert failing(run) == {"trained tokens"}


def test_another_base_is_found(run: Run) -> None:
    make_base(run.path.parents[1] / "base", seed=1)
    assert failing(run) == {"saved = in memory", "adapter off = base", "served = trained"}


def test_a_prompt_that_would_be_served_otherwise_than_trained_is_found(run: Run) -> None:
    template = run.adapter / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "helper"))
    storage.write_manifest(run.adapter, {"step": 3})
    assert failing(run) == {"served = trained"}


def test_lost_evidence_is_a_failed_proof_and_no_adapter_is_an_error(run: Run) -> None:
    (run.path / "proofs.json").write_text("{")
    assert {"files", "adapter moved", "saved = in memory"} <= failing(run)
    shutil.rmtree(run.adapter)
    with pytest.raises(RunError, match="has no adapter yet"):
        api.verify(run)


def shifted(self: Encoder, *parts: Any) -> TokenizedSequence:
    tokens = assemble(self, *parts)
    tokens.weights[1:] = tokens.weights[:-1].copy()
    return tokens


def endless(self: Encoder, *parts: Any) -> TokenizedSequence:
    tokens = assemble(self, *parts)
    tokens.weights[tokens.weights.nonzero()[0][-1]] = 0
    return tokens


assemble = Encoder._assemble


@pytest.mark.parametrize(("wrong", "named"), [(shifted, "mask"), (endless, "end of turn")])
def test_a_wrong_mask_fails_the_run_that_trained_with_it(
    config_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Any, named: str
) -> None:
    monkeypatch.setattr(Encoder, "_assemble", wrong)
    with pytest.raises(TrainingError, match=rf"of 9 proofs failed[^$]*\n  {named}: ") as caught:
        train(config_tree(output={"name": "a"}, data={"cache": False}))
    assert caught.value.exit_code == 1
    run = Run(tmp_path / "results" / "a")
    assert run.status == "failed"
    assert not json.loads((run.path / "proofs.json").read_text())["passed"]


@pytest.mark.parametrize(
    ("name", "named"), [("adapter_model.safetensors", "saved = in memory"), ("tokenizer.json", "served = trained")]
)
def test_an_adapter_folder_that_reads_back_otherwise_fails_the_run_and_resuming_mends_it(
    config_tree: Tree, monkeypatch: pytest.MonkeyPatch, name: str, named: str
) -> None:
    from inlay.training import job

    whole = job.replace_folder

    def damaging(final: Path, fill: Callable[[Path], None], about: dict[str, Any]) -> None:
        whole(final, fill, about)
        if name == "tokenizer.json":
            (final / name).write_text((final / name).read_text().replace('"the"', '"teh"', 1))
        else:
            save_file({n: t + 1e-3 for n, t in load_file(final / name).items()}, final / name)

    monkeypatch.setattr(job, "replace_folder", damaging)
    with pytest.raises(TrainingError, match=f"\n  {named}: "):
        train(config_tree(output={"name": "a"}))
    monkeypatch.undo()
    assert failing(train(config_tree(output={"name": "a"}), resume=True)) == set()


def test_a_base_that_training_has_changed_fails_the_run(config_tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    from inlay.training.job import AdapterJob

    export = AdapterJob.export

    def changing(job: Any) -> int:
        next(p for n, p in job.model.named_parameters() if "down_proj.base_layer" in n).data.add_(1e-3)
        return export(job)

    monkeypatch.setattr(AdapterJob, "export", changing)
    with pytest.raises(TrainingError, match="adapter off = base: base before and after training"):
        train(config_tree())


@pytest.mark.parametrize("at", [1, 4])
def test_logits_that_are_not_finite_when_they_are_looked_at_fail_the_run(
    config_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    looks, whole = [0], verify.predictions

    def spoilt(*arguments: Any, **options: Any) -> Any:
        looks[0] += 1
        weights, targets, logits = whole(*arguments, **options)
        return weights, targets, logits * math.nan if looks[0] == at else logits

    monkeypatch.setattr(verify, "predictions", spoilt)
    with pytest.raises(TrainingError, match=r"saved = in memory: .*differ|adapter off = base: .*differ"):
        train(config_tree(output={"name": "a"}))
    monkeypatch.undo()
    assert looks[0] == 5
    assert not json.loads((tmp_path / "results/a/proofs.json").read_text(), parse_constant=pytest.fail)["passed"]
    assert failing(train(config_tree(output={"name": "a"}), resume=True)) == set()


def test_the_program_prints_a_line_for_each_proof_and_ends_with_1_when_one_fails(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    from inlay.cli import main

    def verify(*flags: str) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as caught:
            main(["verify", str(run.path), *flags])
        return caught.value.code, capsys.readouterr().out

    code, out = verify()
    assert (code, out.count("\npass  ") + out.startswith("pass  ")) == (0, 9)
    assert out.rstrip().endswith(f"9 of 9 proofs hold for {run.path}")
    (run.path / "metrics.jsonl").unlink()
    code, out = verify("--json")
    assert code == 1
    assert [proof["name"] for proof in json.loads(out)["proofs"] if not proof["passed"]] == ["files"]
