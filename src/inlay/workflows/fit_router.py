"""A router fitted to the prompts of adapters' rows, and judged by the loss of held-out rows under every adapter.

Shapes: N rows, F features, A arms, S statistics.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inlay.adapters.library import Library
from inlay.adapters.reference import Reference
from inlay.adapters.router import FEATURES, Router, features, names_of, softmax
from inlay.data.example_tasks import example_tasks
from inlay.data.prepare import data_hash, sides
from inlay.data.splits import by_content, draw, prompt_key
from inlay.data.types import Example
from inlay.errors import AdapterError, ConfigError, DataError
from inlay.evaluation.metrics import LOSS_METRICS, Array
from inlay.evaluation.score import prompt_text
from inlay.evaluation.verdict import Difference, compare_scores
from inlay.methods.adapter_state import AdapterState
from inlay.runs.reporter import Reporter
from inlay.tasks.opened_base import OpenedBase
from inlay.typed_json import JsonObject
from inlay.workflows.adapter_library.held_out_losses import HeldOutLosses
from inlay.workflows.adapter_library.one_adapter import opened_adapter
from inlay.workflows.measure import general_rows

BASE: Final = "base"
STAY: Final = 0.95
"""Share of general rows that must stay with the base."""
_MOST_ROWS: Final = 2_000
"""Training rows of an adapter that are used."""
_CALIBRATION: Final = 1 / 3
"""Share of the held-out rows that temperature and regularization are chosen on; the others judge."""
_PENALTIES: Final = (1e-5, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A router on rows that it was not fitted to."""

    arms: tuple[str, ...]
    """The base, then the adapters."""
    rows: int
    losses: Mapping[str, float]
    """Nats per trained token of all rows under each of them."""
    routed: float
    oracle: float
    """With the best of them for each row, which nobody can know before."""
    best: str
    """The one of the least loss."""
    against_best: Difference
    """Routed minus the best one alone."""
    against_oracle: Difference
    confusion: Mapping[str, Mapping[str, int]]
    """Rows of each adapter's run, and of general text, by where they were routed."""
    general_rows: int
    general_stay: float
    """Share of the general rows that judge which stayed with the base."""
    query_s: float
    """Mean time of a query."""

    @property
    def wins(self) -> bool:
        """Whether routing is better than the best one alone."""
        return self.against_best.verdict == "better"

    def to_json(self) -> JsonObject:
        """Every figure."""
        return {
            "rows": self.rows, "losses": dict(self.losses), "routed": self.routed, "oracle": self.oracle, "best": self.best,
            "wins": self.wins, "against_best": self.against_best.to_json(), "against_oracle": self.against_oracle.to_json(),
            "confusion": {name: dict(row) for name, row in self.confusion.items()}, "general_rows": self.general_rows,
            "general_stay": self.general_stay, "query_s": self.query_s,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fitted:
    """A router with its judgement."""

    router: Router
    judgement: Judgement
    training_rows: Mapping[str, int]
    """Rows of each adapter that it was fitted to."""

    def to_json(self) -> JsonObject:
        """Figures of the router, without its weights."""
        return {
            "arms": list(self.router.arms), "threshold": self.router.threshold, "temperature": self.router.temperature,
            "training_rows": dict(self.training_rows), **self.judgement.to_json(),
        }  # fmt: skip


class Side(NamedTuple):
    """Prompts of one origin."""

    label: int
    """0: the base; n: the n-th adapter."""
    prompts: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Arm:
    name: str
    state: AdapterState
    fit: Sequence[str]
    """Prompts."""
    calibrate: Sequence[str]
    held_out: HeldOutLosses
    """With the rows that judge."""


def fit_router(names: Sequence[str], library: Library, results: str, reporter: Reporter, seed: int = 0) -> Fitted:
    """See `inlay.api.fit_router`."""
    if len(set(names)) < 2 or len(set(names)) != len(names):
        raise ConfigError(f"route: name at least two adapters, each once (got {', '.join(names) or 'none'}).")
    arms = _arms(names, library, results, reporter, seed)
    ready = arms[0].held_out.base
    general, other = general_parts(), _other_tasks(arms)
    reporter.stage(f"fitting a router to {sum(len(arm.fit) for arm in arms):,} prompts")
    fit = [Side(0, general[0]), *(Side(0, fit) for fit, _ in other.values())]
    calibrate = [Side(0, general[1]), *(Side(0, held) for _, held in other.values())]
    router = fitted_router(
        [arm.name for arm in arms],
        [*fit, *(Side(n, arm.fit) for n, arm in enumerate(arms, 1))],
        [*calibrate, *(Side(n, arm.calibrate) for n, arm in enumerate(arms, 1))],
        general[1], ready.ref.digest(),
    )  # fmt: skip
    judgement = _judged(router, arms, general[2], ready)
    router = replace(router, judged=judgement.to_json())
    return Fitted(router, judgement, {arm.name: len(arm.fit) for arm in arms})


def fitted_router(
    names: Sequence[str], fit: Sequence[Side], calibrate: Sequence[Side], general: Sequence[str], base_digest: str
) -> Router:
    """A router of prompts: weights by `fit`, penalty and temperature by `calibrate`, threshold by general texts."""
    found, other = ([features(text) for side in sides for text in side.prompts] for sides in (fit, calibrate))
    columns = np.unique(np.concatenate([places for places, _ in found]))
    x_NF, other_NF = _matrix(found, columns), _matrix(other, columns)
    best: tuple[float, Tensor, float] | None = None
    for penalty in _PENALTIES:
        weights_FA = _regression(x_NF, fit, len(names), penalty)
        temperature, loss = _calibrated(torch.sparse.mm(other_NF, weights_FA), calibrate)
        if best is None or loss < best[0]:
            best = loss, weights_FA, temperature
    assert best is not None
    weights_FA = torch.zeros(FEATURES, len(names))
    weights_FA[torch.from_numpy(columns)] = best[1]
    router = Router(tuple(names), weights_FA.numpy().astype(np.float16), best[2], 0.0, base_digest)
    return replace(router, threshold=_threshold(router, general))


def _threshold(router: Router, general: Sequence[str]) -> float:
    """The least threshold from 1/2 up that leaves enough general texts with the base."""
    highest_N = np.sort([float(router.probabilities(text)[1:].max()) for text in general])
    allowed = int((1 - STAY) * len(highest_N))
    return min(1.0, max(0.5, float(np.nextafter(np.float32(highest_N[len(highest_N) - 1 - allowed]), np.float32(2)))))


def _regression(x_NF: Tensor, sides: Sequence[Side], arms: int, penalty: float) -> Tensor:
    """(F, A) weights of a multinomial logistic regression in which every class weighs the same."""
    y_N, weight_N = _labels(sides)
    weights_FA = torch.zeros(x_NF.shape[1], arms, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_FA], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits_N = _with_base(torch.sparse.mm(x_NF, weights_FA))
        nll_N = torch.nn.functional.cross_entropy(logits_N, y_N, reduction="none")
        loss: Tensor = (weight_N * nll_N).sum() + penalty * (weights_FA**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights_FA.detach()


def _calibrated(logits_NA: Tensor, sides: Sequence[Side]) -> tuple[float, float]:
    """(temperature, mean nll with it) on other rows. A row counts a little for the other classes, too, or rows that are told
    apart without an error would ask for probabilities of 1 (Platt, 1999)."""
    logits = _with_base(logits_NA).numpy()
    y_N, weight_N = (one.numpy() for one in _labels(sides))
    classes, count_N = logits.shape[1], np.bincount(y_N)[y_N]
    target = np.tile((1 / (count_N + 2) / (classes - 1))[:, None], (1, classes))
    target[np.arange(len(y_N)), y_N] = (count_N + 1) / (count_N + 2)
    temperatures = np.geomspace(0.05, 20, 120)
    losses = [float(-(weight_N[:, None] * target * np.log(softmax(logits / t) + 1e-12)).sum()) for t in temperatures]
    best = int(np.argmin(losses))
    return float(temperatures[best]), losses[best]


def _with_base(logits_NA: Tensor) -> Tensor:
    return torch.cat([torch.zeros(len(logits_NA), 1), logits_NA], 1)


def _matrix(found: Sequence[tuple[np.ndarray, np.ndarray]], columns: np.ndarray) -> Tensor:
    """(N, F) sparse features of prompts; F are the places in `columns`, others are left out."""
    place = np.concatenate([places for places, _ in found])
    value = np.concatenate([values for _, values in found])
    row = np.repeat(np.arange(len(found)), [len(places) for places, _ in found])
    column = np.minimum(np.searchsorted(columns, place), len(columns) - 1)
    kept = columns[column] == place
    indices = torch.from_numpy(np.stack([row[kept], column[kept]]))
    size = (len(found), len(columns))
    return torch.sparse_coo_tensor(indices, torch.from_numpy(value[kept]), size, check_invariants=False).coalesce()


def _labels(sides: Sequence[Side]) -> tuple[Tensor, Tensor]:
    """(class, weight) of all prompts: classes weigh the same, and so do the sides of one class."""
    count = Counter(side.label for side in sides)
    y_N = np.repeat([side.label for side in sides], [len(side.prompts) for side in sides])
    weight_N = np.concatenate(
        [np.full(len(side.prompts), 1 / (len(side.prompts) * count[side.label] * len(count))) for side in sides]
    )
    return torch.from_numpy(y_N), torch.from_numpy(weight_N).float()


def _arms(names: Sequence[str], library: Library, results: str, reporter: Reporter, seed: int) -> list[_Arm]:
    """The adapters with their rows. Raises: AdapterError where they are on different bases, or have no rows."""
    found: list[_Arm] = []
    for name in names:
        one, ready, state = opened_adapter(name, library, results, reporter, found[0].held_out.base if found else None)
        if found and ready.ref.digest() != found[0].held_out.base.ref.digest():
            raise AdapterError(f"{name}: is on another base than {names[0]}. One router serves one base.")
        if found and ready.encoder.template_hash != found[0].held_out.base.encoder.template_hash:
            raise AdapterError(
                f"{name}: has another chat template than {names[0]}, so their losses cannot be compared."
            )
        held_out = HeldOutLosses(one, None, reporter, found[0].held_out.base if found else ready)
        trained = _training_rows(one, held_out.examples, reporter)
        calibrate = held_out.set_apart(_CALIBRATION)
        if not trained:  # the file has gone: rows that calibrate do both
            kept, apart = by_content(calibrate, 0.5)
            trained, calibrate = tuple(calibrate[n] for n in kept), tuple(calibrate[n] for n in apart)
        if not trained or not calibrate or not held_out.examples:
            raise DataError(f"{name}: has too few held-out rows to fit, calibrate and judge a router.")
        chosen = [trained[n] for n in draw(len(trained), _MOST_ROWS, seed)]
        found.append(_Arm(one.name, state, _prompts(chosen), _prompts(calibrate), held_out))
    return found


def _training_rows(one: Reference, held_out: Sequence[Example], reporter: Reporter) -> tuple[Example, ...]:
    """The rows that its run was trained on, without those that are held out; none where the file has gone or changed."""
    if one.run is None:
        return ()
    data = one.run.config.data
    try:
        if data_hash(data) != one.run.record.data_hash:
            raise DataError(f"{data.train_name}: has changed since {one.name} was trained")
        kept = {prompt_key(example) for example in held_out}
        return tuple(example for example in sides(data)[0] if prompt_key(example) not in kept)
    except DataError as error:
        reporter.note(f"note: {one.name}: fitted to a part of its held-out rows, for want of training rows ({error})")
        return ()


def _prompts(examples: Sequence[Example]) -> list[str]:
    return [prompt_text(example) for example in examples]


def general_parts() -> tuple[list[str], list[str], list[str]]:
    """General texts to fit, to calibrate and to judge: whole ones, and their sentences, each text in one part."""
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for n, example in enumerate(general_rows()):
        text = prompt_text(example)
        sentences = [one.strip() for one in text.replace("? ", "?. ").split(". ") if one.strip()]
        parts[(0, 0, 1, 2)[n % 4]].extend([text, *sentences])
    return parts


def _other_tasks(arms: Sequence[_Arm]) -> dict[str, tuple[list[str], list[str]]]:
    """Prompts of the example tasks, to fit and to calibrate: what other requests may look like. A task that an adapter was
    trained for is left out."""
    known = {prompt for arm in arms for prompt in (*arm.fit, *arm.calibrate)}
    found = {}
    for name, task in example_tasks().items():
        fit, held = task.read()
        if known.isdisjoint(_prompts([*fit, *held])):
            found[name] = _prompts(fit), _prompts(held)
    return found


def _judged(router: Router, arms: Sequence[_Arm], general: Sequence[str], ready: OpenedBase) -> Judgement:
    """Losses of every row under the base and every adapter, and where the router sends it."""
    names = names_of(router.arms)
    states: dict[str, AdapterState | None] = {BASE: None, **{arm.name: arm.state for arm in arms}}
    nll_AN: list[Array] = []
    for name, state in states.items():  # one adapter after the other: each is attached once for all rows
        nll_AN.append(np.concatenate([arm.held_out.of(f"{name} on rows of {arm.name}", state, ready) for arm in arms]))
    weight_N = np.concatenate([arm.held_out.weight_N for arm in arms])
    prompts = [prompt_text(example) for arm in arms for example in arm.held_out.rows.examples]
    owners = [arm.name for arm in arms for _ in arm.held_out.rows.examples]
    began = time.perf_counter()
    routes = [router.choose(prompt).arm or BASE for prompt in prompts]
    query_s = (time.perf_counter() - began) / len(prompts)
    table = np.stack(nll_AN)
    routed_N = table[[names.index(route) for route in routes], np.arange(len(routes))]
    oracle_N, totals_A = table.min(0), table.sum(1)
    best = int(np.argmin(totals_A))
    groups = [group for arm in arms for group in arm.held_out.groups]
    metric = LOSS_METRICS["loss"]
    pairs = {
        name: (np.stack([other_N, weight_N], 1), np.stack([routed_N, weight_N], 1), metric)
        for name, other_N in (("best", table[best]), ("oracle", oracle_N))
    }
    found = compare_scores(pairs, clusters=groups)
    sent = [router.choose(text).arm or BASE for text in general]
    confusion = {
        owner: {name: sum(o == owner and r == name for o, r in zip(owners, routes, strict=True)) for name in names}
        for owner in dict.fromkeys(owners)
    }
    confusion["general text"] = {name: sent.count(name) for name in names}
    total = float(weight_N.sum())
    return Judgement(
        tuple(names), len(prompts), {name: float(sum_) / total for name, sum_ in zip(names, totals_A, strict=True)},
        float(routed_N.sum()) / total, float(oracle_N.sum()) / total, names[best], found["best"], found["oracle"], confusion,
        len(general), sent.count(BASE) / len(sent), query_s,
    )  # fmt: skip
