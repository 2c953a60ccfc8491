"""Word alignments of a hypothesis with its reference, one letter for each step."""

import re

import jiwer

STEPS = {"equal": "C", "substitute": "S", "delete": "D", "insert": "I"}


def align_words(reference: str, hypothesis: str) -> str:
    """Align with the fewest errors: C (correct), S(ubstitution), D(eletion) or I(nsertion) for each step."""
    chunks = jiwer.process_words(reference, hypothesis).alignments[0]
    return "".join(
        STEPS[chunk.type] * max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        for chunk in chunks
    )


def fits(reference: str, hypothesis: str, alignment: str) -> bool:
    """Whether an alignment has a step for each word of both texts, as jiwer counts words."""
    texts = [re.sub(r"\s\s+", " ", text).strip() for text in (reference, hypothesis)]
    counts = [len(text.split(" ")) if text else 0 for text in texts]
    steps = {step: alignment.count(step) for step in STEPS.values()}
    shared = steps["C"] + steps["S"]
    return sum(steps.values()) == len(alignment) and counts == [shared + steps["D"], shared + steps["I"]]


def aligned_words(reference: str, hypothesis: str, alignment: str) -> list[tuple[str, str, str]]:
    """List (step, word of the reference, word of the hypothesis) in order; "" where a side has no word."""
    expected, decoded = iter(reference.split()), iter(hypothesis.split())
    return [(step, "" if step == "I" else next(expected), "" if step == "D" else next(decoded)) for step in alignment]
