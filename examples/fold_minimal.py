"""Fold and train a small speech recognizer without Ray: three stored blocks that also run as six.

    python examples/fold_minimal.py

Read it from top to bottom. The speech is synthetic, one tone for each letter, so nothing is
downloaded; the model is a stock transformers model. Half a minute on one CPU core.
"""

import tempfile
from collections.abc import Iterator

import jiwer
import torch
import torchaudio
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, Wav2Vec2BertConfig, Wav2Vec2BertForCTC
from transformers.utils.logging import disable_progress_bar

from foldray import FoldPlan, fold, load_model, save_model, unroll
from foldray.folding.loss import StepCounts, joint_loss

STEPS = 120
BATCH = 16
RATE = 16_000
LETTERS = " abcdefgh"  # token 0 is the CTC blank, token 1 the space
PLAN = FoldPlan(num_layers=3, depths=(3, 6))  # 0 1 2, and 0 0 1 1 2 2: `in_place`

# --- Data: each letter is a tone, in another voice for every utterance ------------------------------


def speak(text: str, random: torch.Generator) -> Tensor:
    """Return the waveform of a text, (samples,): tones of 60 to 100 ms and silence for spaces, in noise."""
    pitch = 0.97 + 0.06 * torch.rand(1, generator=random).item()
    tones = []
    for letter in text:
        seconds = 0.06 + 0.04 * torch.rand(1, generator=random).item()
        hertz = 0.0 if letter == " " else pitch * 300 * 1.3 ** LETTERS.index(letter)
        tones.append(torch.sin(2 * torch.pi * hertz * torch.arange(int(seconds * RATE)) / RATE))
    waveform = torch.cat(tones)
    return waveform + 0.3 * torch.randn(len(waveform), generator=random)


def make_corpus(utterances: int, lexicon: list[str], random: torch.Generator) -> list[tuple[Tensor, str]]:
    """Return (features (T, 40), text) for sentences of two to four words."""
    mel = torchaudio.transforms.MelSpectrogram(RATE, n_fft=512, hop_length=320, n_mels=40)
    corpus = []
    for _ in range(utterances):
        length = int(torch.randint(2, 5, (1,), generator=random))
        text = " ".join(lexicon[i] for i in torch.randint(len(lexicon), (length,), generator=random))
        features_TF = mel(speak(text, random)).add(1e-4).log().T
        corpus.append(((features_TF - features_TF.mean()) / features_TF.std(), text))
    return corpus


def collate(batch: list[tuple[Tensor, str]]) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Pad a batch: model inputs, frames (B,), labels (B, U), number of labels (B,)."""
    frames_B = torch.tensor([len(features) for features, _ in batch])
    labels = [torch.tensor([1 + LETTERS.index(letter) for letter in text]) for _, text in batch]
    features_BTF = pad_sequence([features for features, _ in batch], batch_first=True)
    mask_BT = (torch.arange(features_BTF.shape[1]) < frames_B[:, None]).long()
    inputs = {"input_features": features_BTF, "attention_mask": mask_BT}
    return inputs, frames_B, pad_sequence(labels, batch_first=True), torch.tensor([len(row) for row in labels])


# --- Model: a stock one, folded in place ------------------------------------------------------------


def build_model() -> PreTrainedModel:
    config = Wav2Vec2BertConfig(
        vocab_size=1 + len(LETTERS), pad_token_id=0, feature_projection_input_dim=40, num_hidden_layers=3,
        hidden_size=64, num_attention_heads=4, intermediate_size=128, conv_depthwise_kernel_size=9,
        initializer_range=0.1, apply_spec_augment=False, hidden_dropout=0.0, attention_dropout=0.0,
        activation_dropout=0.0, feat_proj_dropout=0.0, conformer_conv_dropout=0.0, final_dropout=0.0,
    )  # fmt: skip
    return fold(Wav2Vec2BertForCTC(config), PLAN)


# --- Training: a plain torch loop -------------------------------------------------------------------


def train(model: PreTrainedModel, corpus: list[tuple[Tensor, str]], random: torch.Generator) -> Iterator[list[float]]:
    """Take joint steps; yield the CTC loss per label of every depth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=STEPS, pct_start=0.1)
    model.train()
    for _ in range(STEPS):
        chosen = torch.randint(len(corpus), (BATCH,), generator=random)
        inputs, frames_B, labels_BU, num_labels_B = collate([corpus[i] for i in chosen])
        logits_PBTV = model(**inputs).logits.unflatten(0, (len(PLAN.depths), BATCH))  # every depth in one pass
        counts = StepCounts(labels=int(num_labels_B.sum()), frames=int(frames_B.sum()))
        loss = joint_loss(logits_PBTV, frames_B, labels_BU, num_labels_B, counts, alpha=0.5, beta=0.1)
        optimizer.zero_grad()
        loss.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.task_P.tolist()


# --- Evaluation: greedy CTC at every depth ----------------------------------------------------------


@torch.no_grad()
def transcribe(model: PreTrainedModel, corpus: list[tuple[Tensor, str]]) -> list[list[str]]:
    """Return the hypotheses of every depth."""
    inputs, frames_B, _, _ = collate(corpus)
    best_PBT = model.eval()(**inputs).logits.argmax(-1).unflatten(0, (-1, len(corpus)))
    texts = []
    for best_BT in best_PBT:
        tokens = [best_T[:frames].unique_consecutive() for best_T, frames in zip(best_BT, frames_B, strict=True)]
        texts.append(["".join(LETTERS[token - 1] for token in row if token > 0) for row in tokens])
    return texts


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    disable_progress_bar()
    random = torch.Generator().manual_seed(0)
    spelled = torch.randint(1, len(LETTERS), (24, 4), generator=random).tolist()
    lexicon = ["".join(LETTERS[letter] for letter in word) for word in spelled]
    train_set, test_set = make_corpus(200, lexicon, random), make_corpus(40, lexicon, random)

    model = build_model()
    for step, losses in enumerate(train(model, train_set, random)):
        if step % 20 == 0 or step == STEPS - 1:
            by_depth = [f"depth {depth}: {loss:.3f}" for depth, loss in zip(PLAN.depths, losses, strict=True)]
            print(f"step {step:3}", *by_depth, sep="  ")

    references = [text for _, text in test_set]
    for depth, texts in zip(PLAN.depths, transcribe(model, test_set), strict=True):
        print(f"depth {depth}  WER {jiwer.wer(references, texts):.1%}  CER {jiwer.cer(references, texts):.1%}")

    inputs = collate(test_set)[0]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_model(model, folder)  # also a stock checkpoint of the three blocks
        for depth in PLAN.depths:
            loaded, stock = load_model(folder, depth=depth), unroll(model, depth)
            difference = (loaded(**inputs).logits - stock(**inputs).logits).abs().max().item()
            print(f"depth {depth}  saved, loaded, and unrolled to {depth} blocks: difference {difference}")


if __name__ == "__main__":
    main()
