"""The objectives beside the ELBO: their gradients against sums over every decoding, and what training makes of them."""

import itertools
import math

import pytest
import torch
from problems import MASK, ExactPairs, ExactTable, Scripted
from test_elbo import SMALL, Enumeration, finished, gradient, sets, z_score
from torch import Tensor, nn

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.scheduled import LeftToRightSampler
from hf_learned_order.denoisers.families import ENCODER
from hf_learned_order.denoisers.predictions import Predictions, Step
from hf_learned_order.orders.configuration import LAWS, OrderScorerConfig
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives.agreement import AgreementObjective
from hf_learned_order.training.objectives.correctness import CorrectnessObjective
from hf_learned_order.training.objectives.dense import DenseObjective
from hf_learned_order.training.objectives.imitation import ImitationObjective
from hf_learned_order.training.objectives.table import DEFAULTS, OBJECTIVES, make_objective
from hf_learned_order.training.rollouts import RolloutObjective
from hf_learned_order.training.updates import seeds_of

RIGHT, WRONG = Scripted.RIGHT, Scripted.WRONG
# the most likely bits one by one are 1 1, one after the other 1 0 (the first one first) or 0 1
TANGLED = torch.tensor([[0.0, 0.35], [0.4, 0.25]])


def table_of(table: Tensor) -> ExactTable:
    denoiser = ExactTable(table)
    denoiser.family, denoiser.max_length = ENCODER, None
    return denoiser


def random_table(length: int, seed: int = 0) -> ExactTable:
    return table_of(ExactTable.random(length, seed=seed).table.view([2] * length))


class Foggy(ExactTable):
    """Blurs what it believes of a position by the number of masks to the left of it: left to right is best."""

    def forward(self, input_ids, attention_mask, start, *, hidden_states=False, at=None):
        logits, hidden = super().forward(input_ids, attention_mask, start)
        masks = (input_ids[:, start:] == MASK).float()
        logits = logits.clamp(min=-30.0) / (1 + masks.cumsum(-1) - masks)[..., None]
        return logits if at is None else logits[at], hidden


def foggy() -> Foggy:
    return Foggy(ExactTable.random(3, seed=0).table.view(2, 2, 2))


def randomised(objective: nn.Module, *, seed: int = 0) -> nn.Module:
    """No score is 0 and no gradient is."""
    torch.manual_seed(seed)
    for name, parameter in objective.named_parameters():
        nn.init.normal_(parameter, std=0.7 if "head" in name else 0.4)
    return objective


def rollouts_of(kind, denoiser, law: str, **options) -> RolloutObjective:
    torch.manual_seed(0)
    return kind(denoiser, OrderScorer.for_denoiser(denoiser, law=law, law_temperature=1.0, **SMALL), **options)


class Decodings:
    """The expected reward, a sum over every set and every token that a decoding can draw, differentiable.

    `reward` gets the step and the token of each position (0 and the mask where it was left), what the denoiser claimed
    for it, and the NFE.
    """

    def __init__(self, objective: RolloutObjective, reward):
        self.objective, self.reward, self.known = objective, reward, {}
        self.length = objective.denoiser.length

    def value(self) -> Tensor:
        nothing = (0,) * self.length
        return self._value((MASK,) * self.length, nothing, (0.0,) * self.length, 1)

    def _value(self, tokens, order, claimed, number) -> Tensor:
        masked = tuple(token == MASK for token in tokens)
        if finished(list(tokens), masked, self.objective.eos_token_id):
            return torch.tensor(self.reward(order, tokens, claimed, number - 1))
        left = self.objective.max_denoising_steps - number + 1
        if (tokens, left) not in self.known:
            self.known[tokens, left] = self._choices(tokens, left)
        total = torch.tensor(0.0)
        for unmask, chance in zip(*self.known[tokens, left], strict=True):
            members = [i for i, member in enumerate(unmask) if member]
            for drawn, log_probs in self.draws(tokens, members):
                after, when, said = list(tokens), list(order), list(claimed)
                for i, token, log_prob in zip(members, drawn, log_probs, strict=True):
                    after[i], when[i], said[i] = token, number, log_prob
                total = total + chance * math.exp(sum(log_probs) if self.objective.temperature else 0.0) * (
                    self._value(tuple(after), tuple(when), tuple(said), number + 1)
                )
        return total

    def draws(self, tokens, members):
        log_probs = log_probs_of(self.objective.denoiser, tokens)
        for drawn in itertools.product([0, 1], repeat=len(members)):
            found = [log_probs[i][token] for i, token in zip(members, drawn, strict=True)]
            greedy = all(found[k] >= log_probs[i][1 - drawn[k]] for k, i in enumerate(members))
            if math.isfinite(sum(found)) and (self.objective.temperature or greedy):
                yield drawn, found

    def step(self, tokens, left: int) -> Step:
        canvas = torch.tensor([tokens])
        logits, hidden = self.objective.denoiser(canvas, torch.ones_like(canvas), 0, hidden_states=True)
        predictions = Predictions.from_logits(logits, MASK)
        return Step(predictions=predictions, masked=canvas == MASK, steps_left=left, hidden_states=hidden)

    def _choices(self, tokens, left: int) -> tuple[list, Tensor]:
        """Sets and their probabilities."""
        masked = tuple(token == MASK for token in tokens)
        if left == 1:
            return [masked], torch.ones(1)
        step, scorer = self.step(tokens, left), self.objective.scorer
        unmask = sets(masked)
        if scorer.is_random:
            return unmask.tolist(), scorer.law(step, scorer(step)).log_prob(unmask).exp()
        return unmask.tolist(), self.noisy(step, scorer(step), unmask)

    def noisy(self, step: Step, values: Tensor, unmask: Tensor) -> Tensor:
        """By quadrature over the noise at two positions."""
        line = torch.linspace(-5, 5, 501) * self.objective.noise
        noisy = values.detach() + torch.cartesian_prod(line, line)
        weight = (-((noisy - values) / self.objective.noise).square().sum(-1) / 2).softmax(0)
        grid = Step(predictions=step.predictions, masked=step.masked.expand(noisy.shape), steps_left=step.steps_left)
        accepted = self.objective.scorer.law(grid, noisy).accepted
        return torch.stack([(weight * (accepted == each).all(-1)).sum() for each in unmask])


def log_probs_of(denoiser, tokens) -> list[list[float]]:
    canvas = torch.tensor([tokens])
    logits, _ = denoiser(canvas, torch.ones_like(canvas), 0)
    return logits[0, :, :2].log_softmax(-1).tolist()


def agreement_of(denoiser, eos: int | None = None):
    def agreement(order, tokens, claimed, nfe) -> float:
        seen, total = [MASK] * len(tokens), 0.0
        end = tokens.index(eos) if eos in tokens else len(tokens)
        for i in sorted((i for i in range(len(tokens)) if order[i]), key=lambda i: (order[i], i)):
            log_prob = log_probs_of(denoiser, seen)[i][tokens[i]]
            total += max(log_prob - claimed[i], -10.0) if i <= end else 0.0
            seen[i] = tokens[i]
        return total

    return agreement


def check_gradient(objective, exact: Tensor, estimate, *, repeats: int = 16, precision: float = 5) -> None:
    """The mean of the estimates is the exact gradient, and precise enough to tell another one."""
    torch.manual_seed(0)
    estimates = torch.stack([gradient(estimate(), objective) for _ in range(repeats)])
    directions = torch.randn(20, len(exact), generator=torch.Generator().manual_seed(1))
    for direction in [exact, *directions]:
        assert z_score(estimates @ direction, exact @ direction) < 4.5
    error = (estimates @ exact).std() / math.sqrt(repeats)
    assert exact @ exact > precision * error


def batch_of(clean, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    empty = torch.zeros(rows, 0, dtype=torch.long)
    return empty, empty, torch.tensor([clean] * rows)


def trained(objective, batch, name: str, *, updates: int, learning_rate: float = 1e-2) -> list[float]:
    optimizer = torch.optim.AdamW(objective.parameters(), lr=learning_rate)
    found = []
    for _ in range(updates):
        outputs = objective(*batch())
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
        found.append(outputs[name].item())
    return found


class TestAgreement:
    @pytest.mark.parametrize(
        ("law", "steps", "eos"), [("non_empty", 3, None), ("repulsive", 2, None), ("non_empty", 3, 1)]
    )
    def test_gradient(self, law, steps, eos):
        denoiser = random_table(3, seed=1 if eos is None else 5)
        objective = randomised(
            rollouts_of(AgreementObjective, denoiser, law, max_denoising_steps=steps, num_chains=4, eos_token_id=eos)
        )
        value = Decodings(objective, agreement_of(denoiser, eos)).value()
        assert value < 0
        exact = gradient(value, objective)
        batch = batch_of((0, 0, 0), 1024)
        check_gradient(objective, exact, lambda: -3 * objective(*batch)["loss"], repeats=20, precision=2)
        with torch.no_grad():
            means = torch.stack([objective(*batch)["agreement"] for _ in range(8)])
        assert z_score(means, value.detach()) < 4.5

    def test_gradient_of_the_factor_law_under_noise(self):
        denoiser = table_of(TANGLED)
        objective = randomised(
            rollouts_of(AgreementObjective, denoiser, "factor", max_denoising_steps=2, num_chains=4, noise=0.7)
        )
        objective.scorer.config.bound = 0.3
        exact = gradient(Decodings(objective, agreement_of(denoiser)).value(), objective)
        batch = batch_of((0, 0), 1024)
        check_gradient(objective, exact, lambda: -2 * objective(*batch)["loss"], repeats=12, precision=3)

    @pytest.mark.parametrize(("law", "eos"), [("non_empty", None), ("factor", 1)])
    def test_a_row_is_the_same_in_whatever_batch(self, law, eos):
        denoiser = random_table(3)
        options = {"max_denoising_steps": 3, "num_chains": 3, "eos_token_id": eos}
        objective = randomised(rollouts_of(AgreementObjective, denoiser, law, **options))
        seeds, calls = seeds_of(0, 0, first=0, rows=5), []
        denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))

        def found(rows: slice) -> tuple:
            ids = batch_of((0, 0, 0), len(seeds[rows]))[:2]
            rollouts = objective.rollouts(*ids, 3, seeds[rows])
            before = sum(calls)
            gains = objective.gains(*ids, rollouts)
            # one call for each token
            assert sum(calls) - before == (rollouts.order > 0).sum()
            return rollouts, gains

        whole, gains = found(slice(None))
        assert len(whole.tokens.flatten(0, 1).unique(dim=0)) > 3
        for number in range(5):
            alone, its_gains = found(slice(number, number + 1))
            for name in ("tokens", "order", "nfe"):
                assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[number]), name
            steps = len(alone.log_q)
            torch.testing.assert_close(alone.log_q[:, 0], whole.log_q[:steps, number])
            assert not whole.log_q[steps:, number].any()
            torch.testing.assert_close(its_gains[0], gains[number])

    def test_of_pairs(self):
        """Two partners at once disagree half of the time, which costs at most 10 nats; else log 2 is gained."""
        objective = rollouts_of(AgreementObjective, ExactPairs(1), "non_empty", max_denoising_steps=2, num_chains=8)
        torch.manual_seed(0)
        rollouts = objective.rollouts(*batch_of((0, 0), 64)[:2], 2)
        gains = objective.gains(*batch_of((0, 0), 64)[:2], rollouts)
        at_once = (rollouts.order == 1).all(-1)
        equal = rollouts.tokens[..., 0] == rollouts.tokens[..., 1]
        assert 0.2 < at_once.float().mean() < 0.5
        assert not gains[~at_once].any()
        torch.testing.assert_close(gains[at_once & equal].sum(-1).unique(), torch.tensor([math.log(2)]))
        torch.testing.assert_close(gains[at_once & ~equal].sum(-1).unique(), torch.tensor([-10.0]))

    def test_learns_not_to_draw_partners_at_once(self):
        objective = rollouts_of(AgreementObjective, ExactPairs(2), "non_empty", max_denoising_steps=2, num_chains=8)
        objective.scorer.config.law_temperature = 0.1
        found = trained(objective, lambda: batch_of((0,) * 4, 8), "agreement", updates=80)
        assert sum(found[:5]) / 5 < -2
        assert sum(found[-10:]) / 10 > -0.3


class OnePosition(Enumeration):
    """One position a step, by the softmax of the scores."""

    def _choices(self, masked, left, *, every=False):
        unmask = torch.eye(len(masked), dtype=torch.bool)[list(masked)]
        state = torch.tensor([masked])
        canvas = self.clean.masked_fill(state, MASK)
        logits, hidden = self.objective.denoiser(canvas, torch.ones_like(canvas), 0)
        predictions = Predictions.from_logits(logits, MASK)
        step = Step(predictions=predictions, masked=state, steps_left=left, hidden_states=hidden)
        scores = self.objective.scorer(step)
        scores = scores[..., 0] if scores.dim() == 3 else scores
        log_q = (scores[state] / self.objective.scorer.config.law_temperature).log_softmax(-1)
        return unmask, predictions.log_prob(self.clean)[state], log_q, log_q, torch.zeros_like(log_q)


class TestDense:
    @pytest.mark.parametrize("law", ["non_empty", "count", "plackett_luce"])
    def test_gradient(self, law):
        objective = randomised(rollouts_of(DenseObjective, foggy(), law, num_chains=4))
        objective.max_denoising_steps, clean = 3, [0, 1, 0]
        enumeration = OnePosition(objective, clean)
        exact = gradient(enumeration.elbo(), objective)
        check_gradient(objective, exact, lambda: -3 * objective(*batch_of(clean, 256))["loss"])
        outputs = objective(*batch_of(clean, 16))
        assert (outputs["nfe"], outputs["kl"]) == (3, 0)

    def test_learns_the_order_in_which_the_fog_is_thin(self):
        denoiser = foggy()
        objective = rollouts_of(DenseObjective, denoiser, "plackett_luce", num_chains=4)
        rows = denoiser.rows[torch.multinomial(denoiser.table, 64, replacement=True)]
        empty = torch.zeros(64, 0, dtype=torch.long)
        found = trained(objective, lambda: (empty, empty, rows), "bound", updates=60)
        exact = denoiser.table.view(2, 2, 2)[tuple(rows.T)].log().mean().item()
        assert found[0] < exact - 0.05
        assert found[-1] == pytest.approx(exact, abs=0.02)


class TestImitation:
    @staticmethod
    def script(_, canvas):
        return [(RIGHT, 0.9), (RIGHT if canvas[0] == RIGHT else WRONG, 0.95)]

    def objective(self, kind, **options):
        torch.manual_seed(0)
        scorer = OrderScorer(OrderScorerConfig(law="factor", denoiser_hidden_size=0, **SMALL))
        return kind(Scripted(self.script), scorer, max_denoising_steps=2, **options)

    @pytest.mark.parametrize(
        ("teacher", "ends_with"), [("top_prob", [RIGHT, WRONG]), ("left_to_right", [RIGHT, RIGHT])]
    )
    def test_is_correctness_with_other_tokens(self, teacher, ends_with):
        prompt = torch.full((4, 2), 5)
        outputs = []
        for objective, clean in (
            (self.objective(ImitationObjective, teacher=teacher), [WRONG, WRONG]),
            (self.objective(CorrectnessObjective), ends_with),
        ):
            torch.manual_seed(1)
            outputs.append(objective(prompt, torch.ones_like(prompt), torch.tensor([clean] * 4)))
        assert outputs[0] == outputs[1]

    def test_learns_what_the_slow_decoding_says(self):
        objective = self.objective(ImitationObjective, teacher="left_to_right")
        prompt = torch.full((4, 2), 5)
        nothing = torch.zeros(4, 2, dtype=torch.long)
        losses = trained(objective, lambda: (prompt, torch.ones_like(prompt), nothing), "loss", updates=100)
        assert losses[-1] < 0.1 * losses[0]
        slow = decode(objective.denoiser, prompt, sampler=LeftToRightSampler(), max_new_tokens=2)
        assert objective(prompt, torch.ones_like(prompt), slow.sequences[:, 2:])["exact"] == 1


class TestByName:
    def test_each_name(self):
        for law in LAWS:
            objective_of_law = make_objective(
                DEFAULTS.get(law, "elbo"),
                ExactPairs(1),
                OrderScorer.for_denoiser(ExactPairs(1), law=law, **SMALL),
                max_denoising_steps=3,
                num_chains=2,
                teacher="entropy",
                eos_token_id=None,
            )
            assert objective_of_law.scorer.config.law == law
        scorer = OrderScorer.for_denoiser(ExactPairs(1), law="factor", **SMALL)
        settings = {"max_denoising_steps": 3, "num_chains": 2, "eos_token_id": 1, "noise": 2.0, "teacher": "margin"}
        objective = make_objective("agreement", ExactPairs(1), scorer, **settings)
        assert type(objective) is OBJECTIVES["agreement"]
        assert (objective.max_denoising_steps, objective.num_chains, objective.noise) == (3, 2, 2.0)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match=r"objective must be one of elbo, regret, .*, dense, got 'best'"):
            make_objective("best", ExactPairs(1), OrderScorer.for_denoiser(ExactPairs(1), **SMALL))


class TestBadInput:
    def test_agreement_is_of_whole_responses(self):
        objective = rollouts_of(AgreementObjective, ExactPairs(1), "non_empty")
        with pytest.raises(ValueError, match="given must be None: agreement is of whole responses"):
            objective(*batch_of((0, 0), 2), given=torch.zeros(2, 2, dtype=torch.bool))

    @pytest.mark.parametrize(
        ("kind", "law", "options", "message"),
        [
            (
                AgreementObjective,
                "dependent",
                {},
                "law must be one of non_empty, .*, factor, got 'dependent', which draws",
            ),
            (AgreementObjective, "non_empty", {"num_chains": 1}, "num_chains must be 2 or more, got 1"),
            (AgreementObjective, "factor", {"noise": 0.0}, r"noise must be positive, got 0\.0"),
            (AgreementObjective, "count", {"max_denoising_steps": 1}, "max_denoising_steps must be 2 or more, got 1"),
            (DenseObjective, "repulsive", {}, "law must be one of non_empty, count, plackett_luce .*, got 'repulsive'"),
            (
                ImitationObjective,
                "factor",
                {"max_denoising_steps": 2, "teacher": "fast"},
                "teacher must .*: sampler must",
            ),
            (
                ImitationObjective,
                "factor",
                {"max_denoising_steps": 2, "teacher": "learned_order"},
                "teacher must be a rule that needs no more than its name, got 'learned_order': .* needs a scorer",
            ),
        ],
    )
    def test_refused(self, kind, law, options, message):
        with pytest.raises(ValueError, match=message):
            rollouts_of(kind, ExactPairs(1), law, **options)
