"""The card of a model on the hub: metadata as YAML, and one page of Markdown with a row for each depth."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from foldray.results.markdown import code
from foldray.results.rows import ResultRow

if TYPE_CHECKING:
    from foldray.models.hub_license import License

MOST_ROWS = 200
"""Result rows on a card: it is read by people, and rows of a store may be anybody's."""
TASK = "automatic-speech-recognition"
TEXTS = {
    "english": "words of the letters A to Z and the apostrophe, in upper case, without digits or punctuation",
    "english_lower": "words of the letters a to z and the apostrophe, in lower case, without digits or punctuation",
    "unicode": "letters and digits of every script, in upper case, without punctuation",
    "unicode_lower": "letters and digits of every script, in lower case, without punctuation",
    "as_is": "the texts of its training corpus, unchanged",
    "whisper": "the words of Whisper's normaliser of English",
    "whisper_basic": "the words of Whisper's basic normaliser",
}
"""What a model writes, by the text normalisation of its training corpus."""


@dataclass(frozen=True)
class Cost:
    """What one depth costs: parameters and bytes of the file, parameters unshared, and MACs."""

    depth: int
    params_stored: int
    params_unrolled: int
    bytes_stored: int
    macs_per_audio_second: float

    @classmethod
    def of(cls, row: ResultRow) -> Self:
        """Read the cost of a depth from one of its result rows."""
        stored = (row["params_stored"], row["params_unrolled"], row["bytes_stored"])
        return cls(row["depth"], *stored, row["macs_per_audio_second"])


@dataclass(frozen=True)
class ModelFacts:
    """What a card says besides the result rows.

    Attributes:
        page: OWNER/NAME on the hub.
        family: The model family, such as `parakeet`.
        num_layers: Stored blocks.
        costs: The cost of every trained depth, shallowest first.
        is_stock: Whether stock transformers opens it as the seed.
        license: The licence.
        base_model: Hub name of the checkpoint that training started from, "" for random weights or an unknown one.
        text: Text normalisation of the training corpus, "" if unknown.
        origin: Names and values of the provenance table.
    """

    page: str
    family: str
    num_layers: int
    costs: Sequence[Cost]
    is_stock: bool
    license: "License"
    base_model: str = ""
    text: str = ""
    origin: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name without its owner."""
        return self.page.partition("/")[2]


def model_card(facts: ModelFacts, rows: Sequence[ResultRow]) -> str:
    """Return the text of README.md.

    Args:
        facts: What is known about the model.
        rows: Its result rows; depths without any have a row with their costs only.
    """
    shown = sorted(rows, key=lambda row: (row["corpus"], row["split"], row["decoding"], row["depth"]))[:MOST_ROWS]
    environment = Environment(
        loader=PackageLoader("foldray.results", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown: whatever comes from a run goes through `code`
    )
    return environment.get_template("model_card.md.j2").render(
        metadata=_metadata(facts, shown).to_yaml(),
        facts=facts,
        deepest=facts.costs[-1],
        depths=[cost.depth for cost in facts.costs],
        table=[*map(_row, shown), *(_unscored(cost) for cost in facts.costs if _lacks(shown, cost.depth))],
        scored=bool(shown),
        trained=bool(facts.origin.get("recipe")),
        left_out=len(rows) - len(shown),
        origin={name: code(value) for name, value in facts.origin.items() if value},
        licensed=code(facts.license.name or facts.license.id),
        writes=TEXTS.get(facts.text, ""),
    )


def _row(row: ResultRow) -> list[str]:
    """Cells of one depth on one test set."""
    return [
        str(row["depth"]) if row["trained"] else f"{row['depth']} (untrained)",
        code(row["corpus"]),
        code(row["split"]),
        code(row["decoding"]),
        f"{100 * row['wer']:.2f}",
        f"{100 * row['cer']:.2f}",
        f"{row['num_words']:,}",
        f"{row['params_stored']:,}",
        f"{row['bytes_stored']:,}",
        f"{row['macs_per_audio_second'] / 1e6:,.0f} M",
        f"{row['rtfx']:.0f} ({code(row['device'])})",
    ]


def _unscored(cost: Cost) -> list[str]:
    """Cells of a depth without result rows."""
    costs = [f"{cost.params_stored:,}", f"{cost.bytes_stored:,}", f"{cost.macs_per_audio_second / 1e6:,.0f} M"]
    return [str(cost.depth), *["-"] * 6, *costs, "-"]


def _lacks(rows: Sequence[ResultRow], depth: int) -> bool:
    return all(row["depth"] != depth for row in rows)


def _metadata(facts: ModelFacts, rows: Sequence[ResultRow]) -> ModelCardData:
    languages = sorted({found for row in rows for found in re.findall(r"(?:^|\+)([a-z]{2,3})\b", row["language"])})
    return ModelCardData(
        language=languages or None,
        license=facts.license.id,
        license_name=facts.license.name,
        license_link=facts.license.link,
        library_name="foldray",
        pipeline_tag=TASK,
        tags=[TASK, "foldray", "weight-sharing", facts.family],
        base_model=facts.base_model or None,
        metrics=["wer", "cer"],
        model_name=facts.name if rows else None,
        eval_results=[result for row in rows for result in _results(row)] or None,
    )


def _results(row: ResultRow) -> list[EvalResult]:
    """WER and CER of one depth for the card's `model-index`, in percent."""
    way = "" if row["decoding"] == "ctc" else f", {row['decoding']} decoding"
    return [
        EvalResult(
            task_type=TASK,
            task_name="Automatic Speech Recognition",
            dataset_type=row["corpus"],
            dataset_name=row["corpus"],
            dataset_split=row["split"],
            metric_type=metric,
            metric_name=f"{metric.upper()} at depth {row['depth']}{way}",
            metric_value=round(100 * value, 2),
        )
        for metric, value in (("wer", row["wer"]), ("cer", row["cer"]))
    ]
