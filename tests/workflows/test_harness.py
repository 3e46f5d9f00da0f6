"""Tasks of lm-evaluation-harness on base and adapter: a local task file, a real run, the harness itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inlay import api
from inlay.errors import ConfigError, UserError
from inlay.workflows import harness
from parts import HARNESS_TASK, qa_rows, write_rows
from program import program
from training_runs import Quiet, train


def found(values: list[float], total: float, **over: Any) -> dict[str, Any]:
    samples = [{"doc_id": n, "filter": "none", "acc": v} for n, v in reversed(list(enumerate(values)))]
    return {
        "results": {"shop": {"name": "shop", "alias": "shop", "acc,none": total, "acc_stderr,none": 0.1}},
        "samples": {"shop": samples}, "n-samples": {"shop": {"effective": len(values)}},
        "higher_is_better": {"shop": {"acc": True}},
    } | over  # fmt: skip


def test_scores_of_documents_are_paired_by_document_and_only_where_their_mean_is_the_score() -> None:
    before, after = [0.0] * 10 + [1.0] * 10, [1.0] * 20
    (score,) = harness.paired(found(before, 0.5), found(after, 1.0), 1000, 0)
    assert (score.task, score.metric, score.documents) == ("shop", "acc,none", 20)
    assert score.difference is not None
    assert (score.difference.wins, score.difference.ties, score.difference.losses) == (10, 10, 0)
    assert score.difference.difference == 0.5
    (score,) = harness.paired(found(before, 0.7), found(after, 1.0), 1000, 0)  # no mean: something else is aggregated
    assert score.difference is None
    assert (score.base, score.adapter) == (0.7, 1.0)


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ConfigError, match=r'pip install "inlay\[harness\]"'):
        harness.find_tasks(["shop"])


@pytest.mark.harness
def test_a_local_task_file_is_run_on_base_and_adapter(tiny_base: Path, tmp_path: Path) -> None:
    rows = qa_rows(20)
    docs = [
        {"question": r["question"], "choices": [r["answer"], rows[n - 1]["answer"]], "gold": 0}
        for n, r in enumerate(rows)
    ]
    file = tmp_path / "shop.jsonl"
    file.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "shop.yaml").write_text(HARNESS_TASK.replace("FILE", str(file)))
    data = write_rows(tmp_path / "data.jsonl", rows)
    run = train(
        {
            "model": {"base_model": str(tiny_base), "device": "cpu", "dtype": "float32"},
            "data": {"train": str(data)},
            "train": {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-2},
            "eval": {"resamples": 1000, "max_new_tokens": 4},
            "track": {"trackers": []},
            "output": {"folder": str(tmp_path / "results"), "name": "shop"},
        }
    )
    result = api.harness(run, [str(tmp_path / "shop.yaml")], reporter=Quiet())
    (score,) = [s for s in result["scores"] if s["metric"] == "acc,none"]
    assert score["documents"] == 20
    assert score["difference"]["n"] == 20
    assert score["difference"]["difference"] == pytest.approx(score["adapter"] - score["base"])
    # the adapter's score by our own loss on the same choices
    assert score["adapter"] == np.mean([_prefers_first(run, doc) for doc in docs])
    few = api.harness(run, [str(tmp_path / "shop.yaml")], limit=9, reporter=Quiet())
    assert few["scores"][0]["documents"] == 9
    with pytest.raises(ConfigError, match=r"unknown task .arc_eesy.\. Did you mean arc_easy"):
        api.harness(run, ["arc_eesy"], reporter=Quiet())
    with pytest.raises(UserError, match="no such task file"):
        api.harness(run, ["nowhere.yaml"], reporter=Quiet())
    done = program(
        "harness", "shop", "--tasks", str(tmp_path / "shop.yaml"), "--output", str(tmp_path / "results"), "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(done.stdout)["scores"][0] == score


def _prefers_first(run: Any, doc: dict[str, Any]) -> bool:
    """Whether the first choice is likelier after the served prompt, by the whole continuation's log likelihood."""
    import torch

    loaded = api.load(run)
    tokenizer = loaded.encoder.tokenizer
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": doc["question"]}], tokenize=False, add_generation_prompt=True
    )
    scores = []
    for choice in doc["choices"]:
        whole = tokenizer(prompt + choice, add_special_tokens=False, return_tensors="pt").input_ids
        start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
        with torch.inference_mode():
            logs = loaded.model(input_ids=whole).logits[0].log_softmax(-1)
        scores.append(float(logs[start - 1 : -1].gather(1, whole[0, start:, None]).sum()))
    return scores[0] > scores[1]
