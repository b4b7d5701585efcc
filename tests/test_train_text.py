"""The experiment in English, made tiny: both losses take the same steps, it learns, and what it prints is whole."""

import math
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import pytest
import train_text
from support import thorough
from train_text import Config, main, step_losses

TINY = Config(vocab=500, steps=40, batch_size=4, seq_len=32, width=32, layers=1, heads=2, block_size=128)
TINY_ARGUMENTS = [f"--{name.replace('_', '-')}={value}" for name, value in TINY._asdict().items() if name != "distill"]


@pytest.mark.parametrize("norm", ["rms", thorough("layer")])
def test_linear_and_full_loss_take_the_same_steps(norm: train_text.Norm) -> None:
    linear = step_losses(TINY._replace(norm=norm, loss="linear"), 20)
    full = step_losses(TINY._replace(norm=norm, loss="full"), 20)
    assert linear.shape == (20,)
    assert linear.dtype == full.dtype == np.float32  # though the tests enable x64
    np.testing.assert_allclose(linear, full, rtol=0, atol=1e-3)
    assert linear[-1] < linear[0] - 0.5  # they go somewhere
    assert abs(linear[0] - math.log(TINY.vocab)) < 1  # from where nothing is known


def test_beats_the_unigram_model_and_writes_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "curves.png"
    config = TINY._replace(steps=300, batch_size=16)
    result = main([*TINY_ARGUMENTS, "--steps=300", "--batch-size=16", f"--plot={picture}"])
    assert result.config == config
    assert result.losses.shape == (300,)
    assert len(result.perplexities) == len(result.evaluated) == train_text.EVALUATIONS
    assert result.evaluated[-1] == 300
    assert result.perplexity < 0.8 * result.unigram_perplexity
    np.testing.assert_allclose(step_losses(config, 5), result.losses[:5], rtol=1e-5)
    assert len(result.sample) == train_text.SAMPLE_WORDS
    assert set(result.sample) <= set(result.vocabulary) - {train_text.UNKNOWN}
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    printed = capsys.readouterr().out
    unigram = f"{result.unigram_perplexity:.1f}"
    for text in (f"{result.perplexity:.1f}", unigram, f"{result.num_parameters:,}", jax.__version__, result.sample[0]):
        assert text in printed


def test_blocks_and_whole_logits_distil_alike() -> None:
    """Words, entropy and divergence at once; the teacher's arguments have no gradient."""
    rng, config = np.random.default_rng(0), TINY._replace(distill=True, entropy_bonus=0.01, block_size=32)

    def last(width: int) -> train_text.Last:
        hidden, kernel, bias = (
            jax.numpy.asarray(rng.normal(size=s), "float32") for s in ((2, 5, width), (width, 67), 67)
        )
        return train_text.Last(hidden, {"kernel": kernel, "bias": bias})

    student, teacher = last(8), last(16)
    labels = jax.numpy.asarray(rng.integers(0, 67, (2, 5)))

    @partial(jax.jit, static_argnums=0)
    def run(config: Config) -> Any:
        return jax.value_and_grad(
            lambda student, teacher: train_text.objective(config, student, labels, teacher).sum(), (0, 1)
        )(student, teacher)

    (linear, gradients), (full, wanted) = (run(config._replace(loss=loss)) for loss in get_args(train_text.Loss))
    np.testing.assert_allclose(linear, full, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), gradients[0], wanted[0])
    assert not any(np.any(g) for g in jax.tree.leaves(gradients[1]))


@pytest.mark.thorough
def test_a_student_learns_from_its_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    result = main([*TINY_ARGUMENTS, "--steps=200", "--batch-size=16", "--distill", "--entropy-bonus=0.01"])
    assert result.teacher_perplexity is not None
    assert result.teacher_perplexity < result.unigram_perplexity and result.perplexity < result.unigram_perplexity
    printed = capsys.readouterr().out
    assert "the teacher's" in printed and "distilled" in printed and "entropy bonus 0.01" in printed
    for size in result.temporary_bytes.values():
        assert size is None or f"{size / 1e6:.1f} MB" in printed
    assert list(result.temporary_bytes) == list(get_args(train_text.Loss))


@pytest.mark.parametrize("loss", ["linear", thorough("full")])
def test_bfloat16_activations_train_float32_parameters(loss: train_text.Loss) -> None:
    config = TINY._replace(loss=loss, dtype="bfloat16")
    before, words, starts = train_text.start_of(config, train_text.load_text(config))
    after, losses = train_text.train_steps(config, before, words, starts[:10])
    assert losses.dtype == np.float32
    assert losses[-1] < losses[0]
    for old, new in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        assert old.dtype == new.dtype == np.float32
        assert np.any(old != new)


def test_the_text_is_split_by_position_and_the_vocabulary_is_the_training_parts() -> None:
    text = train_text.load_text(TINY)
    assert len(text.words) == len(set(text.words)) == TINY.vocab
    assert text.words[0] == train_text.UNKNOWN
    assert len(text.held_out) == (len(text.train) + len(text.held_out)) // 10
    counts = np.bincount(text.train, minlength=TINY.vocab)[1:]
    assert counts.min() > 0
    assert (np.diff(counts) <= 0).all()
    inputs, labels = (np.asarray(part).ravel() for part in train_text.held_out_windows(TINY, text))
    known = labels != train_text.IGNORED
    np.testing.assert_array_equal(labels[known], text.held_out[1:])
    np.testing.assert_array_equal(inputs[known], text.held_out[:-1])


def test_no_word_sees_those_behind_it() -> None:
    state, words, _ = train_text.start_of(TINY, train_text.load_text(TINY))
    window = words[None, : TINY.seq_len]
    changed = window.at[0, 20].set((window[0, 20] + 1) % TINY.vocab)
    hidden, other = (np.asarray(train_text.hidden_states(TINY, state.params, w))[0] for w in (window, changed))
    np.testing.assert_array_equal(hidden[:20], other[:20])
    assert (np.abs(hidden[20:] - other[20:]).max(axis=-1) > 0).all()


def test_the_linear_loss_needs_less_memory() -> None:
    config = TINY._replace(vocab=4000, batch_size=16, block_size=256)
    text = train_text.load_text(config)
    params = train_text.init_params(config, len(text.words), jax.random.key(0))
    linear, full = (train_text.temporary_bytes(config._replace(loss=n), params) for n in ("linear", "full"))
    if linear is None or full is None:
        pytest.skip("this backend does not tell")
    assert linear < 0.6 * full


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("--entropy-bonus", "-1"),
        ("--entropy-bonus", "nan"),
        ("--heads", "5"),
        ("--vocab", "1"),
        ("--seq-len", "1000000"),
        ("--steps", "0"),
        ("--plot", "absent/a.png"),
    ],
)
def test_bad_options_are_refused_before_training(argument: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([argument, value])
    assert error.value.code == 2
    assert f"argument {argument}" in capsys.readouterr().err
