"""What ends an answer, and ids that a base has no row for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

import inlay
import toys
from inlay import api
from inlay.data.encoding.encoder import Encoder
from inlay.data.types import Example, Message, Source
from inlay.errors import DataError, ModelError
from parts import make_base, qa_rows, write_rows

ASKED = Message("user", "Well?")
ANSWERED = (ASKED, Message("assistant", "So it is.", 1.0))


def with_plain_end() -> Any:
    """The built-in tokenizer, to which the template's end is an ordinary added token."""
    tokenizer = toys.nano(toys.CHATML.replace("<|im_end|>", "<turn_end>"))
    tokenizer.add_tokens([AddedToken("<turn_end>", special=False, normalized=False)])
    tokenizer.eos_token = "<|reserved_0|>"
    return tokenizer


def test_an_end_that_the_tokenizer_holds_as_an_ordinary_token_ends_an_answer_and_is_not_shown() -> None:
    enc = Encoder(with_plain_end())
    end = int(enc.tokenizer.convert_tokens_to_ids("<turn_end>"))
    ((_, row),) = enc.examples([Example(ANSWERED, Source("a", 1))])
    trained = row.input_ids[row.weights > 0]
    assert trained[-1] == end
    assert end in enc.stop_ids
    assert enc.text(trained.tolist()) == "So it is."
    with pytest.raises(DataError, match="turn 1"):
        enc.prompt([Message("user", "What is <turn_end>?")])
    quoting = Encoder(with_plain_end(), special_tokens="escape")
    assert quoting.prompt([Message("user", "What is <turn_end>?")]).count(end) == 1


def test_an_end_that_the_template_writes_as_text_is_not_a_part_of_the_answer() -> None:
    enc = Encoder(toys.nano(toys.CHATML.replace("<|im_end|>", "[over]")))
    ((_, row),) = enc.examples([Example(ANSWERED, Source("a", 1))])
    assert enc.tokenizer.decode(row.input_ids[row.weights > 0]) == "So it is.[over]\n<|im_end|>"
    assert enc.text(row.input_ids[row.weights > 0].tolist()) == "So it is."


def test_the_adapter_folder_names_every_id_that_ends_an_answer(tmp_path: Path, config_tree: Any) -> None:
    base = make_base(tmp_path / "base")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}))
    tree = config_tree(train={"max_steps": 1, "epochs": 1})
    run = inlay.train(tree | {"model": tree["model"] | {"base_model": str(base)}})
    ends = ends_told(run)
    tokenizer = inlay.load(run).encoder.tokenizer
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|endoftext|>", "<|im_end|>"]


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_what_ended_the_answers_of_the_base_still_ends_them(
    tmp_path: Path, config_tree: Any, method: str, file: str
) -> None:
    base = make_base(tmp_path / "base")
    (base / "generation_config.json").unlink()
    settings = json.loads((base / file).read_text()) if (base / file).exists() else {}
    (base / file).write_text(json.dumps(settings | {"eos_token_id": [9, 0]}))
    tree = config_tree(model={"base_model": str(base)}, train={"max_steps": 1, "epochs": 1})
    run = inlay.train(tree | {"adapter": {"method": method}})
    assert ends_told(run) == [0, 2, 9]
    if method == "full":
        assert json.loads((run.trained / "config.json").read_text())["eos_token_id"] == (
            [9, 0] if file == "config.json" else 2
        )


def ends_told(run: Any) -> list[int]:
    ends: list[int] = json.loads((run.trained / "generation_config.json").read_text())["eos_token_id"]
    return ends


@pytest.fixture
def short_base(tmp_path: Path) -> Path:
    """A base whose tokenizer has two tokens behind its last row: the pad token and `<extra>`."""
    base = make_base(tmp_path / "short")
    tokenizer = toys.nano()
    tokenizer.add_special_tokens({"pad_token": "<extra_pad>"})
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(str(base))
    return base


def test_a_pad_token_without_a_row_is_never_looked_up(short_base: Path, config_tree: Any) -> None:
    tree = config_tree(train={"max_steps": 1, "epochs": 1})
    run = inlay.train(tree | {"model": tree["model"] | {"base_model": str(short_base)}})
    assert run.status == "finished"
    loaded = inlay.load(run)
    assert len(loaded.generate_many(["Well?", "And then, after all of this?"], max_new_tokens=2)) == 2
    with pytest.raises(
        DataError, match=r"prompt:1: holds the token '<extra>' with the id \d+, but the base knows only"
    ):
        loaded.generate("What is <extra>?")


def test_a_token_of_a_row_that_the_base_has_no_row_for_is_found_before_a_run_and_by_the_check(
    tmp_path: Path, short_base: Path, config_tree: Any
) -> None:
    rows = qa_rows(40)
    rows[20]["answer"] = "That is <extra>."
    path = write_rows(tmp_path / "rows.jsonl", rows)
    tree = config_tree(data={"train": str(path)})
    with pytest.raises(DataError, match=r"rows\.jsonl:21: holds the token '<extra>'"):
        inlay.train(tree | {"model": tree["model"] | {"base_model": str(short_base)}})
    assert not (tmp_path / "results").exists()
    report = api.check_data(str(path), model=str(short_base))
    assert [one.kind for one in report.findings if one.severity == "error"] == ["row-refused-by-the-encoder"]


def test_an_end_of_turn_without_a_row_is_refused_by_name(tmp_path: Path, short_base: Path, data_file: Path) -> None:
    template = short_base / "chat_template.jinja"
    template.write_text(toys.CHATML.replace("<|im_end|>", "<extra>"))
    with pytest.raises(ModelError, match=r"'<extra>'.*only \d+ rows"):
        api.check_data(str(data_file), model=str(short_base))
