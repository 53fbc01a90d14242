"""The training pipeline on the tiny model: real lessons, real steps, real files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from rich.console import Console

from prepare.exit_training.calibration import (
    calibrate,
    calibration_error,
    fit_calibration,
    operating_points,
)
from prepare.exit_training.distillation import kl_to_teacher
from prepare.exit_training.edge_reading import ExitReading
from prepare.exit_training.lessons import LessonMaker, LessonPlan
from prepare.exit_training.pipeline import ExitRecipe, train_exits
from prepare.exit_training.prompts import plan_lots
from prepare.exit_training.teacher import Lesson, Teacher
from prepare.exit_training.teacher_cache import TeacherCache
from prepare.exit_training.trainer import ExitTrainer, TrainingSettings, frequent_tokens
from prepare.exit_weights import ExitSet, untrained_exits
from prepare.tiny_model import tiny_model
from shared.errors import ConfigurationError
from shared.prompt_file import Exchange

CPU = torch.device("cpu")
MODEL = tiny_model(1)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(MODEL, (2, 4), device=CPU, dtype=torch.float32)


def greedy(teacher: Teacher, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    lessons = teacher.answer(
        prompts, max_tokens=tokens, temperature=0.0, generator=torch.Generator()
    )
    return [lesson.top_ids[:, 0].tolist() for lesson in lessons]


def test_a_batch_answers_as_each_prompt_would_alone(teacher: Teacher) -> None:
    prompts = [[5, 6, 7], [9] * 11, [30, 2, 8, 40, 12]]
    together = greedy(teacher, prompts, 12)
    assert together == [greedy(teacher, [prompt], 12)[0] for prompt in prompts]


def test_lessons_from_decoding_equal_lessons_from_reading_the_same_text(teacher: Teacher) -> None:
    (spoken,) = teacher.answer(
        [[5, 6, 7]], max_tokens=10, temperature=0.0, generator=torch.Generator()
    )
    answer = spoken.top_ids[:, 0].tolist()
    (read,) = teacher.teach([[5, 6, 7]], [answer])
    np.testing.assert_array_equal(read.top_ids, spoken.top_ids)
    length = len(spoken.hidden)
    np.testing.assert_allclose(
        read.hidden[:length].astype(np.float32), spoken.hidden.astype(np.float32), atol=5e-3
    )
    np.testing.assert_array_equal(read.token_ids[:length], spoken.token_ids)


def test_divergence_is_zero_where_the_exit_says_the_same_and_positive_elsewhere() -> None:
    logits = torch.randn(5, 40)
    logprobs, ids = logits.log_softmax(-1).topk(8)
    inside = torch.ones_like(ids, dtype=torch.bool)
    assert float(kl_to_teacher(logits, ids, inside, logprobs)) == pytest.approx(0.0, abs=1e-5)
    assert float(kl_to_teacher(logits.flip(1), ids, inside, logprobs)) > 0.1


def test_the_divergences_gradient_is_that_of_its_formula() -> None:
    torch.manual_seed(3)
    logits = torch.randn(4, 30, requires_grad=True)
    logprobs, ids = torch.randn(4, 40).log_softmax(-1).topk(8)
    inside = ids < 30
    rows = ids.masked_fill(~inside, 0)  # repeats row 0, which another token may own
    kl_to_teacher(logits, rows, inside, logprobs).backward()  # type: ignore[no-untyped-call]
    by_hand = logits.detach().clone().requires_grad_()
    log_q = by_hand.log_softmax(-1).gather(1, rows)
    p = logprobs.exp() * inside
    rest_p, rest_q = 1 - p.sum(-1), 1 - (log_q.exp() * inside).sum(-1)
    known = (p * (logprobs - log_q)).masked_fill(~inside, 0.0).sum(-1)
    (known + rest_p * (rest_p / rest_q).log()).mean().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits.grad, by_hand.grad)


def test_divergence_equals_the_sum_over_the_whole_vocabulary_when_all_tokens_are_top() -> None:
    torch.manual_seed(0)
    teacher_logits, logits = torch.randn(3, 6), torch.randn(3, 6)
    logprobs, ids = teacher_logits.log_softmax(-1).topk(5)  # the sixth is the remainder
    inside = torch.ones_like(ids, dtype=torch.bool)
    wanted = torch.nn.functional.kl_div(
        logits.log_softmax(-1),
        teacher_logits.log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )
    assert float(kl_to_teacher(logits, ids, inside, logprobs)) == pytest.approx(
        float(wanted), rel=1e-4
    )


def test_lessons_resume_and_depend_on_the_seed_alone(teacher: Teacher, tmp_path: Path) -> None:
    exchanges = [Exchange(f"prompt {i}", f"answer {i}") for i in range(6)]
    plan = LessonPlan(invented=3, human_share=0.5, max_tokens=8, lot_size=3, sampled_share=0.5)
    maker = LessonMaker(MODEL, teacher, exchanges, plan)
    first = TeacherCache(tmp_path / "a", maker.describe())
    maker.fill(first, lambda _: None)
    assert len(first.shards()) == 3
    second = TeacherCache(tmp_path / "b", maker.describe())
    second.write(0, first.read(0, (2, 4)), (2, 4))
    made: list[int] = []
    maker.fill(second, made.append)
    for index in first.shards():
        for a, b in zip(first.read(index, (2, 4)), second.read(index, (2, 4)), strict=True):
            np.testing.assert_array_equal(a.token_ids, b.token_ids)
            np.testing.assert_array_equal(a.hidden, b.hidden)
    with pytest.raises(ConfigurationError, match="other settings"):
        TeacherCache(tmp_path / "a", {"another": "plan"})


def test_layers_are_added_to_lessons_without_decoding_again(tmp_path: Path) -> None:
    plan = LessonPlan(invented=0, human_share=0.0, max_tokens=8, lot_size=3, sampled_share=0.0)
    exchanges = [Exchange(f"prompt {i}") for i in range(3)]
    deep, shallow = (
        LessonMaker(MODEL, Teacher(MODEL, layers, device=CPU, dtype=torch.float32), exchanges, plan)
        for layers in ((4,), (1, 3))
    )
    cache = TeacherCache(tmp_path / "a", deep.describe())
    deep.fill(cache, lambda _: None)
    assert cache.layers(0) == frozenset({4})
    with pytest.raises(ConfigurationError, match=r"hidden\.3"):
        cache.read(0, (3,))
    shallow.fill(cache, lambda _: None)
    assert cache.layers(0) == frozenset({1, 3, 4})
    whole = TeacherCache(tmp_path / "b", shallow.describe())
    shallow.fill(whole, lambda _: None)
    for added, decoded in zip(cache.read(0, (3, 1)), whole.read(0, (3, 1)), strict=True):
        np.testing.assert_array_equal(added.top_ids, decoded.top_ids)
        np.testing.assert_allclose(
            added.hidden.astype(np.float32), decoded.hidden.astype(np.float32), atol=0.05
        )


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, {})
    (tmp_path / "shard-00000.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigurationError, match=r"shard-00000.*delete it"):
        cache.read(0, (2,))


def test_every_prompt_is_planned_once() -> None:
    lots = plan_lots(list("abcdefg"), invented=5, lot_size=3, sampled_share=0.5, seed=2)
    assert sorted(p for lot in lots for p in lot.prompts) == list("abcdefg")
    assert sum(lot.invented for lot in lots) == 5


def test_training_learns_resumes_and_writes_exits(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(f'{{"prompt": "question {i}"}}\n' for i in range(160)))
    recipe = ExitRecipe(
        lot_size=32,
        text=(prompts,),
        invented=48,
        layers=(2, 4),
        blocks=(1, 1),
        vocabulary=(64, 0),
        max_tokens=16,
        epochs=12,
        held_out_shards=1,
        learning_rate=3e-3,
    )
    console = Console(quiet=True)
    trained = train_exits(MODEL, recipe, tmp_path / "out", tmp_path / "lessons", "cpu", console)
    assert [w.info.layer for w in trained.exits] == [2, 4]
    assert trained.exits[0].vocabulary_ids is not None
    assert len(trained.exits[0].vocabulary_ids) == 64
    assert set(MODEL.stop_token_ids) <= set(trained.exits[0].vocabulary_ids.tolist())
    saved = ExitSet.load(tmp_path / "out")
    assert saved.base_sha256 == MODEL.source.sha256
    assert [w.info for w in saved.exits] == [w.info for w in trained.exits]

    cache = TeacherCache(tmp_path / "lessons", _plan(tmp_path / "lessons"))
    settings = TrainingSettings(held_out_shards=1)
    before, after = (
        _agreement(ExitTrainer(MODEL, exits[0], cache, settings, CPU))
        for exits in (untrained_exits(MODEL, (2, 4)).exits, saved.exits)
    )
    assert after > before + 0.02
    assert saved.operating_points == trained.operating_points
    rates = [point.escalation_rate for point in saved.operating_points]
    assert rates == sorted(rates)
    assert rates[-1] > 0.5
    assert (tmp_path / "out" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    # a second run finds its checkpoint at the end and changes nothing
    again = train_exits(MODEL, recipe, tmp_path / "out", tmp_path / "lessons", "cpu", console)
    np.testing.assert_array_equal(again.exits[1].norm, trained.exits[1].norm)
    # and one with other settings does not touch it
    for other in (replace(recipe, blocks=(2, 1)), replace(recipe, learning_rate=1e-4)):
        with pytest.raises(ConfigurationError, match=r"exit[12]\.checkpoint was made with other"):
            train_exits(MODEL, other, tmp_path / "out", tmp_path / "lessons", "cpu", console)
    (tmp_path / "out" / "exit1.checkpoint").write_bytes(b"torn")
    with pytest.raises(ConfigurationError, match="damaged"):
        train_exits(MODEL, recipe, tmp_path / "out", tmp_path / "lessons", "cpu", console)


def test_the_seed_repeats_a_run_and_a_stopped_one_goes_on(tmp_path: Path) -> None:
    plan = LessonPlan(invented=48, human_share=0.0, max_tokens=12, lot_size=16, sampled_share=0.5)
    maker = LessonMaker(MODEL, Teacher(MODEL, (2,), device=CPU, dtype=torch.float32), [], plan)
    cache = TeacherCache(tmp_path / "lessons", maker.describe())
    maker.fill(cache, lambda _: None)

    def trainer(seed: int) -> ExitTrainer:
        settings = TrainingSettings(
            epochs=2, held_out_shards=1, batch_sequences=4, seed=seed, save_seconds=0.0
        )
        return ExitTrainer(MODEL, untrained_exits(MODEL, (2,)).exits[0], cache, settings, CPU)

    def weights(trainer: ExitTrainer) -> list[list[float]]:
        return [p.detach().flatten().tolist() for p in trainer.module.parameters()]

    first, second, other = trainer(1), trainer(1), trainer(2)
    for one, name in ((first, "a"), (other, "b")):
        assert [share for share, _ in one.rounds(tmp_path / name)] == [0.0, 0.25, 0.5, 0.75]
    assert weights(first) != weights(other)

    stop = Event()
    for share, _ in second.rounds(tmp_path / "c", stop):
        if share == 0.25:
            stop.set()  # seen at the next batch
    assert second.shards_done == 2
    again = trainer(1)
    assert [share for share, _ in again.rounds(tmp_path / "c")] == [0.5, 0.75]
    assert again.step == first.step
    assert weights(again) == weights(first), "to the last bit"
    assert not list(trainer(1).rounds(tmp_path / "c")), "this run is at its end"


def _plan(folder: Path) -> dict[str, object]:
    plan: dict[str, object] = json.loads((folder / "plan.json").read_text())
    return plan


def _agreement(trainer: ExitTrainer) -> float:
    _, right = trainer.predictions(trainer.held_out)
    return float(right.mean())


def test_frequent_tokens_go_by_the_teachers_probability_then_by_number(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, {})
    lesson = Lesson(
        np.array([1, 2], np.int32),
        1,
        np.zeros((2, 1, 4), np.float16),
        np.array([[9, 7, 5], [7, 9, 5]], np.int32),
        np.log(np.array([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05]])).astype(np.float16),
    )
    cache.write(0, [lesson], (1,))
    assert frequent_tokens(cache, [0], 2, 20, [3]).tolist() == [3, 7]
    assert frequent_tokens(cache, [0], 6, 20, [3]).tolist() == [0, 1, 3, 5, 7, 9]


def test_operating_points_count_what_the_first_sure_exit_says() -> None:
    first, second = np.array([0.9, 0.2, 0.7, 0.1]), np.array([0.0, 0.9, 0.9, 0.3])
    right = [np.array([True, False, False, False]), np.array([False, True, True, True])]
    low, middle, high = operating_points([first, second], right, [0.5, 0.8, 0.95])
    assert (low.agreement, low.escalation_rate) == (0.75, 0.25)  # 0.7 was wrong, 0.3 is asked
    assert (middle.agreement, middle.escalation_rate) == (1.0, 0.25)
    assert (high.agreement, high.escalation_rate) == (1.0, 1.0)


def test_calibration_is_judged_on_answers_it_was_not_fitted_to() -> None:
    rng = np.random.default_rng(1)
    raw = rng.uniform(size=4000).astype(np.float32)
    answer = np.arange(4000, dtype=np.int32) // 10
    # odd answers are always right: a fit on the even ones cannot know, and its error shows it
    right = (rng.uniform(size=4000) < raw) | (answer % 2 == 1)
    fitted = calibrate([ExitReading(raw, right, answer)])
    assert fitted.errors[0] > 0.4
    assert len(fitted.operating_points) > 10


def test_calibration_recovers_a_known_curve() -> None:
    rng = np.random.default_rng(0)
    raw = rng.uniform(0.05, 1.0, 20_000).astype(np.float32)
    right = rng.uniform(size=20_000) < raw**2
    fitted = fit_calibration(raw, right)
    shown = np.interp(raw, fitted.raw, fitted.confidence)
    assert np.abs(shown - raw**2).mean() < 0.02
    assert calibration_error(shown, right) < 0.02
    assert calibration_error(raw.astype(np.float64), right) > 0.1


@pytest.mark.parametrize("right", [True, False])
def test_calibration_of_one_sided_evidence_is_valid(right: bool) -> None:
    fitted = fit_calibration(np.full(10, 0.5, np.float32), np.full(10, right))
    assert set(fitted.confidence) == {float(right)}
