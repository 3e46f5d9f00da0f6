"""A fine-tuning method is one class and its line in two tables: settings that have an effect, and what it does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from inlay import api
from inlay.config import Config
from inlay.config.sections.adapter import METHOD_SETTINGS
from inlay.methods.method import AttachInputs, FirstToMove, Method, PeftSettings, SavedActivations, require_places
from inlay.methods.table import METHODS
from inlay.runs.reporter import PlainReporter
from inlay.workflows.compare_methods import VARIANTS

NAME = "embedding_shift"


class EmbeddingShift(Method):
    """One trained vector is added to the embedding of every token."""

    name: ClassVar[str] = "shift"
    title: ClassVar[str] = "an embedding shift"
    peft_type: ClassVar[str] = "EMBEDDING_SHIFT"
    first_to_move: ClassVar[FirstToMove] = FirstToMove(NAME, "shifts", "Raise train.learning_rate.")
    saved_activations_fp32: ClassVar[SavedActivations] = (2, 3, 4, 0)
    saved_activations_16bit: ClassVar[SavedActivations] = (4, 3, 4, 0)

    def summary(self, config: Config) -> str:
        return "one vector added to every embedding"

    def learning_rate(self, hidden_size: int, model_type: str) -> tuple[float, str]:
        return 3e-2, "a guess"

    def owns(self, parameter: str) -> bool:
        return NAME in parameter

    def attach(self, model: Any, config: Config, inputs: AttachInputs, name: str) -> Any:
        return self._put(model, torch.zeros(1, model.get_input_embeddings().weight.shape[1]))

    def attach_stored(self, model: Any, settings: PeftSettings, tensors: Mapping[str, Tensor], name: str) -> Any:
        require_places({NAME: torch.empty(1, model.get_input_embeddings().weight.shape[1])}, tensors)
        return self._put(model, tensors[NAME]).eval()

    def _put(self, model: Any, values_1H: Tensor) -> Any:
        shift_1H = nn.Parameter(values_1H.clone())
        model.register_parameter(NAME, shift_1H)
        model.shift_is_on = True
        hook = model.get_input_embeddings().register_forward_hook(
            lambda _module, _ids, output: output + shift_1H if model.shift_is_on else output
        )
        model.shift_hook = hook
        return model

    def require_usable(self, folder: Path, settings: PeftSettings, tensors: Mapping[str, Tensor]) -> None:
        pass

    def names_on(self, model: Any) -> Sequence[str]:
        return ("default",) if hasattr(model, NAME) else ()

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        model.shift_is_on = False
        try:
            yield
        finally:
            model.shift_is_on = True

    def only(self, model: Any, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def detach(self, model: Any, name: str) -> Any:
        model.shift_hook.remove()
        delattr(model, NAME)
        return model.requires_grad_(False).eval()

    def parameters(self, model: Any, name: str) -> dict[str, nn.Parameter]:
        return {NAME: getattr(model, NAME)}

    def settings(self, model: Any, name: str) -> PeftSettings:
        return {"peft_type": self.peft_type}

    def tensors(self, model: Any, name: str) -> dict[str, Tensor]:
        return {NAME: getattr(model, NAME).detach()}


@pytest.fixture
def shift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "shift", EmbeddingShift())
    monkeypatch.setitem(METHOD_SETTINGS, "shift", ("start_from",))


@pytest.mark.usefixtures("shift")
def test_a_new_method_in_the_tables_is_trained_saved_proved_compared_asked_and_trained_further(
    config_tree: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    tree = config_tree(train={"learning_rate": "auto"}, output={"folder": str(tmp_path / "results"), "name": "shifted"})
    tree["adapter"] = {"method": "shift"}
    run = api.train(tree, reporter=PlainReporter())
    result = run.record.result
    assert result is not None
    assert result.eval_loss < result.base_eval_loss - 1e-3
    assert json.loads((run.adapter / "adapter_config.json").read_text())["peft_type"] == "EMBEDDING_SHIFT"
    assert run.config.train.learning_rate == 0.03
    assert all(proof["passed"] for proof in api.verify(run)["proofs"])
    compared = api.compare(run, reporter=PlainReporter()).metrics["loss"]
    assert compared.other == pytest.approx(result.eval_loss, rel=1e-5)
    assert compared.base == pytest.approx(result.base_eval_loss, rel=1e-5)
    loaded = api.load(run)
    assert isinstance(loaded.generate("What about parcels?", temperature=0.0, max_new_tokens=4), str)
    further = api.train(
        tree
        | {"adapter": {"method": "shift", "start_from": str(run.path)}, "output": tree["output"] | {"name": "further"}},
        reporter=PlainReporter(),
    )
    assert further.record.result.eval_loss < result.eval_loss


def test_every_method_has_its_settings_and_its_name_among_those_that_are_compared() -> None:
    assert list(METHODS) == list(METHOD_SETTINGS)
    assert all(name == method.name for name, method in METHODS.items())
    assert set(METHODS) <= set(VARIANTS)
