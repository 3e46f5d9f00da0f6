"""lm-evaluation-harness over HTTP scores a served adapter as the model in this process does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inlay import api
from inlay.adapters.reference import config_of, opened, reference
from parts import HARNESS_TASK, NANO, qa_rows


@pytest.mark.harness
@pytest.mark.parametrize("model", ["builtin:nano", "support:1"])
def test_local_completions_gives_the_log_likelihoods_of_the_model_itself(
    model: str, url: str, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = qa_rows(10)
    docs = [
        {"question": r["question"], "choices": [r["answer"], rows[n - 1]["answer"]], "gold": 0}
        for n, r in enumerate(rows)
    ]
    file = tmp_path / "shop.jsonl"
    file.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "shop.yaml").write_text(HARNESS_TASK.replace("FILE", str(file)))
    arguments = {
        "model": model, "base_url": f"{url}/v1/completions", "tokenizer": str(NANO), "tokenizer_backend": "huggingface",
        "num_concurrent": 1, "max_length": 512,
    }  # fmt: skip
    found: Any = simple_evaluate(
        model="local-completions", model_args=arguments, tasks=["shop"], log_samples=True, bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tmp_path)),
    )  # fmt: skip
    monkeypatch.setenv("INLAY_LIBRARY", str(library))
    parts = in_this_process(model)
    expected = [log_likelihoods(*parts, doc) for doc in docs]
    samples = sorted(found["samples"]["shop"], key=lambda one: one["doc_id"])
    got = [[float(response[0][0]) for response in one["resps"]] for one in samples]
    assert got == [pytest.approx(one, abs=1e-2, rel=1e-4) for one in expected]
    assert found["results"]["shop"]["acc,none"] == pytest.approx(sum(a > b for a, b in expected) / len(docs))


def in_this_process(model: str) -> tuple[Any, Any]:
    """Tokenizer and model, without a server."""
    if ":1" in model:
        loaded = api.load(model)
        return loaded.encoder.tokenizer, loaded.model
    one = reference(model, "results")
    ready = opened(one, config_of(one))
    return ready.tokenizer, ready.model


def log_likelihoods(tokenizer: Any, model: Any, doc: dict[str, Any]) -> list[float]:
    """Of each choice behind the question, with the separator that the harness puts between them."""
    import torch

    sums = []
    for choice in doc["choices"]:
        start = len(tokenizer(doc["question"], add_special_tokens=False).input_ids)
        whole = tokenizer(f"{doc['question']} {choice}", add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            logs = model(input_ids=whole).logits[0].log_softmax(-1)
        sums.append(float(logs[start - 1 : -1].gather(1, whole[0, start:, None]).sum()))
    return sums
