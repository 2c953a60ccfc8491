"""The example's n-gram is a distribution over the corpus' words, and prefers the corpus' texts."""

import runpy

import numpy as np
import pytest

from foldray.data.manifest import Manifest
from foldray.evaluation.ngram import read_arpa
from tests.support.paths import PROJECT


@pytest.fixture(scope="module")
def trained(prepared: tuple[str, Manifest], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    example = runpy.run_path(str(PROJECT / "examples" / "train_ngram.py"))
    texts = list(example["read_texts"](prepared[0], "train"))
    file = tmp_path_factory.mktemp("ngram") / "corpus.arpa"
    example["train_ngram"](texts, 3, file)
    return texts, str(file)


def test_texts_are_those_of_the_split(trained: tuple[list[str], str], prepared: tuple[str, Manifest]) -> None:
    texts, file = trained
    assert len(texts) == prepared[1].rows_by_split["train"]
    assert read_arpa(file).words == set(" ".join(texts).split())


def test_every_context_has_a_distribution_over_words(trained: tuple[list[str], str]) -> None:
    texts, file = trained
    model = read_arpa(file)
    state = model.start()
    for word in texts[0].split():
        scores = [model.score(state, each)[0] for each in [*sorted(model.words), "</s>"]]
        assert np.exp(scores).sum() == pytest.approx(1.0, abs=1e-3)
        assert model.score(state, word)[0] > np.log(1 / len(model.words))
        state = model.score(state, word)[1]
