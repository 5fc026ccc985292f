from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from neurons.errors import ConfigError, ModelError
from neurons.training.inner import InnerResult, InnerTrainer
from neurons.training.model import (
    bind,
    build_model,
    flatten,
    initial_parameters,
    page_gradient,
    parameter_count,
    parameter_shapes,
    sequence_losses,
)
from neurons.training.precision import fastest_dtype
from neurons.training.schedule import learning_rate
from protocol.run import Inner

TINY = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
SETTINGS = Inner(
    steps=4,
    pages_per_step=1,
    learning_rate=5e-3,
    warmup_steps=2,
    decay_steps=100,
    final_learning_rate_share=0.1,
)
DENORMAL = 1e-40


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokens(*shape: int, seed: int = 0) -> np.ndarray:
    """Text with something to learn: each token is the one before it plus a small draw."""
    steps = np.random.default_rng(seed).integers(1, 4, size=shape)
    return (np.cumsum(steps, axis=-1) % 512).astype(np.int64)


def never() -> bool:
    return False


def train(trainer: InnerTrainer, start: np.ndarray, window: int = 0, steps: int = 4) -> InnerResult:
    return trainer.train(start, list(tokens(steps, 4, 32, seed=window)), window, never)


def denormals_are_kept() -> bool:
    return float(torch.tensor([DENORMAL]).mul(1.0)[0]) != 0.0


# the model


def test_a_tied_parameter_appears_once_and_the_shapes_add_up_to_the_flat_array() -> None:
    model = build_model(TINY)
    shapes = parameter_shapes(model)
    assert shapes[0] == ("model.embed_tokens.weight", (512, 48))
    assert not any("lm_head" in name for name, _ in shapes)
    assert sum(int(np.prod(shape)) for _, shape in shapes) == parameter_count(model) == flatten(model).size == 75504
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_bound_model_and_its_array_share_memory_in_both_directions() -> None:
    model = build_model(TINY)
    flat = flatten(model)
    bind(model, flat)
    first, last = next(iter(model.parameters())), list(model.parameters())[-1]
    assert first.data_ptr() == flat.ctypes.data
    flat[0], flat[-1] = 7.0, 8.0
    assert first[0, 0].item() == 7.0
    assert last.flatten()[-1].item() == 8.0
    with torch.no_grad():
        first[0, 1] = 9.0
    assert flat[1] == 9.0
    assert model.get_output_embeddings().weight[0, 1].item() == 9.0  # the tie holds after binding
    np.testing.assert_array_equal(flatten(model), flat)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(75503, np.float32),
        np.zeros(75504, np.float64),
        np.zeros((2, 37752), np.float32),
        np.zeros(2 * 75504, np.float32)[::2],
    ],
    ids=["size", "dtype", "shape", "strided"],
)
def test_an_array_that_does_not_fit_is_refused_and_the_model_stays_as_it_was(wrong) -> None:
    model = build_model(TINY)
    before = flatten(model)
    with pytest.raises(ModelError, match="the model needs"):
        bind(model, wrong)
    np.testing.assert_array_equal(flatten(model), before)


def test_a_read_only_array_is_refused() -> None:
    flat = np.zeros(75504, np.float32)
    flat.flags.writeable = False
    with pytest.raises(ModelError, match="writable"):
        bind(build_model(TINY), flat)


def test_initial_parameters_depend_on_the_seed_alone_and_leave_the_generator_untouched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = initial_parameters(TINY, 1)
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(first, initial_parameters(TINY, 1))
    assert (first != initial_parameters(TINY, 2)).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "model_type must be"),
        ({"model_type": None}, "model_type must be"),
        ({"model_type": "vit"}, "model_type must be"),
        ({"hiden_size": 48}, "did you mean hidden_size"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "no field of a llama model"),
        ({"attn_implementation": "somebody/kernel"}, "no field of a llama model"),
        ({"dtype": "float16"}, "no field of a llama model"),
        ({"hidden_size": "big"}, "cannot build this llama model"),
        ({"num_attention_heads": 5}, "cannot build this llama model"),
        ({"vocab_size": -3}, "cannot build this llama model"),
    ],
)
def test_a_model_table_that_cannot_work_is_named_in_one_sentence(change, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(TINY | change)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_dropout_is_zero_unless_the_table_names_it() -> None:
    table = {"model_type": "gpt2", "vocab_size": 300, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    assert build_model(table).config.resid_pdrop == 0.0
    assert build_model(table | {"resid_pdrop": 0.25}).config.resid_pdrop == 0.25


def test_sequence_losses_are_mean_next_token_cross_entropy_whatever_the_batch() -> None:
    model = build_model(TINY)
    sequences = tokens(5, 16)
    losses = sequence_losses(model, sequences, dtype=torch.float32, batch_sequences=2)
    assert losses.dtype == np.float64
    assert losses.shape == (5,)
    with torch.no_grad():
        log = model(input_ids=torch.tensor(sequences)).logits.double().log_softmax(-1).numpy()
    by_hand = [-np.mean([log[s, t, sequences[s, t + 1]] for t in range(15)]) for s in range(5)]
    np.testing.assert_allclose(losses, by_hand, rtol=1e-5)
    whole = sequence_losses(model, sequences, dtype=torch.float32, batch_sequences=5)
    np.testing.assert_allclose(losses, whole, rtol=1e-6)
    bf16 = sequence_losses(model, sequences, dtype=torch.bfloat16, batch_sequences=5)
    assert (bf16 != whole).any()
    np.testing.assert_allclose(bf16, whole, rtol=1e-2)


def test_losses_see_a_change_of_the_bound_array() -> None:
    model = build_model(TINY)
    flat = flatten(model)
    bind(model, flat)
    sequences = tokens(2, 16)
    before = sequence_losses(model, sequences, dtype=torch.bfloat16, batch_sequences=2)
    flat *= 3.0
    assert (sequence_losses(model, sequences, dtype=torch.bfloat16, batch_sequences=2) != before).all()
    flat /= 3.0


@pytest.mark.parametrize("wrong", [np.zeros((2, 8), np.int32), np.zeros(8, np.int64), np.zeros((2, 1), np.int64)])
def test_sequences_of_another_shape_or_type_are_refused(wrong) -> None:
    with pytest.raises(ModelError, match="sequences must be int64"):
        sequence_losses(build_model(TINY), wrong, dtype=torch.float32, batch_sequences=2)


def test_the_page_gradient_is_the_slope_of_the_mean_loss_and_is_not_kept_by_the_model() -> None:
    model = build_model(TINY)
    flat = flatten(model)
    bind(model, flat)
    sequences = tokens(5, 16)
    losses, gradient = page_gradient(model, sequences, dtype=torch.float32, batch_sequences=2)
    assert gradient.dtype == np.float32
    assert gradient.shape == flat.shape
    assert all(parameter.grad is None for parameter in model.parameters())

    def mean_loss() -> float:
        return float(sequence_losses(model, sequences, dtype=torch.float32, batch_sequences=5).mean())

    each = sequence_losses(model, sequences, dtype=torch.float32, batch_sequences=5)
    np.testing.assert_allclose(losses, each, rtol=1e-6)
    step = np.float32(0.02 / np.linalg.norm(gradient)) * gradient
    origin = flat.copy()
    flat[:] = origin + step
    above = mean_loss()
    flat[:] = origin - step
    slope = (above - mean_loss()) / 2.0
    assert slope == pytest.approx(float(gradient.astype(np.float64) @ step), rel=0.02)
    _, whole = page_gradient(model, sequences, dtype=torch.float32, batch_sequences=5)
    np.testing.assert_allclose(whole, page_gradient(model, sequences, dtype=torch.float32)[1], rtol=1e-6)


# the schedule


def rate(window: int, step: int) -> float:
    return learning_rate(
        window, step, steps_per_window=10, peak=2.0, warmup_steps=20, decay_steps=40, final_fraction=0.1
    )


def test_the_rate_rises_to_its_peak_falls_by_a_half_cosine_and_stays() -> None:
    assert rate(0, 0) == pytest.approx(0.1)
    assert rate(1, 9) == rate(2, 0) == 2.0
    assert rate(4, 0) == pytest.approx(2.0 * 0.55)  # half-way down
    assert rate(6, 0) == rate(900, 3) == pytest.approx(0.2)
    falling = [rate(window, step) for window in range(2, 7) for step in range(10)]
    assert falling == sorted(falling, reverse=True)


def test_without_warm_up_and_decay_the_rate_is_constant() -> None:
    assert {
        learning_rate(w, 0, steps_per_window=5, peak=1.0, warmup_steps=0, decay_steps=0, final_fraction=1.0)
        for w in range(4)
    } == {1.0}


# the inner steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_training_lowers_the_loss_and_the_same_inputs_give_the_same_bits(dtype) -> None:
    start = initial_parameters(TINY, 1)
    kept = start.copy()
    ends = []
    for _ in range(2):
        trainer = InnerTrainer(TINY, SETTINGS, dtype)
        at, losses = start, []
        for window in range(6):
            result = train(trainer, at, window)
            at = result.end
            losses += result.losses
        ends.append(at)
        assert losses[-1] < 0.9 * losses[0]
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(start, kept)
    assert ends[0].dtype == np.float32


def test_a_result_is_not_touched_by_the_next_window() -> None:
    trainer = InnerTrainer(TINY, SETTINGS, torch.float32)
    first = train(trainer, initial_parameters(TINY, 1))
    kept = first.end.copy()
    train(trainer, first.end, window=1)
    np.testing.assert_array_equal(first.end, kept)


def test_one_step_is_adamw_with_clipping_by_the_formula() -> None:
    start = initial_parameters(TINY, 1)
    batch = tokens(4, 32)
    model = build_model(TINY)
    bind(model, start.copy())
    _, gradient = page_gradient(model, batch, dtype=torch.float32)
    clip = 0.01
    assert np.linalg.norm(gradient) > clip
    trainer = InnerTrainer(TINY, SETTINGS.model_copy(update={"warmup_steps": 0, "gradient_clip": clip}), torch.float32)
    end = trainer.train(start, [batch], 0, never).end
    clipped = gradient.astype(np.float64) * clip / np.linalg.norm(gradient)
    moved = SETTINGS.learning_rate * (clipped / (np.abs(clipped) + SETTINGS.epsilon) + SETTINGS.weight_decay * start)
    np.testing.assert_allclose(start - end, moved, atol=2e-5)
    np.testing.assert_allclose(trainer.state()["exp_avg"], 0.1 * clipped, atol=1e-7)


def test_a_trainer_restored_from_its_saved_state_continues_to_the_bit() -> None:
    start = initial_parameters(TINY, 1)
    one = InnerTrainer(TINY, SETTINGS, torch.float32)
    middle = train(one, start).end
    saved = one.state()
    expected = train(one, middle, window=1).end
    other = InnerTrainer(TINY, SETTINGS, torch.float32)
    other.load_state(saved)
    np.testing.assert_array_equal(train(other, middle, window=1).end, expected)
    np.testing.assert_array_equal(other.state()["exp_avg_sq"], one.state()["exp_avg_sq"])
    assert saved["step"] == 4.0  # a copy, not a view of what trained on
    fresh = train(InnerTrainer(TINY, SETTINGS, torch.float32), middle, window=1).end
    assert (fresh != expected).any()  # the moments matter


@pytest.mark.parametrize("spoil", ["missing", "short", "double"])
def test_a_saved_state_that_does_not_fit_is_refused_and_changes_nothing(spoil) -> None:
    trainer = InnerTrainer(TINY, SETTINGS, torch.float32)
    train(trainer, initial_parameters(TINY, 1))
    before = trainer.state()
    state = {name: array * 2 for name, array in before.items()}
    if spoil == "missing":
        del state["exp_avg_sq"]
    elif spoil == "short":
        state["exp_avg_sq"] = state["exp_avg_sq"][:-1]
    else:
        state["exp_avg_sq"] = state["exp_avg_sq"].astype(np.float64)
    with pytest.raises(ModelError, match="exp_avg_sq"):
        trainer.load_state(state)
    for name, array in trainer.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_window_that_closes_early_keeps_the_steps_done_and_always_does_one() -> None:
    start = initial_parameters(TINY, 1)
    batches = list(tokens(4, 4, 32))
    answers = iter([False, True])
    stopped = InnerTrainer(TINY, SETTINGS, torch.float32).train(start, batches, 0, lambda: next(answers))
    assert (stopped.steps, stopped.tokens, len(stopped.losses)) == (2, 2 * 4 * 32, 2)
    two = InnerTrainer(TINY, SETTINGS, torch.float32).train(start, batches[:2], 0, never)
    np.testing.assert_array_equal(stopped.end, two.end)
    assert InnerTrainer(TINY, SETTINGS, torch.float32).train(start, batches, 0, lambda: True).steps == 1


def test_no_more_than_h_steps_are_done() -> None:
    trainer = InnerTrainer(TINY, SETTINGS, torch.float32)
    assert train(trainer, initial_parameters(TINY, 1), steps=6).steps == SETTINGS.steps


def test_a_gradient_that_overflows_leaves_parameters_and_moments_alone() -> None:
    start = initial_parameters(TINY, 1)
    trainer = InnerTrainer(TINY, SETTINGS, torch.float32)
    train(trainer, start)
    before = trainer.state()
    broken = start.copy()
    broken[7] = np.inf
    result = train(trainer, broken, window=1)
    np.testing.assert_array_equal(result.end, broken)
    np.testing.assert_array_equal(trainer.state()["exp_avg"], before["exp_avg"])


def test_denormals_are_flushed_in_the_steps_only_and_kept_again_after_an_error() -> None:
    start = initial_parameters(TINY, 1)
    trainer = InnerTrainer(TINY, SETTINGS, torch.float32)
    inside: list[bool] = []

    def look() -> bool:
        inside.append(denormals_are_kept())
        return False

    assert denormals_are_kept()
    trainer.train(start, list(tokens(2, 4, 32)), 0, look)
    assert inside == [False]
    assert denormals_are_kept()
    with pytest.raises(ModelError):
        trainer.train(start, [np.zeros((4, 32), np.int32)], 0, never)
    assert denormals_are_kept()


def test_trainers_in_several_threads_do_not_disturb_each_other() -> None:
    start = initial_parameters(TINY, 1)
    expected = [train(InnerTrainer(TINY, SETTINGS, torch.float32), start, window).end for window in range(3)]
    ends: dict[int, np.ndarray] = {}

    def work(window: int) -> None:
        ends[window] = train(InnerTrainer(TINY, SETTINGS, torch.float32), start, window).end

    threads = [threading.Thread(target=work, args=(window,)) for window in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for window in range(3):
        np.testing.assert_array_equal(ends[window], expected[window])


# the probe


class ScriptedTimer:
    """A clock that each pass moves by the next of its seconds: reads come in pairs around a pass."""

    def __init__(self, seconds: list[float]) -> None:
        self.now, self.reads, self.seconds = 0.0, 0, seconds

    def __call__(self) -> float:
        self.reads += 1
        # Reads: 1 the begin; then 4 per round (before, after, before, after) and 1 that looks at the budget.
        within = (self.reads - 2) % 5
        if self.reads > 1 and within in (1, 3):
            self.now += self.seconds.pop(0)
        return self.now


@pytest.mark.parametrize(
    ("seconds", "fastest"),
    [
        ([0.2, 0.1, 0.2, 0.1, 0.2, 0.9], torch.bfloat16),  # one slow outlier does not decide
        ([0.1, 0.2, 0.1, 0.2, 0.9, 0.2], torch.float32),
        ([0.5, 0.5], torch.float32),
    ],
)
def test_the_probe_takes_the_smaller_median_and_stops_at_its_budget(seconds, fastest) -> None:
    model = build_model(TINY)
    timer = ScriptedTimer(list(seconds))
    assert fastest_dtype(model, 16, 2, budget_seconds=sum(seconds) - 0.01, timer=timer) == fastest
    assert timer.seconds == []
    assert all(parameter.grad is None for parameter in model.parameters())
