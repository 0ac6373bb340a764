"""Responses of which a part is known from the start: in objectives, in the loop, in evaluation."""

import math

import pytest
import torch
from models import MASK as MODEL_MASK
from models import tiny_model
from problems import ExactPairs, ExactTable, Scripted
from test_elbo import objective_of as elbo_of
from test_regret_objective import RIGHT, WRONG, entropies, fixed, slowly
from test_regret_objective import objective_of as regret_of
from test_trainer import arguments, brief, quiet  # noqa: F401 (a fixture)

from hf_learned_order.decoding.inputs import start
from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.adaptive import EntropyBoundSampler, ThresholdSampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.scheduled import TopProbSampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import ENCODER
from hf_learned_order.denoisers.predictions import Predictions
from hf_learned_order.evaluation.evaluator import Evaluator
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.tasks.answers import AnswerMetrics
from hf_learned_order.tasks.table import TASKS, Source
from hf_learned_order.training.objectives.base import Batch
from hf_learned_order.training.objectives.regret import LARGEST_REGRET, RegretObjective
from hf_learned_order.training.trainer import OrderTrainer

EMPTY = torch.zeros(2, 0, dtype=torch.long)
CLEAN = torch.tensor([[0, 1, 1, 0, 1, 1], [1, 1, 0, 1, 1, 0]])  # pairs, n = 3
GIVEN = torch.tensor([[True, False, False, False, False, False], [True, True, False, False, False, False]])
LOG2 = math.log(2)


@pytest.mark.parametrize("posterior", [None, "non_empty"])
def test_the_bound_counts_what_is_not_given(posterior):
    objective = elbo_of(ExactPairs(3), "non_empty", posterior, max_denoising_steps=1, num_chains=2)
    bound = objective.chains(Batch(EMPTY, EMPTY, CLEAN, given=GIVEN)).bound
    # a given one settles its partner; with one step both of another pair are guessed
    torch.testing.assert_close(bound, torch.tensor([[-4 * LOG2] * 2, [-2 * LOG2] * 2]))
    assert objective(EMPTY, EMPTY, CLEAN, given=GIVEN)["bound"].item() == pytest.approx(-3 * LOG2)


def test_everything_but_one_of_each_pair_given_leaves_nothing_to_lose():
    objective = elbo_of(ExactPairs(3), "non_empty", None, max_denoising_steps=3, num_chains=2)
    given = torch.tensor([[True] * 3 + [False] * 3] * 2)
    outputs = objective(EMPTY, EMPTY, CLEAN, given=given)
    assert outputs["bound"].item() == pytest.approx(0.0, abs=1e-6)


def test_regret_of_what_is_left():
    """Two bits that differ would both be taken for the same one; of one that is left there is no other to regret it."""
    torch.manual_seed(0)
    denoiser = ExactTable(torch.tensor([[0.0, 1.0], [1.0, 0.0]]).expand(2, 2, 2))  # behind a free one
    denoiser.family, denoiser.max_length = ENCODER, None
    scorer = OrderScorer.for_denoiser(denoiser, law="regret", hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    objective = RegretObjective(denoiser, scorer, max_denoising_steps=2)
    clean = torch.tensor([[0, 0, 1], [1, 1, 0]])
    for count, observed in ((1, LARGEST_REGRET), (2, 0.0)):
        given = torch.tensor([[True] * count + [False] * (3 - count)] * 2)
        assert objective(EMPTY, EMPTY, clean, given=given)["observed"].item() == pytest.approx(observed)


@pytest.mark.parametrize("width", [0, 2])
def test_what_is_given_is_not_learned_from(width, monkeypatch):
    slowly(monkeypatch)
    objective = regret_of(fixed((RIGHT, 0.9), (RIGHT, 0.6), (RIGHT, 0.8), (RIGHT, 0.7)))
    said = [(RIGHT, 0.5)] * width + [(RIGHT, 0.9), (RIGHT, 0.6), (RIGHT, 0.8), (RIGHT, 0.7)]
    objective.denoiser = Scripted(lambda _, canvas: said[-len(canvas) :])
    prompt = torch.full((2, width), 5)
    outputs = objective(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        clean=torch.full((2, 4), RIGHT),
        given=torch.tensor([[True, False, False, False]] * 2),
    )
    expected = [*entropies(0.6, 0.8, 0.7), *entropies(0.6, 0.7)]
    assert outputs["doubt_loss"].item() == pytest.approx(sum(expected) / 5, rel=1e-4)
    assert outputs["nfe"] == 3
    assert outputs["exact"] == 1


def test_a_row_without_masks_takes_nothing_from_another():
    objective = regret_of(fixed((RIGHT, 0.9), (RIGHT, 0.6), (WRONG, 0.8), (RIGHT, 0.7)))
    clean = torch.full((3, 4), RIGHT)
    clean[0] = WRONG
    given = torch.tensor([[True] * 4, [False] * 4, [False] * 4])
    prompt = torch.zeros(3, 0, dtype=torch.long)
    losses = []
    for rows in (slice(None), slice(1, None)):
        torch.manual_seed(0)
        losses.append(objective(prompt[rows], prompt[rows], clean[rows], given=given[rows])["doubt_loss"].item())
    assert losses[0] == losses[1] > 0


def test_where_decoding_starts():
    prompt, mask = torch.tensor([[7, 8], [9, 7]]), torch.tensor([[0, 1], [1, 1]])
    clean, given = torch.tensor([[4, 5, 6]] * 2), torch.tensor([[True, False, False], [False, True, True]])
    beginning = start(prompt, mask, clean, given, mask_token_id=3)
    assert beginning["input_ids"].tolist() == [[7, 8, 4, 3, 3], [9, 7, 3, 5, 6]]
    assert beginning["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1] * 5]
    assert beginning["infill"] is True
    assert start(prompt, mask, clean, None, mask_token_id=3) == {
        "input_ids": prompt,
        "attention_mask": mask,
        "max_new_tokens": 3,
    }


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_a_filled_in_response_is_scored(family):
    """One step: the sum of log p of the clean tokens at the masks, whatever side the padding is on."""
    denoiser = Denoiser(tiny_model(family), mask_token_id=MODEL_MASK)
    whole = torch.randint(5, 20, (2, 6), generator=torch.Generator().manual_seed(0))
    masked = torch.tensor([[0, 1, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0]]).bool()
    ids, ones = whole.masked_fill(masked, MODEL_MASK), torch.ones(2, 6, dtype=torch.long)
    options = {"sampler": TopProbSampler(), "infill": True, "max_denoising_steps": 1}
    output = decode(denoiser, ids, ones, clean=whole, **options)
    logits, _ = denoiser(ids, ones, denoiser.family.shift)
    log_probs = Predictions.from_logits(logits, MODEL_MASK).log_probs
    tokens = whole[:, denoiser.family.shift :]
    expected = log_probs.gather(-1, tokens[..., None]).squeeze(-1).masked_fill(~masked[:, denoiser.family.shift :], 0.0)
    torch.testing.assert_close(output.log_likelihood, expected.sum(-1))
    assert output.sequences.tolist() == whole.tolist()

    wider, mask = (torch.nn.functional.pad(part, (0, 2)) for part in (ids, ones))
    padded = decode(denoiser, wider, mask, clean=torch.nn.functional.pad(whole, (0, 2)), **options)
    torch.testing.assert_close(padded.log_likelihood, output.log_likelihood)


def test_a_response_of_another_width_is_refused():
    denoiser = Denoiser(tiny_model("bert"), mask_token_id=MODEL_MASK)
    ids = torch.tensor([[5, MODEL_MASK, 6]])
    with pytest.raises(ValueError, match=r"clean must have the shape \(1, 3\), got \(1, 2\)"):
        decode(denoiser, ids, sampler=TopProbSampler(), infill=True, clean=ids[:, :2])


def test_evaluation_of_puzzles(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    task = TASKS["sudoku"]
    tokenizer = task.tokenizer()
    rows = task.load(tokenizer, Source(split="test", count=3, canvas_length=36))
    denoiser = Denoiser(tiny_model("bert", vocab_size=len(tokenizer)), mask_token_id=tokenizer.mask_token_id)
    evaluator = Evaluator(denoiser, tokenizer, rows, canvas_length=36, batch_size=2, is_right=task.is_right)
    for output, batch in evaluator.outputs(TopProbSampler(), max_denoising_steps=5):
        for tokens, order, row in zip(output.sequences.tolist(), output.order.tolist(), batch, strict=True):
            assert [o == 0 for o in order] == row["given"]
            assert all(t == c for t, c, g in zip(tokens, row["response_ids"], row["given"], strict=True) if g)
    result = evaluator.measure(TopProbSampler(), name="top_prob", max_denoising_steps=5)
    assert result.nfe == 5
    assert result.tokens_per_forward == 6
    assert result.accuracy == 0
    assert -200 < result.bound < -30
    slow = evaluator.measure(EntropyBoundSampler(gamma=0.0), name="")
    assert slow.nfe == 30
    warm = Evaluator(denoiser, tokenizer, rows, canvas_length=36, is_right=lambda text, answer: True, temperature=1.0)
    drawn, again, other = (next(iter(warm.outputs(ThresholdSampler(), seed=seed)))[0].sequences for seed in (0, 0, 1))
    assert drawn.tolist() == again.tolist() != other.tolist()
    assert warm.quick(ThresholdSampler()).accuracy == 1


# ---- in training -------------------------------------------------------------------------------------------------


@pytest.fixture
def sudoku(tmp_path, monkeypatch):
    """A trainer on puzzles of 12 clues, and what measures as `hf-learned-order evaluate` does."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    task = TASKS["sudoku_12"]
    tokenizer = task.tokenizer()
    rows = task.load(tokenizer, Source(split="train", count=12, canvas_length=36))
    model = tiny_model("bert", vocab_size=len(tokenizer)).float()

    def make(**options):
        torch.manual_seed(0)
        denoiser = Denoiser(model, mask_token_id=tokenizer.mask_token_id)
        scorer = OrderScorer.for_denoiser(denoiser, law="regret", hidden_size=8, num_attention_heads=2)
        options = {"canvas_length": 36, "max_denoising_steps": 24, "per_device_eval_batch_size": 5, **options}
        trainer = OrderTrainer(
            model=model,
            scorer=scorer,
            args=arguments(tmp_path, **options),
            processing_class=tokenizer,
            train_dataset=rows,
            eval_dataset=rows,
        )
        options = {"canvas_length": 36, "is_right": task.is_right}
        return trainer, Evaluator(trainer.denoiser, tokenizer, rows, **options)

    return make


def test_training_decodes_what_evaluation_decodes(sudoku):
    trainer, evaluator = sudoku()
    trainer.scorer.config.bound, seen = 3.0, []
    metrics = AnswerMetrics(trainer.processing_class, TASKS["sudoku_12"].is_right)
    trainer.compute_metrics = lambda prediction: seen.append(prediction) or metrics(prediction)
    measured = trainer.evaluate()
    sampler = LearnedOrderSampler(scorer=trainer.scorer)
    output, rows = next(evaluator.outputs(sampler))
    found = [row["response_ids"] for row in trainer.eval_dataset], [row["response_ids"] for row in rows]
    assert found[0] == found[1]  # all are of one length: in the same order
    assert seen[0].predictions.tolist() == output.sequences.tolist()
    for tokens, row in zip(seen[0].predictions.tolist(), rows, strict=True):
        assert all(t == c for t, c, g in zip(tokens, row["response_ids"], row["given"], strict=True) if g)
    assert measured["eval_generated_nfe"] == pytest.approx(output.nfe.float().mean().item(), abs=1e-4)
    assert measured["eval_accuracy"] == evaluator.measure(sampler, name="").accuracy == 0
    trainer.compute_metrics = AnswerMetrics(trainer.processing_class, lambda response, puzzle: "." in puzzle)
    assert trainer.evaluate()["eval_accuracy"] == 1


def test_the_speed_is_that_of_the_clued_grid(sudoku):
    trainer, evaluator = sudoku(target_nfe=6.0, max_steps=2)
    trainer.train()
    nfe = evaluator.measure(LearnedOrderSampler(scorer=trainer.scorer), name="", with_bound=False).nfe
    assert nfe == pytest.approx(6.0, rel=0.03)
    logged = next(log["generated_nfe"] for log in trainer.state.log_history if "generated_nfe" in log)
    assert 1 <= logged <= 24  # an empty grid has 36 cells
