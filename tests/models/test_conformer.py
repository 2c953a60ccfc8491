"""The hybrid Conformer: the paper's sizes, folded equals unshared, and search equals its definition."""

import copy
import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForSpeechSeq2Seq, ParakeetEncoderConfig

from foldray.evaluation.beam_search import attention_decode, rescore
from foldray.evaluation.prefix_search import ctc_nbest
from foldray.folding.plan import FoldPlan
from foldray.folding.stack import FoldedStack
from foldray.models.conformer import ConformerConfig, ConformerForSpeech

VOCABULARY = 11
END = VOCABULARY - 1
PLAN = FoldPlan(2, (2, 3, 4))
ENCODER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "conv_kernel_size": 9, "num_mel_bins": 16, "subsampling_conv_channels": 8,
}  # fmt: skip


def tiny(**fields: object) -> ConformerForSpeech:
    """A tiny model whose weights are large enough for its outputs to depend on the audio."""
    torch.manual_seed(0)
    shape = {"decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 2, **fields}
    model = ConformerForSpeech(ConformerConfig(encoder_config=ENCODER, vocab_size=VOCABULARY, **shape))
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            module.reset_parameters()
    return model.eval()


def folded(plan: FoldPlan = PLAN) -> ConformerForSpeech:
    model = tiny()
    model.encoder.layers = FoldedStack(model.encoder.layers, plan)
    return model


def unshared(model: ConformerForSpeech, depth: int) -> ConformerForSpeech:
    """One depth of a folded model as a model of its own."""
    stack = model.encoder.layers
    stock = copy.deepcopy(model)
    stock.encoder.layers = nn.ModuleList(copy.deepcopy(stack[layer]) for layer in stack.plan.path(depth))
    return stock


def features(*windows: int) -> dict[str, Tensor]:
    """Noise of so many windows an utterance, padded with zeros to the longest."""
    generator = torch.Generator().manual_seed(len(windows))
    features_BTF = torch.zeros(len(windows), max(windows), 16)
    mask_BT = torch.zeros(len(windows), max(windows), dtype=torch.long)
    for b, count in enumerate(windows):
        features_BTF[b, :count] = torch.randn(count, 16, generator=generator)
        mask_BT[b, :count] = 1
    return {"input_features": features_BTF, "attention_mask": mask_BT}


def alone(inputs: dict[str, Tensor], b: int) -> dict[str, Tensor]:
    count = int(inputs["attention_mask"][b].sum())
    return {key: value[b : b + 1, :count] for key, value in inputs.items()}


Taught = tuple[ConformerForSpeech, dict[str, Tensor]]
TOKENS = torch.tensor([[END, 3, 4, 5], [END, 6, 0, 0]])


# --- Sizes and configuration -----------------------------------------------------------------------


def count_parameters(**encoder: int) -> int:
    with torch.device("meta"):
        model = ConformerForSpeech(ConformerConfig(encoder_config=encoder))
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_default_has_the_papers_size_and_half_its_blocks_the_papers_saving() -> None:
    full, half = count_parameters(), count_parameters(num_hidden_layers=6)
    assert full == 44_592_032
    assert full == pytest.approx(44.53e6, rel=0.01)
    assert 100 * (1 - half / full) == pytest.approx(35.6, abs=0.3)


def test_start_and_end_are_the_last_token_and_blank_is_the_first() -> None:
    config = ConformerConfig(vocab_size=50)
    assert (config.bos_token_id, config.eos_token_id, config.decoder_start_token_id) == (49, 49, 49)
    assert config.pad_token_id == 0
    config.vocab_size = 60
    with pytest.raises(ValueError, match="vocab_size was changed"):
        ConformerForSpeech(config)


def test_a_saved_configuration_loads_equal(tmp_path: Path) -> None:
    """Also a value that is the stock encoder's default but not ours: the file holds differences only."""
    config = ConformerConfig(encoder_config={"num_attention_heads": ParakeetEncoderConfig().num_attention_heads})
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()
    assert config.encoder_config.intermediate_size == 2048


def test_a_saved_model_loads_equal_and_whole(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    loaded, report = ConformerForSpeech.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    inputs = features(40, 29)
    with torch.no_grad():
        ours, theirs = (each(**inputs, decoder_input_ids=TOKENS) for each in (model, loaded.eval()))
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.ctc_logits, theirs.ctc_logits)
    assert type(AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)) is ConformerForSpeech


# --- Forward ---------------------------------------------------------------------------------------


def test_folded_equals_an_unshared_copy_at_every_depth() -> None:
    model = folded()
    inputs = features(60, 37)
    with torch.no_grad():
        every = model(**inputs, decoder_input_ids=TOKENS)
        for path, depth in enumerate(PLAN.depths):
            rows = slice(2 * path, 2 * path + 2)
            stock = unshared(model, depth)(**inputs, decoder_input_ids=TOKENS)
            assert torch.equal(every.ctc_logits[rows], stock.ctc_logits), depth
            torch.testing.assert_close(every.logits[rows], stock.logits, rtol=0, atol=2e-6)
            model.encoder.layers.run_depths = (depth,)
            single = model(**inputs, decoder_input_ids=TOKENS)
            assert torch.equal(single.logits, stock.logits), depth
            assert torch.equal(single.encoder_last_hidden_state, stock.encoder_last_hidden_state), depth
            model.encoder.layers.run_depths = PLAN.depths


def test_without_tokens_only_ctc_is_computed_and_a_given_encoding_is_not_computed_again() -> None:
    model = tiny()
    inputs = features(40, 29)
    with torch.no_grad():
        whole = model(**inputs, decoder_input_ids=TOKENS)
        heard = model(**inputs)
        given = model(
            encoder_outputs=model.encoder(**inputs),
            attention_mask=inputs["attention_mask"],
            decoder_input_ids=TOKENS,
        )
    assert heard.logits is None
    assert torch.equal(heard.ctc_logits, whole.ctc_logits)
    assert given.ctc_logits is None
    assert torch.equal(given.logits, whole.logits)


def test_padding_does_not_change_what_either_head_says() -> None:
    model = tiny()
    inputs = features(60, 37)
    with torch.no_grad():
        batch = model(**inputs, decoder_input_ids=TOKENS)
        single = model(**alone(inputs, 1), decoder_input_ids=TOKENS[1:])
    frames = single.ctc_logits.shape[1]
    torch.testing.assert_close(batch.ctc_logits[1:, :frames], single.ctc_logits, rtol=0, atol=2e-6)
    torch.testing.assert_close(batch.logits[1:], single.logits, rtol=0, atol=2e-6)
    counted = model.encoder._get_output_attention_mask(inputs["attention_mask"], target_length=15).sum(1).tolist()
    assert counted == [15, frames]


def test_rows_that_do_not_fit_the_encoder_are_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="3 rows, not a multiple of the 2"):
        model(**features(40, 29, 20), decoder_input_ids=TOKENS)


def gradients(model: ConformerForSpeech, inputs: dict[str, Tensor]) -> dict[str, Tensor | None]:
    output = model(**inputs, decoder_input_ids=TOKENS)
    (output.logits.square().mean() + output.ctc_logits.square().mean()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_every_parameter_is_trained_and_checkpointing_gives_the_same_gradients() -> None:
    without_dropout = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    model = tiny(**without_dropout)
    model.encoder.layers = FoldedStack(model.encoder.layers, PLAN)
    for module in model.encoder.modules():
        for name in ("dropout", "dropout_positions", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    twin = copy.deepcopy(model)
    twin.gradient_checkpointing_enable({"use_reentrant": False})
    assert twin.encoder.layers[0].gradient_checkpointing
    assert twin.decoder.layers[0].gradient_checkpointing
    inputs = features(40, 29)
    plain, checkpointed = (gradients(each.train(), inputs) for each in (model, twin))
    assert [name for name, gradient in plain.items() if gradient is None] == []
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


# --- Generation ------------------------------------------------------------------------------------


SENTENCES = [[3, 4, 4, 5, 1], [6, 2], [2, 9, 7, 3]]
FRAMES = [23, 10, 16]


@pytest.fixture(scope="module")
def taught() -> Taught:
    """A model that has learnt three sentences by heart, and their audio."""
    model = tiny(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    inputs = features(90, 37, 61)
    labels_BU = pad_sequence([torch.tensor(tokens) for tokens in SENTENCES], batch_first=True)
    targets_BU = pad_sequence([torch.tensor([*t, END]) for t in SENTENCES], batch_first=True, padding_value=-100)
    ids_BU = pad_sequence([torch.tensor([END, *tokens]) for tokens in SENTENCES], batch_first=True)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(120):
        output = model(**inputs, decoder_input_ids=ids_BU)
        attention = F.cross_entropy(output.logits.mT, targets_BU)
        log_probs_TBV = output.ctc_logits.log_softmax(-1).transpose(0, 1)
        ctc = F.ctc_loss(log_probs_TBV, labels_BU, FRAMES, [len(tokens) for tokens in SENTENCES])
        optimiser.zero_grad()
        (0.7 * attention + 0.3 * ctc).backward()
        optimiser.step()
    return model, inputs


@pytest.mark.main
def test_a_few_steps_teach_both_heads_their_sentences(taught: Taught) -> None:
    model, inputs = taught
    with torch.no_grad():
        log_probs_BTV = model(**inputs).ctc_logits.log_softmax(-1)
    nbest = [ctc_nbest(log_probs_TV[:frames], 4) for log_probs_TV, frames in zip(log_probs_BTV, FRAMES, strict=True)]
    assert [hypotheses[0][0] for hypotheses in nbest] == SENTENCES
    assert rescore(model, inputs, nbest, 0.3) == SENTENCES


@pytest.mark.parametrize("beams", [1, 3])
def test_decoding_in_a_padded_batch_equals_decoding_alone(taught: Taught, beams: int) -> None:
    model, inputs = taught
    assert attention_decode(model, inputs, max_length=12, num_beams=beams) == SENTENCES
    for unheard in (inputs, features(44, 71)):
        batch = attention_decode(model, unheard, max_length=12, num_beams=beams)
        assert batch == [attention_decode(model, alone(unheard, b), 12, beams)[0] for b in range(len(batch))]
        assert not any({0, END} & set(tokens) for tokens in batch)


def test_decoding_with_and_without_cache_and_by_hand_are_equal(
    taught: Taught,
) -> None:
    model, inputs = taught
    cached, uncached = (
        model.generate(**inputs, max_new_tokens=12, suppress_tokens=[0], use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, uncached)
    for b in range(3):
        tokens = [END]
        while len(tokens) == 1 or tokens[-1] != END:
            with torch.no_grad():
                logits_V = model(**alone(inputs, b), decoder_input_ids=torch.tensor([tokens])).logits[0, -1]
            tokens.append(1 + int(logits_V[1:].argmax()))
        assert cached[b, : len(tokens)].tolist() == tokens


@pytest.mark.parametrize("beams", [1, 2])
def test_decoding_of_several_depths_at_once_is_refused(beams: int) -> None:
    model = folded()
    inputs = features(40, 29)
    with pytest.raises(ValueError, match=r"ran 3 depths.*set_depths"):
        attention_decode(model, inputs, 5, beams)
    with pytest.raises(ValueError, match=r"ran 3 depths.*set_depths"):
        rescore(model, inputs, [[([1], 0.0)], [([2], 0.0)]], 0.5)
    model.encoder.layers.run_depths = (3,)
    assert attention_decode(model, inputs, 5, beams) == attention_decode(unshared(model, 3), inputs, 5, beams)


def test_a_sentence_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="has 6 positions"):
        attention_decode(tiny(max_target_positions=6), features(40), 7, 1)
    assert len(attention_decode(tiny(max_target_positions=6), features(40), 6, 1)) == 1


# --- Search ----------------------------------------------------------------------------------------


def every_hypothesis(log_probs_TV: Tensor, blank: int) -> dict[tuple[int, ...], float]:
    """P(tokens | audio) of every token sequence, by summing over every alignment."""
    frames, vocabulary = log_probs_TV.shape
    totals: dict[tuple[int, ...], float] = {}
    for alignment in itertools.product(range(vocabulary), repeat=frames):
        merged = [token for token, _ in itertools.groupby(alignment) if token != blank]
        score = math.exp(sum(float(log_probs_TV[t, token]) for t, token in enumerate(alignment)))
        totals[tuple(merged)] = totals.get(tuple(merged), 0.0) + score
    return totals


@pytest.mark.parametrize(("frames", "vocabulary", "blank"), [(1, 3, 0), (5, 3, 0), (5, 3, 2), (4, 4, 1), (6, 2, 0)])
def test_a_wide_beam_finds_every_hypothesis_with_its_exact_score(frames: int, vocabulary: int, blank: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    log_probs_TV = torch.randn(frames, vocabulary, generator=generator).double().mul(2).log_softmax(-1)
    truth = every_hypothesis(log_probs_TV, blank)
    found = ctc_nbest(log_probs_TV, beam=1000, blank=blank)
    assert {tuple(tokens) for tokens, _ in found} == set(truth)
    for tokens, score in found:
        assert score == pytest.approx(math.log(truth[tuple(tokens)]), abs=1e-9)
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    assert math.fsum(math.exp(score) for score in scores) == pytest.approx(1.0)


def plain_search(log_probs_TV: Tensor, beam: int) -> list[tuple[int, ...]]:
    """Prefix beam search that tries every token after every prefix."""
    prefixes = {(): (1.0, 0.0)}
    for frame_V in log_probs_TV.exp().tolist():
        ahead: dict[tuple[int, ...], list[float]] = {}
        for prefix, (in_blank, in_token) in prefixes.items():
            ahead.setdefault(prefix, [0.0, 0.0])[0] += (in_blank + in_token) * frame_V[0]
            for token, p in enumerate(frame_V[1:], 1):
                if prefix[-1:] == (token,):
                    ahead[prefix][1] += in_token * p
                    ahead.setdefault((*prefix, token), [0.0, 0.0])[1] += in_blank * p
                else:
                    ahead.setdefault((*prefix, token), [0.0, 0.0])[1] += (in_blank + in_token) * p
        best = sorted(ahead.items(), key=lambda entry: -sum(entry[1]))[:beam]
        prefixes = {prefix: (scores[0], scores[1]) for prefix, scores in best}
    return list(prefixes)


@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize("peaked", [0.5, 2.0, 6.0])
def test_a_narrow_beam_loses_nothing_by_its_shortcuts(beam: int, peaked: float) -> None:
    generator = torch.Generator().manual_seed(beam)
    for _ in range(10):
        log_probs_TV = torch.randn(12, 9, generator=generator).double().mul(peaked).log_softmax(-1)
        assert [tuple(tokens) for tokens, _ in ctc_nbest(log_probs_TV, beam)] == plain_search(log_probs_TV, beam)


def test_impossible_hypotheses_are_left_out() -> None:
    certain = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    assert ctc_nbest(certain, beam=5) == [([1], 0.0)]


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3, 1.0])
def test_rescoring_picks_the_best_joint_score(ctc_weight: float) -> None:
    model = tiny()
    inputs = features(60, 37)
    hypotheses = [([1, 2], -1.0), ([7], -3.0), ([], -2.0), ([5, 5, 5, 9], -2.5)]
    slow = []
    for b in range(2):
        spoken = [spoken_alone(model, alone(inputs, b), tokens) for tokens, _ in hypotheses]
        joint = [ctc_weight * ctc + (1 - ctc_weight) * a for (_, ctc), a in zip(hypotheses, spoken, strict=True)]
        slow.append(hypotheses[joint.index(max(joint))][0])
    assert rescore(model, inputs, [hypotheses, hypotheses], ctc_weight) == slow


def test_rescoring_scores_are_those_of_decoding_one_token_after_the_other() -> None:
    """CTC scores that undo the decoder's leave a tie, which a thousandth decides only if both are exact."""
    model = tiny()
    inputs = features(60, 37)
    sentences = [[1, 2], [7], [], [5, 5, 5, 9]]
    for winner in range(len(sentences)):
        nbest = [
            [
                (tokens, -spoken_alone(model, alone(inputs, b), tokens) + (1e-3 if n == winner else 0.0))
                for n, tokens in enumerate(sentences)
            ]
            for b in range(2)
        ]
        assert rescore(model, inputs, nbest, 0.5) == [sentences[winner]] * 2


@torch.no_grad()
def spoken_alone(model: ConformerForSpeech, inputs: dict[str, Tensor], tokens: list[int]) -> float:
    """log P(tokens, end) from the decoder, one token after the other."""
    total = 0.0
    for u, token in enumerate([*tokens, END]):
        logits_UV = model(**inputs, decoder_input_ids=torch.tensor([[END, *tokens[:u]]])).logits[0]
        total += float(logits_UV[-1].log_softmax(-1)[token])
    return total
