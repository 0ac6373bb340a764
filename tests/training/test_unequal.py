"""Rows of different lengths, parts of which are given: padding in the canvas changes nothing, whoever looks at it."""

import pytest
import torch
from datasets import Dataset
from models import MASK, PAD, tiny_model, tiny_tokenizer

from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.scheduled import TopProbSampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.evaluation.evaluator import Evaluator
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.tasks.answers import AnswerMetrics
from hf_learned_order.tasks.collator import CanvasCollator
from hf_learned_order.tasks.own.data import recovered
from hf_learned_order.training.arguments import OrderTrainingArguments
from hf_learned_order.training.objectives.table import OBJECTIVES, make_objective
from hf_learned_order.training.objectives.updates import seeds_of
from hf_learned_order.training.trainer import OrderTrainer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(eos_token=None)  # none is needed


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser(tiny_model("bert"), mask_token_id=MASK)


def rows_of(*lengths: int) -> list[dict]:
    """Every other token is hidden, the first one never."""
    rows = []
    for number, length in enumerate(lengths):
        ids = [4 + (7 * number + 3 * place) % 36 for place in range(length)]
        row = {"prompt_ids": [], "response_ids": ids, "given": [place % 2 == 0 for place in range(length)]}
        rows.append({**row, "answer": "", "length": length})
    return rows


def batch_of(tokenizer, rows: list[dict], canvas_length: int) -> dict[str, torch.Tensor]:
    return CanvasCollator(tokenizer=tokenizer, canvas_length=canvas_length)(rows)


def scorer_of(denoiser: Denoiser, law: str) -> OrderScorer:
    torch.manual_seed(0)
    scorer = OrderScorer.for_denoiser(denoiser, law=law, hidden_size=8, num_attention_heads=2).double().eval()
    torch.nn.init.normal_(scorer.network.head.weight, std=0.5)
    return scorer


def test_rows_stand_on_the_right(tokenizer):
    batch = batch_of(tokenizer, rows_of(3, 5), 5)
    assert batch["input_ids"].shape == (2, 0)
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1] * 5]
    assert batch["clean"].tolist() == [[PAD, PAD, 4, 7, 10], [11, 14, 17, 20, 23]]
    assert batch["given"].tolist() == [[True, True, True, False, True], [True, False, True, False, True]]
    # of like length there is no padding, and nothing is said of the canvas
    assert batch_of(tokenizer, rows_of(5, 5), 5)["attention_mask"].shape == (2, 0)


def test_rows_that_do_not_do(tokenizer):
    short = rows_of(3)[0]
    with pytest.raises(ValueError, match="prompt_ids must be empty where rows are shorter than the canvas"):
        batch_of(tokenizer, [{**short, "prompt_ids": [5]}], 5)
    with pytest.raises(ValueError, match=r"given must say of each of the 5 positions .* or of the 3 of the response"):
        batch_of(tokenizer, [{**short, "given": [True]}], 5)
    with pytest.raises(ValueError, match="tokenizer must have an EOS token, with which responses are filled up"):
        batch_of(tokenizer, [{"prompt_ids": [5], "response_ids": [6]}], 5)
    with pytest.raises(ValueError, match="tokenizer must have a pad token, got None"):
        batch_of(tiny_tokenizer(pad_token=None), [short], 5)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_objective_does_not_see_padding(name, denoiser, tokenizer):
    """Whatever stands there; and it learns from rows of all lengths."""
    objective = make_objective(
        name,
        denoiser,
        scorer_of(denoiser, "count" if name == "elbo" else "regret"),
        max_denoising_steps=3,
    )
    batch, found = batch_of(tokenizer, rows_of(6, 9, 4), 9), []
    for other in (PAD, 30):
        padding = batch["attention_mask"] == 0
        inputs = {**batch, "clean": batch["clean"].masked_fill(padding, other)}
        objective.zero_grad()
        outputs = objective(**inputs, seeds=seeds_of(0, 0, first=0, rows=3))
        outputs["loss"].backward()
        gradient = torch.cat([p.grad.flatten() for p in objective.scorer.parameters() if p.grad is not None])
        found.append(({key: value.item() for key, value in outputs.items()}, gradient))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-9)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-7, atol=1e-9)
    assert found[0][1].abs().max() > 0


def test_a_row_is_what_it_is_alone(denoiser, tokenizer):
    """The loss of a batch is that of the rows, each on a canvas of its own length."""
    objective = make_objective("regret", denoiser, scorer_of(denoiser, "regret"), max_denoising_steps=2)
    rows, losses, counts = rows_of(4, 6, 7), [], []
    for row in rows:
        outputs = objective(**batch_of(tokenizer, [row], row["length"]), seeds=seeds_of(0, 0, first=0, rows=1))
        losses.append(outputs["doubt_loss"].item())
        counts.append(outputs["nfe"].item())
    together = objective(**batch_of(tokenizer, rows, 7), seeds=seeds_of(0, 0, first=0, rows=3))
    assert together["nfe"].item() == pytest.approx(sum(counts) / 3)
    assert min(losses) < together["doubt_loss"].item() < max(losses)


def test_evaluation_of_rows_of_all_lengths(denoiser, tokenizer):
    """Each row is decoded and scored as it is alone, and what was given is not counted."""
    rows = rows_of(5, 8, 6)
    scorer = scorer_of(denoiser, "regret")

    def evaluator(rows: list[dict], canvas_length: int) -> Evaluator:
        options = {"canvas_length": canvas_length, "score": recovered, "batch_size": 4}
        return Evaluator(denoiser, tokenizer, Dataset.from_list(rows), **options)

    together = evaluator(rows, 8)
    assert together.dataset["length"][:] == [5, 6, 8]
    for sampler in (TopProbSampler(), LearnedOrderSampler(scorer=scorer)):
        measured = together.measure(sampler, name="", max_denoising_steps=2)
        alone = [
            evaluator([row], row["length"]).measure(sampler, name="", max_denoising_steps=2)
            for row in sorted(rows, key=lambda row: row["length"])
        ]
        assert measured.scores == [one.accuracy for one in alone]
        assert measured.nfe == pytest.approx(sum(one.nfe for one in alone) / 3)
        assert measured.bound == pytest.approx(sum(one.bound for one in alone) / 3, abs=1e-5)
        assert measured.tokens_per_forward == pytest.approx(sum(one.tokens_per_forward for one in alone) / 3)


def test_a_score_sees_ids_and_what_was_given(denoiser, tokenizer):
    seen = []
    rows = rows_of(3, 5)
    options = {"canvas_length": 5, "score": lambda response: seen.append(response) or 0.25}
    result = Evaluator(denoiser, tokenizer, Dataset.from_list(rows), **options).measure(TopProbSampler(), name="")
    assert result.accuracy == 0.25
    for response, row in zip(seen, rows, strict=True):
        assert (response.expected, response.given, response.answer) == (row["response_ids"], row["given"], "")
        kept = [i for i, known in zip(response.ids, row["given"], strict=True) if known]
        assert kept == row["response_ids"][::2]
        assert MASK not in response.ids
        assert response.text.split()[0] == f"w{row['response_ids'][0]}"


def test_the_trainer_takes_them(denoiser, tokenizer, tmp_path):
    rows = Dataset.from_list(rows_of(5, 8, 6, 7))
    arguments = OrderTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        canvas_length=8,
        per_device_train_batch_size=4,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
        target_nfe=2.0,
    )
    trainer = OrderTrainer(
        model=denoiser.model,
        scorer=scorer_of(denoiser, "regret").float(),
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        compute_metrics=AnswerMetrics(tokenizer),
    )
    trainer.train()
    measured = trainer.evaluate()
    assert 0 <= measured["eval_recovered"] <= 1
