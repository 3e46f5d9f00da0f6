"""inlay adapters: a run becomes an entry of the library, whose name then stands for the adapter wherever a model is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from inlay import api
from inlay.adapters.cards import Card
from inlay.adapters.goldens import agree, read_goldens
from inlay.adapters.identity import read_entry, start_held, weights_digest
from inlay.adapters.library import Library
from inlay.adapters.lowrank import module_factors
from inlay.adapters.reference import reference
from inlay.cli.render.adapters import list_text
from inlay.errors import AdapterError, RunError
from inlay.methods.adapter_state import AdapterState
from inlay.models.base import find_base
from inlay.runs.reporter import PlainReporter
from parts import make_base, qa_rows, write_rows
from program import Ended

QUIET = PlainReporter()


@pytest.fixture(scope="session")
def stored(trained: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with the adapter of the run `first` as `support:1`, tagged prod."""
    path, here = tmp_path_factory.mktemp("stored") / "library", pytest.MonkeyPatch()
    here.chdir(trained[0])
    api.add_adapter("first", name="support", task="support", tags=["prod"], licence="MIT", library=path, reporter=QUIET)
    here.undo()
    return path


@pytest.fixture
def library(stored: Path, with_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A copy of that library, which is the usual one here."""
    shutil.copytree(stored, tmp_path / "library")
    monkeypatch.setenv("INLAY_LIBRARY", str(tmp_path / "library"))
    return Library(tmp_path / "library")


def test_a_run_added_twice_is_one_version_and_the_list_tells_what_it_is(
    library: Library, inlay: Callable[..., Ended]
) -> None:
    ended = inlay("adapters", "add", "first", "--name", "support", "--tag", "canary", "--json")
    assert ended.code == 0, ended.err
    again = json.loads(ended.out)
    assert (again["version"], again["is_new"], again["tags"]) == (1, False, ["canary", "prod"])
    (row,) = json.loads(inlay("adapters", "list", "--json").out)
    wanted = {
        "name": "support",
        "version": 1,
        "task": "support",
        "rank": 4,
        "method": "lora",
        "run": "first",
        "licence": "MIT",
    }
    assert {key: row[key] for key in wanted} == wanted
    entry = library.find("support")
    assert row["bytes"] == sum(t.numel() * 4 for t in read_entry(entry).tensors.values()) == 4 * row["parameters"]
    assert row["verdict"] == json.loads(Path("results/first/run.json").read_text())["result"]["verdict"]
    assert inlay("adapters", "list", "--task", "other").out == "no such adapter\n"
    text = inlay("adapters", "list", "--tag", "prod").out
    assert "support:1" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_name_of_the_library_has_the_numbers_of_the_run(library: Library, tmp_path: Path) -> None:
    rows = str(write_rows(tmp_path / "other.jsonl", qa_rows(8)))
    found = api.compare("first", "support:prod", "support", data=rows, reporter=QUIET)
    assert [one.adapter for one in (found, *found.also)] == ["support:1", "support:1"]
    for one in (found, *found.also):
        assert all(d.difference == 0 and d.base == d.other for d in one.metrics.values())
    alone, named = (api.evaluate(name, reporter=QUIET, metrics=["loss"]) for name in ("first", "support:1"))
    assert alone["metrics"] == named["metrics"]
    assert alone["n"] == named["n"]  # its held-out rows are still in the run


def test_an_entry_needs_nothing_of_its_run(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inlay: Callable[..., Ended]
) -> None:
    expected = api.load("first", reporter=QUIET).generate("What about lamps?", temperature=0)
    monkeypatch.chdir(tmp_path)
    path = library.find("support").folder / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run_folder": str(tmp_path / "gone")}))
    assert api.load("support:prod", reporter=QUIET).generate("What about lamps?", temperature=0) == expected
    ended = inlay("eval", "support:prod")
    assert (ended.code, "Give rows to measure on: --data FILE" in ended.err) == (2, True)


def test_check_proves_an_entry_again_and_finds_each_damage(library: Library, inlay: Callable[..., Ended]) -> None:
    ended = inlay("adapters", "check")
    assert ended.code == 0, ended.err
    names = ["files", "weights", "base", "tokenizer", "goldens"]
    assert [line.split()[:2] for line in ended.out.splitlines()[1:-1]] == [["pass", name] for name in names]
    entry = library.find("support")
    path = entry.folder / "goldens.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["ids"][0] += 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = inlay("verify", "support:prod", "--json")
    failed = {one["name"]: one["found"] for one in json.loads(ended.out)["proofs"] if one["passed"] is False}
    assert (ended.code, set(failed)) == (1, {"files", "goldens"})
    assert "1 of 8 answers differ, first held-out prompt" in failed["goldens"]


def test_weights_that_are_not_those_of_the_card_are_refused_where_they_are_used(
    library: Library, tmp_path: Path
) -> None:
    entry = library.find("support")
    state = AdapterState.read(entry.folder)
    name = next(name for name in state.tensors if "lora_B" in name)
    state.tensors[name][0, 0] += 1e-3
    state.write(entry.folder)
    for call in (lambda: read_entry(entry), lambda: api.load("support:1", reporter=QUIET)):
        with pytest.raises(AdapterError, match="its weights or settings are not those that were added"):
            call()


def test_the_digest_follows_what_is_computed_and_nothing_else(library: Library) -> None:
    state = read_entry(library.find("support"))
    digest = weights_digest("b", state.settings, state.tensors)
    assert digest == weights_digest(
        "b", state.settings | {"base_model_name_or_path": "/x", "peft_version": "9"}, state.tensors
    )
    assert digest == weights_digest(
        "b", state.settings | {"lora_alpha": float(state.settings["lora_alpha"])}, state.tensors
    )
    assert digest != weights_digest("c", state.settings, state.tensors)
    assert digest != weights_digest("b", state.settings | {"use_rslora": True}, state.tensors)
    first = next(iter(state.tensors))
    assert digest != weights_digest("b", state.settings, state.tensors | {first: state.tensors[first] + 1e-7})
    assert digest != weights_digest("b", state.settings, {name + "x": t for name, t in state.tensors.items()})


def test_the_first_fitting_alpha_stays_the_first_and_is_part_of_the_identity(
    library: Library, tmp_path: Path, tiny_base: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(tiny_base))
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(str(tmp_path / "theirs"))
    file = tmp_path / "theirs" / "adapter_config.json"
    plain = json.loads(file.read_text())
    patterns = {"q_proj": 8, "model.layers.0.self_attn.q_proj": 800}
    scales, refs = [], []
    for order in (patterns, dict(reversed(patterns.items()))):
        file.write_text(json.dumps(plain | {"alpha_pattern": order}))
        added = api.add_adapter(str(tmp_path / "theirs"), base=str(tiny_base), reporter=QUIET)
        factors = [module_factors(AdapterState.read(one)) for one in (tmp_path / "theirs", added.entry.folder)]
        norms = [float(each["model.layers.0.self_attn.q_proj"].B_OR.norm()) for each in factors]
        assert norms[0] == norms[1]
        scales.append(norms[0])
        refs.append(added.entry.ref)
        read_entry(added.entry)
    assert scales[1] == pytest.approx(100 * scales[0])
    assert refs == ["theirs:1", "theirs:2"]


def test_labels_of_an_adapter_that_is_there_already_are_said_to_have_no_effect(library: Library) -> None:
    (note,) = api.add_adapter("first", name="support", task="other", licence="MIT", reporter=QUIET).notes
    assert note.startswith("--task not applied: support:1 is there already")


def test_a_version_is_added_to_another_library_with_its_tokenizer(library: Library, tmp_path: Path) -> None:
    entry = library.find("support")
    added = api.add_adapter(str(entry.folder), name="copy", library=tmp_path / "other", reporter=QUIET).entry
    assert added.card.identity == entry.card.identity


def test_a_version_with_a_damaged_card_is_removed(library: Library, inlay: Callable[..., Ended]) -> None:
    entry = api.add_adapter(f"first@{api.checkpoints('first')[0]['step']}", name="support", reporter=QUIET).entry
    (entry.folder / "card.json").write_text('{"schema": 2}')
    ended = inlay("adapters", "remove", entry.ref, "--yes")
    assert (ended.code, ended.out.strip()) == (0, f"removed {entry.ref}")


def test_a_checkpoint_of_another_base_is_refused(library: Library, tmp_path: Path) -> None:
    one = reference(f"first@{api.checkpoints('first')[0]['step']}", "results")
    other = find_base(str(make_base(tmp_path / "other", seed=9)))
    with pytest.raises(AdapterError, match="was trained on another base"):
        one.adapter(other)


def test_a_training_holds_the_version_that_it_starts_from_and_refuses_a_damaged_one(
    library: Library, config_tree: Callable[..., dict[str, Any]]
) -> None:
    config = api.as_config(config_tree(adapter={"start_from": "support"}))
    entry = library.untag("support", "prod")
    with start_held(config), pytest.raises(AdapterError, match="is in use"):
        library.remove(entry.ref)
    settings = entry.folder / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"lora_alpha": 999}))
    with pytest.raises(AdapterError, match="are not those that were added"):
        api.train(config, reporter=QUIET)


@pytest.mark.parametrize("rank", range(5))
def test_the_same_tokens_with_other_log_probabilities_are_another_answer(library: Library, rank: int) -> None:
    golden = read_goldens(library.find("support").folder)[0]
    assert agree([golden], [golden.ids], golden.computed_on, [golden.top]).differing == 0
    one, value = golden.top[0][rank]
    for first in ((one, value + 0.02), (-1, value - 0.02)):  # the id moved, or gave way to another
        moved = [[first if at == rank else each for at, each in enumerate(golden.top[0])], *golden.top[1:]]
        found = agree([golden], [golden.ids], golden.computed_on, [moved])
        assert found.differing == 1
        assert agree([golden], [golden.ids], "cuda bfloat16, torch 2", [moved]).differing == 0


def test_a_checkpoint_is_added_as_its_own_version(library: Library) -> None:
    step = api.checkpoints("first")[0]["step"]
    added = api.add_adapter(f"first@{step}", name="support", reporter=QUIET)
    assert (added.entry.ref, added.is_new, added.entry.card.step) == ("support:2", True, step)
    assert added.entry.card.verdict is None


def test_a_folder_of_others_is_added_for_the_base_that_is_named_and_nothing_of_it_but_numbers(
    library: Library, tmp_path: Path, tiny_base: Path, inlay: Callable[..., Ended]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(tiny_base))
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(str(tmp_path / "theirs"))
    (tmp_path / "theirs" / "chat_template.jinja").write_text("{{ 1 }}")
    ended = inlay("adapters", "add", str(tmp_path / "theirs"))
    assert (ended.code, "does not record the digest of its base" in ended.err) == (2, True)
    ended = inlay("adapters", "add", str(tmp_path / "theirs"), "--base", str(tiny_base))
    assert ended.code == 0, ended.err
    assert "its chat template is another than the base's and was not taken" in ended.out
    entry = library.find("theirs")
    assert entry.card.operation == "imported"
    assert not (entry.folder / "README.md").exists()
    assert (
        "imported; base named by the user; what it was trained on is not known"
        in inlay("adapters", "show", "theirs").out
    )
    (found,) = api.check_adapters("theirs", reporter=QUIET)
    assert found["passed"], found


def test_a_change_larger_than_the_bases_weight_is_noted_when_a_folder_of_others_is_added(
    library: Library, tmp_path: Path, tiny_base: Path
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(str(tiny_base))
    settings = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(model, settings)
    model.save_pretrained(str(tmp_path / "theirs"))
    shares = {
        name.removeprefix("base_model.model."): float(
            layer.get_delta_weight("default").detach().norm() / layer.base_layer.weight.norm()
        )
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    worst, second = sorted(shares, key=shares.__getitem__)[::-1][:2]
    between = 2 / (shares[worst] * shares[second]) ** 0.5  # an alpha at which one module alone is above 1
    config = tmp_path / "theirs" / "adapter_config.json"
    for alpha, above in ((between, 1), (1.9 / shares[worst], 0)):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": alpha}))
        added = api.add_adapter(str(tmp_path / "theirs"), base=str(tiny_base), reporter=QUIET)
        large = [note for note in added.notes if "times as large as the base's weight" in note]
        assert len(large) == above
        assert all(f"its change of {worst} is" in note and "above 1 in 1 of 4 modules" in note for note in large)


def test_an_adapter_of_another_base_is_refused(library: Library, tmp_path: Path) -> None:
    shutil.copytree("results/first/adapter", tmp_path / "copy")
    other = make_base(tmp_path / "other", seed=1)
    with pytest.raises(AdapterError, match="was trained on another base"):
        api.add_adapter(str(tmp_path / "copy"), name="x", base=str(other), reporter=QUIET)
    assert library.names() == ["support"]


def test_a_training_that_starts_from_a_library_adapter_reads_its_version(
    library: Library, config_tree: Callable[..., dict[str, Any]]
) -> None:
    folder = str(library.find("support").folder)
    for name, found in (("support:prod", folder), ("support", folder), ("first@1", "first@1"), (folder, folder)):
        assert api.as_config(config_tree(adapter={"start_from": name})).adapter.start_from == found
    with pytest.raises(AdapterError, match="no version or tag 'x'"):
        api.as_config(config_tree(adapter={"start_from": "support:x"}))


def test_a_run_goes_before_an_adapter_of_its_name_and_a_line_says_so(library: Library) -> None:
    shutil.copytree(library.path / "support", library.path / "first")
    notes: list[str] = []
    assert reference("first", "results", notes.append).kind == "run"
    assert notes == ["first: the run of that name; the adapter in the library is first:latest"]
    assert reference("first:latest", "results", notes.append).kind == "library"
    assert len(notes) == 1


def test_an_unknown_name_is_answered_with_what_is_near_among_runs_and_adapters(library: Library) -> None:
    with pytest.raises(
        RunError, match=r"no run in results and no adapter in the library has that name. Did you mean support\?"
    ):
        reference("suport", "results")
    with pytest.raises(RunError, match=r"Did you mean first\?"):
        reference("frst", "results")
    with pytest.raises(AdapterError, match="no version or tag 'canary'"):
        reference("support:canary", "results")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "first", "--name", "Support"], "cannot be used"),
        (["add", "first", "--name", "latest"], "is reserved"),
        (["add", "first", "--tag", "3"], "would be taken for a version"),
        (["add", "first", "--note", "two\nlines"], "must be one line"),
        (["add", "support:1", "--name", "x"], "is in a library already"),
        (["add", "first", "--base", "x"], "whose run records its base"),
        (["add", "builtin:nano", "--name", "x"], "is a whole model"),
        (["show", "nobody"], "no adapter 'nobody'"),
        (["tag", "support", "latest"], "is reserved"),
        (["tag", "support", "x", "--remove"], "does not have the tag 'x'. Its tags: prod."),
        (["remove", "support:1"], "has the tag prod. Take it off first"),
        (["check", "support:9"], "no version or tag '9'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_message(
    library: Library, inlay: Callable[..., Ended], arguments: list[str], message: str
) -> None:
    ended = inlay("adapters", *arguments)
    assert (ended.code, message in ended.err) == (2, True), ended.err
    assert ended.err.count("\n") <= 2
    assert [entry.ref for entry in library.entries()] == ["support:1"]


def test_a_version_is_removed_after_a_yes(library: Library, inlay: Callable[..., Ended]) -> None:
    library.untag("support:1", "prod")
    assert "Nobody is here to ask" in inlay("adapters", "remove", "support:1").err
    assert inlay("adapters", "remove", "support:1", "--yes").out == "removed support:1\n"
    assert inlay("adapters", "list").out.startswith("the library is empty")


def test_near_ties_are_told_from_other_answers(library: Library) -> None:
    golden = read_goldens(library.find("support").folder)[0]
    assert agree([golden], [golden.ids]).equal == 1
    at = min(range(len(golden.ids)), key=lambda n: golden.margins[n])
    other = [*golden.ids[:at], golden.ids[at] + 1, *golden.ids[at + 1 :]]
    for margin, tie in ((0.04, (1, 0)), (0.06, (0, 1))):
        margins = (*golden.margins[:at], margin, *golden.margins[at + 1 :])
        near = type(golden)(
            golden.source, golden.prompt, golden.prompt_ids, golden.ids, margins, golden.top, "cuda bfloat16"
        )
        found = agree([near], [other])
        assert (found.near_ties, found.differing) == tie


def test_a_long_list_fits_the_width_and_a_strangers_text_cannot_move_the_cursor() -> None:
    row = {
        "name": "n" * 64, "version": 12, "tags": ["production", "canary"], "task": "\x1b[31msupport", "base": "/models/" + "b" * 60,
        "rank": 256, "bytes": 123456789, "verdict": "not distinguishable", "operation": None,
    }  # fmt: skip
    text = list_text([row, {"name": "a", "version": 1, "damaged": "why"}], 80, is_all=True)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "\x1b" not in text
    assert "damaged" in text


def test_a_card_knows_its_run(library: Library) -> None:
    card: Card = library.find("support").card
    record = json.loads(Path("results/first/run.json").read_text())
    assert (card.data_hash, card.settings_hash, card.base_digest) == tuple(
        record[key] for key in ("data_hash", "settings_hash", "base_digest")
    )
    assert card.proofs is not None
    assert card.proofs.failed == ()


def test_an_error_cannot_move_the_cursor(library: Library, inlay: Callable[..., Ended]) -> None:
    ended = inlay("adapters", "show", "support", "--library", "x\x1b[2J")
    assert (ended.code, "\x1b" in ended.err, "x�[2J" in ended.err) == (2, False, True)


def test_a_merge_takes_its_adapters_from_the_library_that_is_named(library: Library, tmp_path: Path) -> None:
    library.path.rename(tmp_path / "elsewhere")
    options: dict[str, Any] = {"library": tmp_path / "elsewhere", "check": False, "reporter": QUIET}
    assert api.merge_adapters({"support:1": None}, tmp_path / "merged", **options).folder.is_dir()
