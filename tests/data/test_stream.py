"""Streaming: every row group read once and let go, augmentation that belongs to the utterance, back-pressure."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from foldray.config.augment import AugmentSpec
from foldray.data import reader, stream
from foldray.data.augment import Noises, WaveformAugmenter, add_noise, change_speed, coloured_noise, utterance_rng
from foldray.data.epoch import plan_epoch, samples_at_speed
from foldray.data.manifest import Manifest, read_index
from foldray.data.reader import RowReader, read_rows
from foldray.data.stream import BatchLoader
from foldray.errors import UserError
from tests.support.tiny import tiny_model

Prepared = tuple[str, Manifest]


def loader_for(prepared: Prepared, augment: AugmentSpec | None = None, threads: int = 1) -> BatchLoader:
    index = read_index(*prepared, "train")
    return BatchLoader(index, tiny_model("parakeet"), prepared[1].tokenizer, augment, seed=7, threads=threads)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Shard and number of every row group that is read, as it is read."""
    groups: list[tuple[str, int]] = []

    def counting(corpus: str, file: str, number: int) -> list:
        groups.append((file, number))
        return read_rows(corpus, file, number)

    monkeypatch.setattr(reader, "read_rows", counting)
    return groups


def test_an_epoch_reads_every_row_group_once_and_lets_it_go(prepared: Prepared, read: list[tuple[str, int]]) -> None:
    index = read_index(*prepared, "train")
    plan = plan_epoch(index, seed=0, epoch=0, max_duration=12, per_step=2)
    for first in (0, len(plan) // 2):
        read.clear()
        rows = RowReader(index)
        expected = plan.positions_of(0, 1, first)
        rows.expect(expected)
        heard = []
        for batch in plan.share(0, 1, first):
            rows.prefetch(batch)
            heard += [rows(int(position))["id"] for position in batch]
        assert sorted(heard) == sorted(index.ids.take(expected).to_pylist())
        assert len(read) == len(set(read)) == len(np.unique(index.group_of(expected)))
        assert not rows.num_cached


def test_what_is_held_stays_under_its_cap_and_every_row_still_comes(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = read_index(*prepared, "train")
    monkeypatch.setattr(reader, "CACHE_BYTES", 1)
    rows = RowReader(index)
    ids = []
    for position in np.random.default_rng(0).permutation(len(index)):
        ids.append((rows(int(position))["id"], index.ids[int(position)].as_py()))
        assert rows.num_cached <= 2
    assert all(got == asked for got, asked in ids)


def test_threads_change_nothing(prepared: Prepared) -> None:
    index = read_index(*prepared, "train")
    augment = AugmentSpec(speeds=(0.9, 1.0, 1.1), volume_db=6, noise_share=0.5, time_masks=2, frequency_masks=2)
    plan = plan_epoch(index, seed=0, epoch=3, max_duration=12, per_step=2, speeds=augment.speeds)
    one, four = (list(loader_for(prepared, augment, threads).share_ahead(plan, 0, 1)) for threads in (1, 4))
    assert [batch.ids for batch in one] == [batch.ids for batch in four]
    for ours, theirs, number in zip(one, four, range(plan.num_batches), strict=True):
        assert torch.equal(ours.inputs["input_features"], theirs.inputs["input_features"])
        assert ours.seconds == pytest.approx(plan.num_samples[plan.batch(number)].sum() / 16_000)


def test_loading_waits_for_the_one_who_trains(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = loader_for(prepared)
    index = read_index(*prepared, "train")
    plan = plan_epoch(index, seed=0, epoch=0, max_duration=6, per_step=1)
    assert len(plan) > 12
    loaded: list[int] = []
    real = loader.load
    done = threading.Event()

    def counted(*arguments: object) -> stream.Batch:
        batch = real(*arguments)  # type: ignore[arg-type]
        loaded.append(len(batch.ids))
        done.set()
        return batch

    monkeypatch.setattr(loader, "load", counted)
    batches = loader.share_ahead(plan, 0, 1)
    next(batches)
    deadline = time.monotonic() + 20
    while len(loaded) < stream.AHEAD + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(loaded) == stream.AHEAD + 1
    assert 1 + sum(1 for _ in batches) == plan.num_batches


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1, 1.25])
def test_speed_gives_the_samples_that_the_plan_counts_and_moves_the_pitch(factor: float) -> None:
    tone_T = np.sin(2 * np.pi * 400 * np.arange(32_000) / 16_000).astype(np.float32)
    for count in (32_000, 31_999, 31_993):
        assert len(change_speed(tone_T[:count], factor)) == int(samples_at_speed(np.array(count), factor))
    spectrum = np.abs(np.fft.rfft(change_speed(tone_T, factor)[:16_000]))
    assert abs(int(spectrum.argmax()) - 400 * factor) <= 1


def test_noise_lies_as_far_below_speech_as_asked() -> None:
    rng = np.random.default_rng(0)
    speech_T = (0.1 * np.sin(np.arange(48_000) * 0.05)).astype(np.float32)
    noise_T = coloured_noise(48_000, rng)
    noisy_T = add_noise(speech_T, noise_T, 12.0)
    ratio = np.sum(speech_T**2) / np.sum((noisy_T - speech_T) ** 2)
    assert 10 * np.log10(ratio) == pytest.approx(12.0, abs=0.01)


def test_volume_and_noise_are_drawn_from_the_utterance_and_the_epoch() -> None:
    augmenter = WaveformAugmenter(AugmentSpec(volume_db=6, noise_share=1.0))
    tone_T = (0.1 * np.sin(np.arange(16_000) * 0.05)).astype(np.float32)
    same, again, epoch, other = (
        augmenter(tone_T, utterance_rng(0, e, name)) for e, name in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))
    )
    assert np.array_equal(same, again)
    assert not np.array_equal(same, epoch)
    assert not np.array_equal(same, other)
    assert np.array_equal(WaveformAugmenter(AugmentSpec())(tone_T, utterance_rng(0, 0, "a")), tone_T)


def test_noise_recordings(spoken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noises = Noises(str(spoken / "audio" / "test"))
    long = noises.draw(400_000, np.random.default_rng(1))
    assert long.shape == (400_000,)
    assert np.array_equal(long, noises.draw(400_000, np.random.default_rng(1)))
    assert np.abs(long).max() > 0
    with pytest.raises(UserError, match=r"augment.noise_path: .* has no audio"):
        Noises(str(tmp_path))
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    silence = Noises(str(tmp_path)).draw(10, np.random.default_rng(0))
    assert "broken.wav is not usable as noise (unreadable" in caplog.text
    tone_T = (0.1 * np.sin(np.arange(10) * 0.5)).astype(np.float32)
    assert np.array_equal(add_noise(tone_T, silence, 10.0), tone_T), "silence changes nothing; it is not NaN"


def test_a_worker_without_a_batch_in_the_last_step_reads_each_row_group_once(
    prepared: Prepared, read: list[tuple[str, int]]
) -> None:
    index = read_index(*prepared, "train")
    plan = plan_epoch(index, seed=0, epoch=0, max_duration=60, per_step=3)
    idle = [rank for rank in range(5) if rank >= len(plan.step(len(plan) - 1))]
    assert idle
    for rank in idle:
        read.clear()
        rows = RowReader(index)
        rows.expect(plan.positions_of(rank, 5))
        for batch in plan.share(rank, 5):
            for position in batch:
                rows(int(position))
        assert len(read) == len(set(read))
        assert not rows.num_cached
