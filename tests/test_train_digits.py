"""The main job, shortened: it learns, both sets of rules take the same steps, and every option trains."""

from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest
import train_digits
from support import thorough
from train_digits import Config, main, step_losses


def test_learns_digits_and_writes_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "curves.png"
    result = main(["--epochs", "5", "--plot", str(picture)])
    assert result.test_accuracy > 0.95
    assert result.losses.shape == (5, 1437 // 64)
    assert result.losses[-1].mean() < 0.1 * result.losses[0].mean()
    assert len(result.epoch_seconds) == len(result.test_accuracies) == 5
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    printed = capsys.readouterr().out
    for text in (f"{result.test_accuracy:.4f}", f"{result.num_parameters:,}", jax.__version__, "batch norm"):
        assert text in printed


@pytest.mark.parametrize(("norm", "loss"), [("batch", "softmax"), thorough("layer", "svm")])
def test_hand_and_autodiff_rules_take_the_same_steps(norm: train_digits.Norm, loss: train_digits.Loss) -> None:
    hand = step_losses(Config(norm=norm, loss=loss, rules="hand"), 20)
    autodiff = step_losses(Config(norm=norm, loss=loss, rules="autodiff"), 20)
    assert hand.dtype == autodiff.dtype == np.float32  # though the tests enable x64
    np.testing.assert_allclose(hand, autodiff, rtol=1e-4)
    assert hand[-1] < 0.7 * hand[0]  # they go somewhere


def test_step_losses_are_those_of_the_run() -> None:
    result = main(["--norm", "none", "--epochs", "2", "--batch-size", "300"])
    np.testing.assert_allclose(step_losses(Config(norm="none", epochs=2, batch_size=300), 7), result.losses.ravel()[:7])


@pytest.mark.thorough
@pytest.mark.parametrize("norm", get_args(train_digits.Norm))
def test_every_norm_trains(norm: train_digits.Norm) -> None:
    bfloat16 = norm in ("batch", "group", "rms")  # half of them: compiling is what takes the time here
    config = Config(norm=norm, loss="svm" if bfloat16 else "softmax", dtype="bfloat16" if bfloat16 else "float32")
    losses = step_losses(config, 6)
    assert losses.dtype == np.float32
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_parameters_stay_float32_and_all_move() -> None:
    config = Config(dtype="bfloat16", batch_size=700)
    data, _ = train_digits.load_data(config)
    assert data.images.dtype == "bfloat16"
    before = train_digits.init_state(config, jax.random.key(0), steps_per_epoch=2)
    after, _ = train_digits.train_epoch(config, before, data, jax.random.key(1))
    for old, new in zip(jax.tree.leaves(before[:2]), jax.tree.leaves(after[:2]), strict=True):
        assert old.dtype == new.dtype == np.float32
        assert np.any(old != new)


def test_the_split_is_fixed_by_the_seed() -> None:
    (train, test), (again, _), (other, _) = (train_digits.load_data(Config(seed=seed)) for seed in (0, 0, 1))
    assert (len(train.labels), len(test.labels)) == (1437, 360)
    np.testing.assert_array_equal(train.images, again.images)
    assert np.any(train.labels != other.labels)
    np.testing.assert_allclose([np.mean(train.images), np.std(train.images)], [0, 1], atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--batch-size", "1438"],
        ["--epochs", "0"],
        ["--epochs", "two"],
        ["--seed", "-1"],
        ["--plot", "absent/a.png"],
        ["--norm", "x"],
    ],
)
def test_bad_options_are_refused_before_training(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert f"argument {arguments[0]}" in capsys.readouterr().err
