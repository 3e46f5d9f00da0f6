"""Settings: what is read, what is refused and how the refusal reads, and how they are explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inlay.config import load, parse_assignment, presets, validate, validate_section
from inlay.config.load import in_yaml, parse_yaml, preset_tree, setting_paths
from inlay.config.render import as_yaml, explain, markdown, starter
from inlay.config.sections.adapter import AdapterConfig
from inlay.config.sections.generation import GenerationConfig
from inlay.config.sections.model import ModelConfig
from inlay.errors import ConfigError
from inlay.runs.folder import Run

LEAST: dict[str, Any] = {"model": {"base_model": "m"}, "data": {"train": "d.jsonl"}}
ROOT = Path(__file__).parents[2]


def refusal(**given: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(**given)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.learning_rate=2e-4", "train.learning_rate", 2e-4),
        ("train.learning_rate=1E-3", "train.learning_rate", 1e-3),
        ("adapter.rank=8", "adapter.rank", 8),
        ("adapter.target_modules=[q_proj,v_proj]", "adapter.target_modules", ["q_proj", "v_proj"]),
        ("eval.prompts=- one\n- two\n  lines", "eval.prompts", ["one", "two lines"]),
        ("data.columns.prompt=utterance", "data.columns.prompt", "utterance"),
        ("data.columns={prompt: a, completion: b}", "data.columns", {"prompt": "a", "completion": "b"}),
        ("train.max_steps=null", "train.max_steps", None),
        ("train.max_steps=1e3", "train.max_steps", 1000),
        ("train.eval_steps=2.0", "train.eval_steps", 2),
        ("train.learning_rate_factors={1e2: 1}", "train.learning_rate_factors", {100: 1}),
        ("model.revision=1234567", "model.revision", "1234567"),  # a commit, not a number
        ("model.revision=null", "model.revision", None),
        ("output.name=2026", "output.name", "2026"),
        ("output.folder=a=b", "output.folder", "a=b"),
        ("data.columns.prompt=5", "data.columns.prompt", "5"),
        ("data.role_weights.user=0.5", "data.role_weights.user", 0.5),
    ],
)
def test_an_assignment_gives_the_value_its_setting_takes(text: str, key: str, value: Any) -> None:
    assert parse_assignment(text) == (key, value)
    section, _, name = key.partition(".")
    config = load(tree=LEAST, assignments=dict([parse_assignment(text)]))
    if "." not in name:
        assert getattr(getattr(config, section), name) == value


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("adapter.rank", "needs key=value"),
        ("=8", "needs key=value"),
        ("adapter=8", "is a section"),
        ("adapter.rnak=8", "Did you mean 'adapter.rank'"),
        ("rank=8", "Did you mean 'adapter.rank'"),
        ("lerning_rate=1", "Did you mean 'train.learning_rate'"),
        ("trian.seed=1", "Did you mean 'train.seed'"),
        ("adapter.rank.x=1", "has no parts"),
        ("zzzzzz=1", "inlay config explain"),
        ("train.epochs=[1", "not valid YAML"),
    ],
)
def test_an_assignment_that_cannot_be_is_refused_with_the_way_out(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_assignment(text)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        ("- a\n- b\n", "a config is a mapping of sections (got a list)"),
        ("just words", "(got a text)"),
        ("model:\n\tbase_model: x\n", ":2: not valid YAML"),
        ("train:\n  seed: 1\n  seed: 2\n", ":3: not valid YAML: key 'seed' is given twice"),
        ("adapter: {rank: [1", "not valid YAML"),
        ("? [a]\n: 1\n", "not usable YAML"),
        ("model: 3\n", "a section holds settings (got 3)"),
        ("modle: {base_model: x}\n", "Did you mean 'model'"),
        ("model: {base: x}\n", "unknown setting 'model.base'"),
        ("rank: 8\n", "Did you mean 'adapter.rank'"),
        ("5: 8\n", "unknown section '5'"),
        ("preset: coed\n", "unknown preset 'coed'. Did you mean 'code'?"),
    ],
)
def test_a_file_that_cannot_be_a_config_is_refused_with_its_place(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert part in refusal(file=path)


def test_a_config_that_is_missing_or_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes("model: {base_model: é}".encode("latin-1"))
    assert f"Did you mean {tmp_path / 'config.yaml'}" in refusal(file=tmp_path / "confg.yaml")
    assert "not UTF-8 text (byte 20)" in refusal(file=tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("adapter.rank", 0, "must be `auto` or a whole number from 1 to 65536 (got 0)"),
        ("adapter.rank", True, "must be `auto` or a whole number from 1 to 65536 (got True)"),
        ("adapter.rank", "8", "(got '8')"),
        ("adapter.rank", 8.5, "(got 8.5)"),
        ("adapter.alpha", "3x", "must be a number above 0, `1x`, `2x` or `4x` (got '3x')"),
        ("train.learning_rate", float("nan"), "must be `auto` or a number above 0 (got nan)"),
        ("generation.seed", -1, "at least 0 and below 4294967296 (got -1)"),
        ("generation.seed", 2**32, "(got 4294967296)"),
        ("data.eval_fraction", 1, "above 0 and below 1"),
        ("data.max_lost_share", 2, "from 0 to 1"),
        ("data.columns", {"prompt": 5}, "a mapping of text to text"),
        ("adapter.target_modules", [], "a list of text, at least 1"),
        ("adapter.target_modules", "all-linear", "`all-linear` is `auto` here"),
        ("model.dtype", "fp16", "must be `auto`, `float32`, `bfloat16` or `float16` (got 'fp16')"),
        ("output.name", "a/b", "must be one plain folder name"),
        ("output.name", "", "must be one plain folder name"),
        ("output.name", "..", "must be one plain folder name"),
        ("output.name", "x" * 300, "must be one plain folder name"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_is_allowed(key: str, value: Any, part: str) -> None:
    text = refusal(tree=LEAST, assignments={key: value})
    assert text.startswith(f"{key}: ")
    assert part in text


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"train.micro_batch_size": 17}, "train: micro_batch_size 17 is more than the batch_size of 16"),
        ({"train.batch_size": 2, "train.micro_batch_size": 4}, "more than the batch_size of 2"),
        ({"data.eval": "e", "data.eval_fraction": 0.3}, "data: eval_fraction has no effect with data.eval"),
        ({"train.warmup_steps": 0, "train.warmup_ratio": 0.1}, "train: warmup_ratio has no effect with warmup_steps"),
        ({"model.quantization_fallback": True}, "model: quantization_fallback has no effect with quantization none"),
    ],
)
def test_a_setting_that_another_one_makes_idle_is_refused(settings: dict[str, Any], part: str) -> None:
    assert part in refusal(tree=LEAST, assignments=settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"train.micro_batch_size": 16},
        {"data.eval": "e"},
        {"train.warmup_steps": 3},
        {"train.warmup_ratio": 0.1},
        {"model.quantization": "int8", "model.quantization_fallback": True},
    ],
)
def test_a_setting_stands_beside_the_default_of_one_that_it_makes_idle(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = load(tree=LEAST, assignments=settings)
    (tmp_path / "config.yaml").write_text(as_yaml(config, {}))
    assert Run(tmp_path).config == config


def test_a_section_is_checked_alone_with_the_messages_of_a_whole_config() -> None:
    assert (
        validate_section(GenerationConfig, {"top_k": 5}) == load(tree=LEAST | {"generation": {"top_k": 5}}).generation
    )
    faults: list[tuple[Any, dict[str, Any]]] = [
        (GenerationConfig, {"temperature": -1, "top_kk": 1}),
        (AdapterConfig, {"method": "ia3", "rank": 4}),
        (ModelConfig, {"device": "cpu"}),
    ]
    for section, values in faults:
        with pytest.raises(ConfigError) as caught:
            validate_section(section, values)
        name = section.__name__.removesuffix("Config").lower()
        assert str(caught.value) == refusal(tree=LEAST | {name: values})


def test_a_partial_config_needs_no_base_and_refuses_what_is_wrong_all_the_same() -> None:
    assert validate({"data": {"train": "d"}, "adapter": {"rank": 4}}, partial=True).adapter.rank == 4
    with pytest.raises(ConfigError, match=r"a\.yaml: model: compute_dtype has no effect with quantization none"):
        validate({"model": {"compute_dtype": "float16"}}, "a.yaml", partial=True)


def test_every_fault_of_a_config_has_its_line() -> None:
    tree = LEAST | {"adapter": {"rank": 0, "rnak": 1}, "train": {"epochs": 0}, "outptu": {}}
    lines = refusal(tree=tree).split("\n")
    assert len(lines) == 4
    assert {line.partition(":")[0] for line in lines if line[0] != "u"} == {"adapter.rank", "train.epochs"}


def test_a_name_that_reaches_into_a_value_set_beside_it_is_refused() -> None:
    assert "was already set" in refusal(tree=LEAST, assignments={"data.columns": None, "data.columns.prompt": "a"})


def test_later_sources_win_and_an_empty_section_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text("preset: code\nmodel: {base_model: m}\ndata: {train: d}\nadapter: {dropout: 0.1}\ntrain:\n")
    config = load(file=path, assignments={"adapter.rank": 4})
    assert (config.adapter.rank, config.adapter.dropout, config.adapter.alpha) == (4, 0.1, "2x")
    assert config.adapter.target_modules == ["q_proj", "v_proj", "gate_proj", "up_proj"]


def test_a_notebook_may_give_paths_and_tuples() -> None:
    config = load(tree={"model": {"base_model": Path("m")}, "data": {"train": Path("d")}, "eval": {"prompts": ("a",)}})
    assert (config.model.base_model, config.eval.prompts) == ("m", ["a"])


QV = ["q_proj", "v_proj"]
PROMISED = {
    "instruct": (64, 128, [*QV, "o_proj", "gate_proj", "up_proj", "down_proj"]),
    "code": (32, 64, [*QV, "gate_proj", "up_proj"]),
    "summarize": (16, 32, QV),
    "classify": (8, 16, "auto"),
    "support": (16, 32, "auto"),
    "creative": (32, 64, "auto"),
    "chat": (16, 32, "auto"),
    "qlora": (64, 16, "auto"),
}


def test_the_presets_are_those_promised() -> None:
    assert set(presets()) == set(PROMISED)
    for name, (rank, alpha, targets) in PROMISED.items():
        config = load(tree=LEAST, preset=name)
        times = {"1x": 1, "2x": 2, "4x": 4}.get(str(config.adapter.alpha))
        assert (config.adapter.rank, rank * times if times else config.adapter.alpha) == (rank, alpha)
        assert config.adapter.target_modules == targets
        assert config.eval.prompts
    assert preset_tree("qlora")["model"]["quantization"] == "nf4"


def test_generation_defaults_are_those_promised() -> None:
    g = load(tree=LEAST).generation
    assert (g.max_new_tokens, g.temperature, g.top_p, g.top_k) == (200, 0.7, 0.9, 50)
    assert (g.repetition_penalty, g.no_repeat_ngram_size) == (1.2, 3)


def test_every_setting_is_documented_and_its_values_are_in_words() -> None:
    for row in explain():
        assert row["doc"].endswith((".", ".)")), row["setting"]
        assert not set("[]<>") & set(row["type"]), row["type"]
    assert len(explain()) == len(setting_paths())


@pytest.mark.parametrize(
    ("key", "count", "first"),
    [("adapter.rank", 1, "adapter.rank"), ("rank", 1, "adapter.rank"), ("seed", 2, "train.seed"), ("output", 2, "output.folder")],
)  # fmt: skip
def test_explain_takes_a_setting_a_section_or_the_last_part_of_a_name(key: str, count: int, first: str) -> None:
    rows = explain(key)
    assert (len(rows), rows[0]["setting"]) == (count, first)


@pytest.mark.parametrize(("typo", "meant"), [("rnak", "adapter.rank"), ("trian.seed", "train.seed")])
def test_explain_names_the_nearest(typo: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean '{meant}'"):
        explain(typo)


def test_a_resolved_config_reads_back_as_it_is(tmp_path: Path) -> None:
    config = load(tree=LEAST | {"eval": {"prompts": ["a: b # c", "é\n\"'", "2e-4", "null"]}}, preset="qlora")
    path = tmp_path / "c.yaml"
    path.write_text(as_yaml(config, {"train.seed": "as\nset"}))
    assert load(file=path) == config == validate(config.model_dump())


@pytest.mark.parametrize("preset", [None, *PROMISED])
def test_the_starter_file_is_a_config(tmp_path: Path, preset: str | None) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(starter(preset))
    config = load(file=path)
    assert (config.model.base_model, config.data.train) == ("builtin:nano", "data.jsonl")
    wanted = load(tree=LEAST, preset=preset)
    assert (config.adapter, config.eval) == (wanted.adapter, wanted.eval)


def test_the_page_of_settings_is_current() -> None:
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == markdown(), "run: make docs"


@pytest.mark.parametrize("written", ["off", "'off'"])
def test_off_is_a_word_as_the_documentation_writes_it(written: str, tmp_path: Path) -> None:
    key, value = parse_assignment(f"data.check={written}")
    path = tmp_path / "c.yaml"
    path.write_text(f"model: {{base_model: a}}\ndata: {{train: a.jsonl, check: {written}}}\n")
    assert load(path).data.check == load(path, {key: value}).data.check == "off"
    path.write_text(as_yaml(load(path), {}))
    assert load(path).data.check == "off"


@pytest.mark.parametrize(("written", "value"), [("yes", True), ("No", False), ("true", True), ("FALSE", False)])
def test_the_words_for_true_and_false(written: str, value: bool) -> None:
    assert parse_yaml(written, "a") is value
    assert parse_yaml(in_yaml(written), "a") == written
