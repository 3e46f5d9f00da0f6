"""The words of a comparison: a sentence for each of its values, the same in the terminal, the reports and JSON."""

from __future__ import annotations

import shlex
from typing import assert_never

from inlay.errors import count_shown
from inlay.evaluation import caveats as c
from inlay.evaluation.style_relevance import STYLE, StyleRelevance
from inlay.evaluation.verdict import Difference
from inlay.runs.reporter import change_shown


def headline(loss_name: str, loss: Difference, answers_name: str | None, answers: Difference | None) -> str:
    """The verdict by held-out loss and by the answers, both: a model may predict better and answer no better."""
    parts = [_verdict(f"held-out {loss_name}", loss)]
    if answers is None:
        return "; ".join([*parts, "no answers to judge"])
    parts.append(_verdict(f"answers by {answers_name}", answers))
    if loss.verdict == "better" and answers.verdict != "better":
        answers_are = "worse" if answers.verdict == "worse" else "no better as far as these rows show"
        parts.append(f"so it predicts the references better, and its answers are {answers_are}")
    return "; ".join(parts)


def _verdict(of: str, d: Difference) -> str:
    return f"{of}: {d.verdict} ({_change(d)})"


def _change(d: Difference) -> str:
    return change_shown(d, "{:+.4g}".format)


def p_shown(p: float | None) -> str:
    """Two digits; a dash where too few rows give none."""
    return "—" if p is None else f"{p:.2g}"


def preference_text(d: Difference, base: str, adapter: str) -> str:
    """Number of rows on which each model's answer was preferred in a blind comparison."""
    return (
        f"judged blindly: {adapter} preferred on {d.wins} of {count_shown(d.n, 'row')}, {base} on {d.losses}, "
        f"{d.ties} alike: {d.verdict} ({_change(d)})"
    )


def seeds_title(names: tuple[str, ...]) -> str:
    """Heading of trainings of one config."""
    return f"{len(names)} seeds of one config: {', '.join(names)}"


def style_relevance_text(one: StyleRelevance) -> str:
    """The scores of both models, and how well the measure separates references from shuffled ones."""
    name = one.metric.name
    from_what = "shuffled text" if one.metric is STYLE else "those of other prompts"
    if not one.separates:
        return f"{name} is not shown: it does not separate references from {from_what} (AUC {one.auc:.2f})"
    scores = ", ".join(f"{side} {mean:.2f}" for side, mean in zip(("base", "adapter"), one.means, strict=False))
    return f"{name} score (references = 0.5): {scores}; it separates references from {from_what} (AUC {one.auc:.2f})"


def caveat_text(caveat: c.Caveat) -> str:
    """One or two sentences, with what to do."""
    match caveat:
        case c.ModelCaution(text):
            return text
        case c.ChangedSettings(changes):
            return f"set for this comparison: {', '.join(changes)}."
        case c.RowsLeftOut(count):
            return f"{count_shown(count, 'row is', 'rows are')} left out: longer than data.max_length or the context."
        case c.DifferentTokenizers():
            return "The models have different tokenizers, so loss per token is not comparable: see bits_per_byte."
        case c.NoAnswers():
            return "No answers were generated: none of the metrics needs them."
        case c.SeveralModels(count):
            return (
                f"{count} models are compared on the same rows, so the score of the best one is slightly optimistic. "
                "Confirm it on unseen rows: --data FILE."
            )
        case c.SeedsOfOneConfig(names):
            return (
                f"{', '.join(names)} are one config with several seeds. To judge them as one: "
                f"inlay compare base {shlex.join(names)}."
            )
        case c.SelectedCheckpoint(checkpoints):
            return (
                f"The checkpoint was selected on these rows (best of {checkpoints}), so the score is slightly "
                "optimistic; use --data FILE with unseen rows."
            )
        case c.ArmsOnTheSameRows():
            return "the arms were compared on the same rows, so the score of the best one is slightly optimistic"
        case c.TrainedWithoutPassages():
            return (
                "the adapter was trained without passages in its prompts; one trained with them might use them better"
            )
        case c.PromptsOverBudget(count):
            left_out = count_shown(count, "held-out row is", "held-out rows are")
            return f"{left_out} left out of all arms, as no prompt of this budget holds them"
        case c.RepeatedTrainingRows(count):
            repeats = count_shown(count, "training row repeats", "training rows repeat")
            return (
                f"{repeats} a held-out row nearly word for word: retrieval leaves such rows out, but the adapter was "
                "trained on them, so its score is optimistic. Look at them: inlay data check"
            )
        case c.RepeatedPassages(count):
            hold = count_shown(count, "passage of the documents holds", "passages of the documents hold")
            return f"{hold} a held-out question with its answer: left out"
        case c.FilesPassedOver(count):
            return f"{count_shown(count, 'file that is not text was', 'files that are not text were')} passed over"
        case _:
            assert_never(caveat)
