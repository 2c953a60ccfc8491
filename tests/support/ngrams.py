"""Small n-grams: their ARPA files, and an independent reading of them."""

import math
import random
from pathlib import Path
from typing import TYPE_CHECKING

from foldray.evaluation.ngram import LEAST, read_arpa
from tests.support.mutate import HUGE, damage_bytes

if TYPE_CHECKING:
    from tests.support.fuzz_kinds import Surroundings

ARPA = """\\data\\
ngram 1=6
ngram 2=5

\\1-grams:
-1.7\t<unk>
-99\t<s>\t-0.30
-0.8\t</s>
-0.5\tA\t-0.20
-0.6\tB\t-0.10
-0.9\tAB\t-0.40

\\2-grams:
-0.2\t<s> A
-0.3\tA B
-0.4\tB </s>
-0.9\tA A
-1.1\tAB A

\\end\\
"""


def write_arpa(folder: Path, text: str = ARPA, name: str = "small.arpa") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def bigram_score(words: list[str], arpa: str = ARPA) -> float:
    """Natural logarithm of P(words </s>) by Katz back-off, read from the file without KenLM."""
    probs: dict[tuple[str, ...], float] = {}
    backoffs: dict[tuple[str, ...], float] = {}
    for line in arpa.splitlines():
        prob, _, rest = line.partition("\t")
        if rest:
            ngram, _, backoff = rest.partition("\t")
            probs[tuple(ngram.split())] = float(prob)
            backoffs[tuple(ngram.split())] = float(backoff or 0)
    total, before = 0.0, "<s>"
    for word in [*words, "</s>"]:
        known = word if (word,) in probs else "<unk>"
        total += probs.get((before, known), backoffs[(before,)] + probs[(known,)])
        before = known
    return total * math.log(10)


ODD = ["-1e38", "1e38", "<s>", "</s>", "<unk>", "A B", "-0.5", "-inf"]
"""Fields that an ARPA file may have, and some that it should not have there."""


def fuzz_ngram(rng: random.Random, around: "Surroundings") -> None:
    """Read a damaged ARPA file and score words with it."""
    fields = [line.split("\t") for line in ARPA.splitlines()]
    for _ in range(rng.choice((0, 1, 2))):
        line = rng.choice(fields)
        line[rng.randrange(len(line))] = str(rng.choice([*HUGE, *ODD]))
        if rng.random() < 0.3:
            fields.insert(rng.randrange(len(fields)), rng.choice(fields))
    data = "\n".join("\t".join(line) for line in fields).encode() + b"\n"
    file = around.folder / "case.arpa"
    file.write_bytes(damage_bytes(data, rng) if rng.random() < 0.5 else data)
    model = read_arpa(str(file))
    state = model.start()
    for word in ["A", "B", "", "nowhere", *sorted(model.words)[:5], "</s>"]:
        score, state = model.score(state, word)
        assert LEAST * 2.4 < score <= 0, score
