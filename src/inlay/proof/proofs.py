"""Statements that must be true of a finished run: each function gives its finding, or raises.

Shapes: B rows, K positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from inlay.data.batches import order, step_rows, steps_per_epoch
from inlay.data.curriculum import Curriculum
from inlay.data.encoding.encoder import Encoder, TokenizedSequence
from inlay.data.encoding.token_arrays import TokenSet
from inlay.data.types import Example
from inlay.errors import InlayError, count_shown
from inlay.runs.folder import Run
from inlay.runs.reporter import bytes_shown
from inlay.storage import sha256_of, verified
from inlay.training import checkpoint as checkpoints

_SHOWN_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Proof:
    """One statement about a run, and its outcome."""

    name: str
    passed: bool | None
    """None where it cannot be checked here; `found` has the reason."""
    found: str
    samples: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Name, outcome, finding and samples."""
        return asdict(self)


class Refuted(InlayError):
    """A statement about the run is false."""


class Unknown(InlayError):
    """A file that the proof needs is missing here."""


def proof(name: str, statement: Callable[[], str | tuple[str, Sequence[str]]]) -> Proof:
    """The statement's outcome under this name."""
    try:
        found = statement()
    except Unknown as error:
        return Proof(name, None, str(error))
    except InlayError as error:
        return Proof(name, False, str(error))
    return Proof(name, True, found) if isinstance(found, str) else Proof(name, True, found[0], tuple(found[1]))


def files_are_whole(run: Run, digests: Mapping[str, str]) -> str:
    """Adapter or model, checkpoints and the files with these digests are byte for byte what was written."""
    stored = checkpoints.listed(run.checkpoints)
    listed = [
        about for folder in [run.trained, *(c.path for c in stored)] for about in verified(folder)["files"].values()
    ]
    for name, digest in digests.items():
        path = run.path / name
        if not path.is_file():
            raise Refuted(f"{path}: missing.")
        if sha256_of(path) != digest:
            raise Refuted(f"{path}: changed since the run ended.")
    size = bytes_shown(sum(file["size"] for file in listed))
    files = count_shown(len(listed) + len(digests), "file")
    return f"{run.trained.name} and {count_shown(len(stored), 'checkpoint')}, {files}, {size}, have their sha256"


def tokens_were_counted(
    train: TokenSet, seed: int, batch_size: int, curriculum: Curriculum | None, batches: list[list[int]], seen: int
) -> str:
    """The recorded number of trained tokens is that of the run's batches, given as stretches [first, last]."""
    counts = train.trained_counts

    def up_to(batch: int) -> int:
        epochs, rest = divmod(batch, steps_per_epoch(train.drawn, batch_size))
        numbers = range(batch - rest + 1, batch + 1)
        started = [i for n in numbers for i in step_rows(n, seed, train.shares, batch_size, curriculum)]
        whole = sum(int(counts[order(seed, epoch, train.shares)].sum()) for epoch in range(epochs))
        return whole + int(counts[started].sum())

    steps = sum(last - first + 1 for first, last in batches)
    expected = sum(up_to(last) - up_to(first - 1) for first, last in batches)
    if expected != seen or seen <= 0:
        raise Refuted(
            f"the rows of {count_shown(steps, 'step')} hold {expected:,} trained tokens, the run recorded {seen:,}."
        )
    return f"{seen:,} in {count_shown(steps, 'step')} over {count_shown(len(train), 'row')}, counted anew from the data"


def answers_are_trained(
    sample: Sequence[tuple[Example, Sequence[TokenizedSequence]]], encoder: Encoder
) -> tuple[str, list[str]]:
    """In sampled rows exactly the parts with weight are trained. Gives the trained text too."""
    if not sample:
        raise Unknown("every row was cut by data.max_length.")
    shown = []
    for example, sequences in sample:
        trained, untrained = (_text(encoder, sequences, weighed) for weighed in (True, False))
        if example.messages[0].role == "text":
            if not all((s.weights[1:] > 0).all() for s in sequences):
                raise Refuted(f"{example.source}: a part of this document is not trained.")
        else:
            _require_apart(example, _text(encoder, sequences, None), trained, untrained)
        shown.append(f"{example.source}: {_short(trained)}")
    return f"{count_shown(len(sample), 'row')}: what has weight is trained, nothing else is", shown


def _require_apart(example: Example, whole: str, trained: str, untrained: str) -> None:
    for n, message in enumerate(example.messages, 1):
        content = _compact(message.content)
        if content not in _compact(whole):  # a template or tokenizer that writes it otherwise
            content = max(re.findall(r"\w+", message.content) or [""], key=len)
        side, name = (trained, "is not trained") if message.weight > 0 else (untrained, "is trained")
        if content not in _compact(side):
            raise Refuted(f"{example.source}: a part of turn {n} ({message.role}) {name}: trained is {_short(trained)}")


def _text(encoder: Encoder, sequences: Sequence[TokenizedSequence], weighed: bool | None) -> str:
    """The text of the tokens with weight (True), without (False), or of all (None), special tokens included."""
    picked = [s.input_ids if weighed is None else s.input_ids[(s.weights > 0) == weighed] for s in sequences]
    return " ".join(str(encoder.tokenizer.decode(ids.tolist(), skip_special_tokens=False)) for ids in picked)


def _compact(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…")


def answers_end(train: TokenSet, stop_ids: Collection[int], max_length: int) -> str:
    """Every trained answer that was not cut ends with a token at which generation stops, and that token is trained."""
    ends = np.isin(train.last_trained_ids(), list(stop_ids))
    uncut = train.lengths < max_length
    open_ended = np.flatnonzero(uncut & ~ends)
    if len(open_ended):
        raise Refuted(
            f"{train.source(open_ended[0])}: the end of its answer is not trained ({len(open_ended)} of {len(train)} "
            "rows); a model trained on it would not stop."
        )
    if not ends.any():
        raise Refuted("no row trains an end of turn: all were cut by data.max_length.")
    return f"{int(ends.sum())} of {count_shown(len(train), 'row')}" + (
        "" if ends.all() else "; data.max_length cut the others"
    )


def digests_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name to sha256 of every tensor's bytes."""
    return {name: hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for name, t in tensors.items()}


def trained_part(tensors: Mapping[str, Tensor], rank: int | None) -> dict[str, Tensor]:
    """The tensors without what stands still in an adapter of this rank that starts from the base's weights: the columns
    of B behind it. All of them where the rank is None."""

    def part(name: str, tensor: Tensor) -> Tensor:
        if rank is None:
            return tensor
        return tensor[:rank] if ".lora_A." in name else tensor[:, :rank] if ".lora_B." in name else tensor

    return {name: part(name, tensor) for name, tensor in tensors.items()}


def every_matrix_moved(start: Mapping[str, str], tensors: Mapping[str, Tensor], rank: int | None, step: int) -> str:
    """No matrix A or B has the bytes that it had before step 1; for the rank see `trained_part`."""
    matrices = {name: tensor for name, tensor in tensors.items() if ".lora_A." in name or ".lora_B." in name}
    own = trained_part(matrices, rank)
    still = [name for name, digest in digests_of(own).items() if start.get(name) == digest]
    if step == 1:  # where B is zero no gradient reaches A
        still = [name for name in still if ".lora_B." in name]
    unknown = sorted(set(own) - set(start))
    if unknown:
        raise Refuted(f"{unknown[0]} was not there when training began.")
    if not own:
        raise Refuted("the adapter has no matrix A or B.")
    if still:
        raise Refuted(f"{len(still)} of {len(own)} matrices are as they were before step 1, first {still[0]}.")
    return f"{len(own)} matrices differ from what they were before step 1"


def every_tensor_moved(start: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """No tensor has the bytes that it had before step 1, where it is more than a vector."""
    unknown = sorted(set(tensors) ^ set(start))
    if unknown:
        raise Refuted(f"{unknown[0]} was not there when training began, or is not there now.")
    still = [name for name, digest in digests_of(tensors).items() if start[name] == digest]
    matrices = [name for name in still if tensors[name].dim() > 1]
    if matrices or len(still) == len(tensors):
        raise Refuted(f"{len(still)} of {len(tensors)} tensors are as they were before step 1, first {still[0]}.")
    rest = f"; {len(still)} vectors do not, first {still[0]}" if still else ""
    return f"{len(tensors) - len(still)} of {len(tensors)} tensors differ from what they were before step 1{rest}"


def every_value_is_finite(tensors: Mapping[str, Tensor]) -> str:
    """No tensor holds NaN or infinity."""
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise Refuted(f"{len(bad)} of {len(tensors)} tensors hold NaN or infinity, first {bad[0]}.")
    largest = max(float(tensor.abs().max()) for tensor in tensors.values())
    return f"{sum(t.numel() for t in tensors.values()):,} values, the largest {largest:.3g}"


def same_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, str]) -> str:
    """The tensors have, bit for bit, the digests of those that were in memory at the end of training."""
    there = digests_of(tensors)
    differing = [name for name in set(there) | set(expected) if there.get(name) != expected.get(name)]
    if differing:
        raise Refuted(
            f"the saved folder is not what was trained: {len(differing)} of {len(expected)} tensors differ, first {min(differing)}."
        )
    return f"{len(expected)} tensors bit for bit"


def same_logits(a_BKV: Tensor, b_BKV: Tensor, tolerance: float, what: str) -> str:
    """The logits are equal; bit for bit where the tolerance is 0."""
    difference = float((a_BKV - b_BKV).abs().max())
    if not (torch.equal(a_BKV, b_BKV) or torch.allclose(a_BKV, b_BKV, rtol=tolerance, atol=tolerance)):
        raise Refuted(f"{what}: logits differ by up to {difference:.3g}.")
    exactly = "bit for bit" if difference == 0 else f"within {difference:.1g}"
    return f"{what}: {a_BKV.numel():,} logits equal {exactly}"


def same_losses(now: Sequence[float], recorded: Sequence[float | None], tolerance: float, what: str) -> str:
    """The losses of the same rows are those that were recorded; None stands for one that was not finite."""
    then = [math.nan if loss is None else loss for loss in recorded]
    apart = float(np.abs(np.subtract(now, then)).max())
    if not apart <= tolerance * max(1.0, *map(abs, then)):  # NaN is no agreement
        raise Refuted(f"{what}: loss {_numbers(now)}, at the end of training {_numbers(then)}.")
    return f"{what}: loss as at the end of training" + ("" if apart == 0 else f", within {apart:.1g}")


def _numbers(losses: Sequence[float]) -> str:
    return ", ".join(f"{loss:.6g}" for loss in losses)


def prompts_are_prefixes(
    sample: Sequence[tuple[Example, Sequence[TokenizedSequence]]], served: Encoder, training: Encoder
) -> str:
    """With the tokenizer of `adapter/`, the ids of a served prompt are the first ids of its training row."""
    for what in ("tokenizer_hash", "template_hash"):
        if getattr(served, what) != getattr(training, what):
            raise Refuted(f"adapter/ has another {what.replace('_hash', '')} than training had.")
    prompted = [(example, sequences) for example, sequences in sample if example.messages[0].role != "text"]
    for example, sequences in prompted:
        prompt = served.prompt(example.prompt, example.tools, example.switches)
        last = sequences[-1].input_ids.tolist()
        if last[: len(prompt)] != prompt[: len(last)]:
            raise Refuted(f"{example.source}: the prompt that would be served is not how its training row begins.")
    if not prompted:
        return "plain documents: same tokenizer as in training"
    return f"{count_shown(len(prompted), 'row')}, with the tokenizer in adapter/"
