"""The words of a comparison: a sentence for each of its values, the same in the terminal, the reports and JSON."""

from __future__ import annotations

from typing import assert_never

from inlay.evaluation import caveats as c
from inlay.evaluation.style_relevance import STYLE, StyleRelevance
from inlay.evaluation.verdict import Difference


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
    return f"{d.difference:+.4g} [{d.low:+.4g}, {d.high:+.4g}]"


def preference_text(d: Difference, base: str, adapter: str) -> str:
    """Number of rows on which each model's answer was preferred in a blind comparison."""
    return (
        f"judged blindly: {adapter} preferred on {d.wins} of {d.n} rows, {base} on {d.losses}, "
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
            return f"{count} rows longer than data.max_length, or than the context, are left out."
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
                f"inlay compare base {' '.join(names)}."
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
            return f"{count} held-out rows fit no prompt of this budget and are left out of all arms"
        case c.RepeatedTrainingRows(count):
            return (
                f"{count} training rows repeat a held-out row nearly word for word: they are not retrieved, but the "
                "adapter was trained on them, so its score is optimistic. Look at them: inlay data check"
            )
        case c.RepeatedPassages(count):
            return f"{count} passages of the documents hold a held-out question with its answer: left out"
        case c.FilesPassedOver(count):
            return f"{count} files that are not text were passed over"
        case _:
            assert_never(caveat)
