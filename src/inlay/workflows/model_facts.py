"""Facts of a model for its measurement: name, origin, training, size."""

from __future__ import annotations

from inlay.adapters.reference import Reference
from inlay.config.identity import settings_hash
from inlay.evaluation.measured_model import ModelFacts
from inlay.models.base import BaseRef, weight_files


def facts_of(one: Reference, base: BaseRef, data: str) -> ModelFacts:
    """The facts of a reference over its base, for an evaluation on the rows of `data`."""
    return ModelFacts(
        one.name, one.kind, one.base, one.caution, _config_key(one),
        0 if one.run is None else one.run.config.train.seed, _training_s(one), _stored_bytes(one, base),
        _selected_from(one, data),
    )  # fmt: skip


def _config_key(one: Reference) -> str | None:
    """Config, base and data without the seed; None for what is no finished run."""
    if one.kind != "run" or one.run is None:
        return None
    config, record = one.run.config, one.run.record
    unseeded = config.model_copy(update={"train": config.train.model_copy(update={"seed": 0})})
    return repr((settings_hash(unseeded), record.base_digest, record.data_hash))


def _training_s(one: Reference) -> float | None:
    if one.run is None or one.kind not in ("run", "adapter"):
        return None
    result = one.run.record.result
    return None if result is None else result.train_time_s


def _stored_bytes(one: Reference, base: BaseRef) -> int:
    """Bytes of the adapter's weights, or of all weights of a complete model."""
    files = weight_files(base.folder) if one.folder is None else one.folder.glob("*.safetensors")
    return sum(path.stat().st_size for path in files)


def _selected_from(one: Reference, data: str) -> int:
    """Number of checkpoints that the run's best one was selected from by the loss on these rows; 0 if it was not."""
    if one.kind != "run" or one.run is None or data != str(one.run.heldout):
        return 0
    evaluations = sum("eval_loss" in line for line in one.run.metrics)
    result = one.run.record.result
    best = None if result is None else result.best_step
    selected = evaluations > 1 and one.run.config.train.export == "best" and best is not None
    return evaluations if selected else 0
