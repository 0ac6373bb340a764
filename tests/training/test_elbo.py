"""The ELBO and its gradient against sums over every trajectory of unmasked sets."""

import itertools
import math

import pytest
import torch
from models import MASK as MODEL_MASK
from models import WORDS, tiny_model
from problems import MASK, ExactPairs, ExactTable
from torch import Tensor

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.scheduled import IIDSampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import ENCODER
from hf_learned_order.denoisers.predictions import Predictions, Step
from hf_learned_order.orders.posterior import CleanPosterior
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives.base import Batch
from hf_learned_order.training.objectives.elbo import OrderELBO
from hf_learned_order.training.objectives.updates import seeds_of

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
# law of the prior, law of the posterior (None: it shares the prior's)
LAWS = [("non_empty", None), ("max_normalized", None), ("non_empty", "non_empty"), ("non_empty", "max_normalized")]
EXACT = [*LAWS, ("count", None), ("count", "count")]
# without closed marginals, or a pair without a closed KL
DRAWN = [("regret", None), ("count", "max_normalized")]
MORE = [*EXACT[len(LAWS) :], *DRAWN]


def each_of(laws):
    return pytest.mark.parametrize(
        ("prior", "posterior"), laws, ids=[f"{prior}-{posterior or 'shared'}" for prior, posterior in laws]
    )


def objective_of(
    denoiser, prior: str, posterior: str | None, *, seed: int | None = 0, once: bool = False, **options
) -> OrderELBO:
    """With random weights everywhere, so that no score is 0 and no gradient is; `seed=None`: untrained."""
    torch.manual_seed(seed or 0)
    # tau = 1: at 0.1 random scores make the law nearly deterministic, and a Monte Carlo mean sees nothing
    scorer = OrderScorer.for_denoiser(denoiser, law=prior, law_temperature=1.0, pair_weight=1.0, **SMALL)
    q = None if posterior is None else CleanPosterior(scorer.config, law=posterior, temperature=1.0, once=once)
    objective = OrderELBO(denoiser, scorer, q, **options)
    if seed is not None:
        for name, parameter in objective.named_parameters():
            torch.nn.init.normal_(parameter, std=0.7 if "head" in name else 0.4)
    return objective


def sets(masked: tuple[bool, ...]) -> Tensor:
    """Every non-empty subset, bool [n, canvas]."""
    choices = itertools.product(*[(False, True) if m else (False,) for m in masked])
    return torch.tensor([choice for choice in choices if any(choice)])


def finished(clean: list[int], masked: tuple[bool, ...], eos: int | None) -> bool:
    if eos is not None and eos in clean:
        first = clean.index(eos)
        return not any(masked[: first + 1])
    return not any(masked)


class Enumeration:
    """Sums over every trajectory r_1..r_T of one response, differentiable.

    `elbo`: E_q sum_t [ log p(x^i | x_t) of the set + log p(r_t) - log q(r_t) ], nothing Rao-Blackwellised; with
    exploration beta also - beta [ log q(r_t) - log p_0(r_t) ], p_0 being the law of an untrained scorer.
    `log_likelihood`: log sum over trajectories of p(r_t) p(x^i | x_t), what the model itself gives to x.
    """

    def __init__(self, objective: OrderELBO, clean: list[int], *, eos: int | None = None, rule=None):
        self.objective, self.clean, self.eos, self.rule = objective, torch.tensor([clean]), eos, rule
        self.steps = objective.max_denoising_steps

    def elbo(self, *, score_term: bool = True) -> Tensor:
        """`score_term=False`: its gradient leaves out how r_t changes the states that follow."""
        return self._elbo((True,) * self.clean.shape[1], self.steps, score_term, {})

    def log_likelihood(self) -> Tensor:
        return self._log_likelihood((True,) * self.clean.shape[1], self.steps, {})

    def _elbo(self, masked: tuple[bool, ...], left: int, score_term: bool, known: dict) -> Tensor:
        if finished(self.clean[0].tolist(), masked, self.eos):
            return torch.tensor(0.0)
        if (masked, left) not in known:
            unmask, tokens, log_p, log_q, log_start = self._choices(masked, left)
            q, beta = log_q.exp(), self.objective.exploration
            follow = self._following(self._elbo, masked, unmask, left, score_term, known)
            own = (q * (tokens + log_p - log_q - beta * (log_q - log_start))).sum()
            known[masked, left] = own + ((q if score_term else q.detach()) * follow).sum()
        return known[masked, left]

    def _log_likelihood(self, masked: tuple[bool, ...], left: int, known: dict) -> Tensor:
        if finished(self.clean[0].tolist(), masked, self.eos):
            return torch.tensor(0.0)
        if (masked, left) not in known:
            unmask, tokens, log_p, *_ = self._choices(masked, left, every=True)
            follow = self._following(self._log_likelihood, masked, unmask, left, known)
            known[masked, left] = (tokens + log_p + follow).logsumexp(0)
        return known[masked, left]

    @staticmethod
    def _following(value, masked, unmask, left, *rest) -> Tensor:
        after = [tuple(m and not u for m, u in zip(masked, r, strict=True)) for r in unmask.tolist()]
        return torch.stack([value(m, left - 1, *rest) for m in after])

    def _step(self, masked: tuple[bool, ...], left: int) -> Step:
        state = torch.tensor([masked])
        canvas = self.clean.masked_fill(state, MASK)
        logits, hidden = self.objective.denoiser(canvas, torch.ones_like(canvas), 0, hidden_states=True)
        predictions = Predictions.from_logits(logits, MASK)
        return Step(predictions=predictions, masked=state, steps_left=left, hidden_states=hidden)

    def _choices(self, masked: tuple[bool, ...], left: int, *, every: bool = False) -> tuple[Tensor, ...]:
        """Sets that q can draw (with `every`: that p can), log p_theta of their tokens, log p and log q of the sets."""
        step = self._step(masked, left)
        state, log_prob = step.masked, step.predictions.log_prob(self.clean)[0]
        if left == 1:
            zero = torch.zeros(1)
            return state, log_prob[state[0]].sum()[None], zero, zero, zero
        scorer, posterior = self.objective.scorer, self.objective.posterior
        if self.rule is None:
            scores = scorer(step)
            # in training the same but for the regret law
            around = self.objective.training
            prior = scorer.exploring_law(step, scores, where=state) if around else scorer.law(step, scores)
        else:
            prior = self.rule.law(step)
        own = None
        if posterior is not None and posterior.once:
            own = posterior.scores(self._step((True,) * len(masked), self.objective.max_denoising_steps), self.clean)
        q = prior if posterior is None else posterior.law(step, self.clean, scores, own_scores=own)
        unmask = sets(masked)
        untrained = OrderScorer.for_denoiser(
            self.objective.denoiser, law=scorer.config.law, law_temperature=1.0, **SMALL
        )
        start = untrained.law(step, untrained(step)).log_prob(unmask).detach()
        log_q, log_p = q.log_prob(unmask), prior.log_prob(unmask)
        possible = log_p.isfinite() if every else log_q.isfinite()
        unmask, log_p, log_q, start = (part[possible] for part in (unmask, log_p, log_q, start))
        # 0 times what exploration of 0 makes infinite
        start = start.clamp(min=-1e4)
        return unmask, (unmask * log_prob.masked_fill(~state[0], 0.0)).sum(-1), log_p, log_q, start


def chains_of(objective: OrderELBO, clean: list[int], rows: int):
    empty = torch.zeros(rows, 0, dtype=torch.long)
    return objective.chains(Batch(empty, empty, torch.tensor([clean] * rows)))


def gradient(value: Tensor, objective: OrderELBO) -> Tensor:
    """Flat, of all parameters of p and q."""
    parameters = list(objective.parameters())
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def z_score(sample: Tensor, expected: Tensor) -> float:
    """How many standard errors the mean of `sample` is off, rounding aside."""
    error = sample.std() / math.sqrt(len(sample))
    off = (sample.mean() - expected).abs() - 1e-5 * (1 + expected.abs())
    return (off.clamp(min=0.0) / error).nan_to_num().item()


def check_gradient(objective: OrderELBO, *, repeats: int = 50, rows: int = 256, precision: float = 10) -> None:
    """The mean of the estimates is the exact gradient, and precise enough to tell a missing or a wrong score term."""
    clean = [0, 1, 0, 1]
    enumeration = Enumeration(objective, clean)
    exact = gradient(enumeration.elbo(), objective)
    score_part = exact - gradient(enumeration.elbo(score_term=False), objective)
    estimates, bounds = [], []
    for _ in range(repeats):
        chains = chains_of(objective, clean, rows)
        estimates.append(gradient(objective.surrogate(chains), objective))
        bounds.append(chains.bound.detach().mean())
    estimates = torch.stack(estimates)

    assert z_score(torch.stack(bounds), enumeration.elbo().detach()) < 4.5
    directions = torch.randn(20, len(exact), generator=torch.Generator().manual_seed(1))
    for direction in [exact, score_part, *directions]:
        assert z_score(estimates @ direction, exact @ direction) < 4.5
    error = (estimates @ score_part).std() / math.sqrt(len(estimates))
    assert score_part @ score_part > precision * error


class TestGradient:
    @each_of(LAWS)
    @pytest.mark.parametrize("steps", [2, pytest.param(3, marks=pytest.mark.slow)])
    def test_mean_of_the_estimates_is_the_exact_gradient(self, steps, prior, posterior):
        objective = objective_of(ExactPairs(2), prior, posterior, max_denoising_steps=steps, num_chains=4)
        check_gradient(objective)

    @each_of(MORE)
    def test_so_it_is_with_the_other_laws(self, prior, posterior):
        objective = objective_of(ExactPairs(2), prior, posterior, max_denoising_steps=2, num_chains=4)
        check_gradient(objective, repeats=24, precision=4)

    @pytest.mark.parametrize(
        ("options", "size"),
        [
            ({"baseline": "none"}, {"repeats": 20, "precision": 4}),
            ({"baseline": "value"}, {"repeats": 20, "precision": 4}),
            ({"returns": "trajectory"}, {"repeats": 20, "precision": 4}),
            ({"returns": "trajectory", "baseline": "value"}, {"repeats": 20, "precision": 3}),
            ({"gradient_steps": "one"}, {"repeats": 200, "rows": 32, "precision": 3}),
        ],
        ids=str,
    )
    @each_of([("non_empty", "non_empty"), ("regret", None)])
    def test_so_it_is_with_the_other_estimators(self, prior, posterior, options, size):
        objective = objective_of(ExactPairs(2), prior, posterior, max_denoising_steps=3, num_chains=4, **options)
        check_gradient(objective, **size)

    @pytest.mark.parametrize(
        ("options", "size"),
        [
            ({}, {"precision": 3}),
            pytest.param(
                {"gradient_steps": "one"}, {"repeats": 200, "rows": 32, "precision": 2}, marks=pytest.mark.slow
            ),
        ],
        ids=str,
    )
    @each_of([("non_empty", "non_empty"), ("non_empty", "max_normalized"), ("count", "count")])
    def test_so_it_is_with_scores_computed_once(self, prior, posterior, options, size):
        kinds = {"max_denoising_steps": 3, "num_chains": 4, "once": True}
        check_gradient(objective_of(ExactPairs(2), prior, posterior, **kinds, **options), **size)

    def test_once_is_one_call_of_the_posterior(self):
        objective = objective_of(
            ExactPairs(2), "non_empty", "non_empty", max_denoising_steps=3, num_chains=4, once=True
        )
        calls = []
        objective.posterior.network.encoder.register_forward_hook(lambda *_: calls.append(1))
        chains = chains_of(objective, [0, 1, 0, 1], 8)
        assert chains.nfe.max() == 3
        assert len(calls) == 1

    @pytest.mark.parametrize("least", [None, 2])
    def test_scores_computed_once_stay_with_their_response(self, least):
        """Whatever else is in the batch, when others have finished, and when they start later."""
        kinds = {"max_denoising_steps": 4, "min_denoising_steps": least, "num_chains": 3, "once": True}
        objective = objective_of(ExactPairs(2), "non_empty", "max_normalized", **kinds)
        clean, seeds = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]]), seeds_of(0, 0, first=0, rows=3)
        empty = torch.zeros(3, 0, dtype=torch.long)
        together = objective.chains(Batch(empty, empty, clean, seeds))
        assert together.nfe.unique().numel() > 1
        for row in range(3):
            alone = objective.chains(Batch(empty[:1], empty[:1], clean[row, None], seeds[row, None]))
            torch.testing.assert_close(together.log_q[:, row, None], alone.log_q)
            torch.testing.assert_close(together.step_terms[:, row, None], alone.step_terms)

    @pytest.mark.parametrize(
        ("prior", "posterior", "baseline"),
        [
            ("count", None, "value"),
            ("non_empty", "max_normalized", "leave_one_out"),
            ("count", "max_normalized", "leave_one_out"),
        ],
    )
    def test_so_it_is_with_exploration(self, prior, posterior, baseline):
        objective = objective_of(
            ExactPairs(2), prior, posterior, max_denoising_steps=3, num_chains=4, exploration=1.5, baseline=baseline
        )
        enumeration, clean = Enumeration(objective, [0, 1, 0, 1]), [0, 1, 0, 1]
        exact = gradient(enumeration.elbo(), objective)
        objective.exploration = 0.0
        without = gradient(enumeration.elbo(), objective)
        bound = enumeration.elbo().detach()
        objective.exploration = 1.5
        chains = [chains_of(objective, clean, 128) for _ in range(12)]
        estimates = torch.stack([gradient(objective.surrogate(c), objective) for c in chains])
        for direction in (exact, without, exact - without):
            assert z_score(estimates @ direction, exact @ direction) < 4.5
        error = (estimates @ (exact - without)).std() / math.sqrt(len(estimates))
        assert (exact - without) @ (exact - without) > 5 * error  # precise enough to tell the two apart
        # the bound is that of the ELBO itself
        assert z_score(torch.stack([c.bound.detach().mean() for c in chains]), bound) < 4.5

    @each_of([("non_empty", "non_empty"), ("regret", None)])
    def test_value_baseline_learns_what_follows(self, prior, posterior):
        """The least squares in the draw, or of the state where it does not see the draw.

        And its loss moves its own weights only, the surrogate all others.
        """
        options = {"max_denoising_steps": 2, "num_chains": 4, "baseline": "value"}
        objective, clean = objective_of(ExactPairs(2), prior, posterior, seed=None, **options), [0, 1, 0, 1]
        optimizer = torch.optim.Adam(objective.value.parameters(), lr=2e-2)
        start = chains_of(objective, clean, 32).values[0] / math.log(2)  # what stays masked, as it is believed now
        torch.testing.assert_close(start, start.round())
        assert start.any()
        for _ in range(100):
            chains = chains_of(objective, clean, 32)
            optimizer.zero_grad()
            chains.value_loss().backward()
            optimizer.step()
        assert not any(p.grad is not None and p.grad.any() for p in objective.scorer.parameters())
        objective.zero_grad()
        objective.surrogate(chains_of(objective, clean, 8)).backward()
        assert not any(p.grad is not None and p.grad.any() for p in objective.value.parameters())
        assert any(p.grad is not None and p.grad.any() for p in objective.scorer.parameters())
        after = chains_of(objective, clean, 4096)
        got = after.returns()[0]
        values = after.values[0].detach()
        error, scale = values - got, got.square().mean()
        print(f"{error.square().mean():.4f} of {got.var():.4f}, {scale:.4f}")
        assert abs((values * error).mean()) < 0.05 * scale  # what is left is orthogonal to what is fitted
        assert error.square().mean() < 1.02 * got.var() < 0.95 * scale  # better than a 0, no worse than the mean
        assert after.value_loss().item() == pytest.approx(error.square().mean().item())

    def test_what_is_certain_is_worth_nothing(self):
        """Whatever the weights; an untrained value is the denoiser's belief, and 0 where nothing is masked."""
        clean = torch.tensor([[0, 1, 0, 1]])
        for seed in (None, 0):
            objective = objective_of(ExactPairs(2), "count", None, seed=seed, baseline="value")
            step = Enumeration(objective, clean[0].tolist())._step((True, True, False, True), 2)
            value = objective.value(step, clean)[0]
            assert not value[[0, 2]].any()  # its partner is known; it is known itself
            if seed is None:
                torch.testing.assert_close(value[[1, 3]], torch.full((2,), -math.log(2)))
            else:
                assert (value[[1, 3]] != -math.log(2)).all()

    def test_one_step_after_every_chain_has_finished(self):
        """The chosen step has no gradient then, and the loss still has one, of 0."""
        objective = objective_of(
            ExactPairs(1), "non_empty", None, max_denoising_steps=9, num_chains=2, gradient_steps="one"
        )
        torch.manual_seed(0)
        zeros = 0
        for _ in range(12):
            objective.zero_grad()
            objective(*[torch.zeros(1, 0, dtype=torch.long)] * 2, torch.tensor([[1, 1]]))["loss"].backward()
            zeros += not any(p.grad.any() for p in objective.parameters())
        assert 0 < zeros < 12

    @each_of(LAWS)
    @pytest.mark.parametrize("steps", [2, 3])
    def test_one_pair_has_no_variance(self, steps, prior, posterior):
        """After the first step nothing is left to lose: one chain gives the exact gradient."""
        objective = objective_of(
            ExactPairs(1), prior, posterior, max_denoising_steps=steps, num_chains=1, baseline="none"
        )
        enumeration = Enumeration(objective, [1, 1])
        exact = gradient(enumeration.elbo(), objective)
        assert exact.any()
        torch.testing.assert_close(exact, gradient(enumeration.elbo(score_term=False), objective))
        torch.testing.assert_close(
            gradient(chains_of(objective, [1, 1], 1).surrogate(), objective), exact, rtol=1e-4, atol=1e-5
        )

    @each_of(LAWS)
    def test_leave_one_out_lowers_the_variance(self, prior, posterior):
        def variance(chains: int) -> float:
            options = {"num_chains": chains, "baseline": "leave_one_out" if chains > 1 else "none"}
            objective = objective_of(ExactPairs(8), prior, posterior, max_denoising_steps=2, **options)
            torch.manual_seed(1)
            drawn = [chains_of(objective, [0, 1] * 8, 32 // chains) for _ in range(60)]
            return torch.stack([gradient(objective.surrogate(c), objective) for c in drawn]).var(0).sum().item()

        assert variance(8) < 0.7 * variance(1)  # as many chains in all

    def test_one_chain_without_a_baseline_is_unbiased(self):
        objective = objective_of(
            ExactPairs(2), "non_empty", "non_empty", max_denoising_steps=2, num_chains=1, baseline="none"
        )
        clean = [0, 1, 0, 1]
        exact = gradient(Enumeration(objective, clean).elbo(), objective)
        estimates = [gradient(chains_of(objective, clean, 1024).surrogate(), objective) for _ in range(40)]
        assert z_score(torch.stack(estimates) @ exact, exact @ exact) < 4.5

    def test_loss_is_the_negative_surrogate_a_position(self):
        objective = objective_of(ExactPairs(2), "non_empty", "non_empty", max_denoising_steps=2, num_chains=4)
        empty, clean = torch.zeros(8, 0, dtype=torch.long), torch.tensor([[0, 1, 0, 1]] * 8)
        torch.manual_seed(3)
        out = objective(empty, empty, clean)
        torch.manual_seed(3)
        chains = objective.chains(Batch(empty, empty, clean))
        torch.testing.assert_close(out["loss"], -chains.surrogate() / 4)
        torch.testing.assert_close(out["bound"], chains.bound.mean())
        torch.testing.assert_close(out["kl"], chains.kl.sum(0).mean())
        torch.testing.assert_close(out["nfe"], chains.nfe.float().mean())


class TestBound:
    @each_of(LAWS)
    @pytest.mark.parametrize("steps", [1, 2, 3])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_never_above_what_the_model_gives_to_the_response(self, seed, steps, prior, posterior):
        self.check_bound(seed, steps, prior, posterior)

    @each_of(MORE)
    def test_never_above_it_with_the_other_laws(self, prior, posterior):
        self.check_bound(0, 3, prior, posterior)

    @staticmethod
    def check_bound(seed, steps, prior, posterior):
        objective = objective_of(
            ExactTable.random(3, seed=seed), prior, posterior, seed=seed, max_denoising_steps=steps, num_chains=4
        )
        total = 0.0
        with torch.no_grad():
            for clean in itertools.product([0, 1], repeat=3):
                enumeration = Enumeration(objective, list(clean))
                log_likelihood = enumeration.log_likelihood()
                elbo = enumeration.elbo()
                assert elbo <= log_likelihood + 1e-5
                total += log_likelihood.exp().item()
                estimate = chains_of(objective, list(clean), 1024).bound.flatten()
                assert z_score(estimate, elbo) < 4.5
        assert total == pytest.approx(1.0, abs=1e-5)  # the model is a distribution over responses

    @each_of(LAWS)
    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_pairs_never_above_their_entropy(self, steps, prior, posterior):
        for seed in range(3):
            objective = objective_of(ExactPairs(2), prior, posterior, seed=seed, max_denoising_steps=steps)
            with torch.no_grad():
                assert Enumeration(objective, [0, 1, 0, 1]).elbo() <= -2 * math.log(2) + 1e-5

    @each_of(LAWS)
    @pytest.mark.parametrize("n", [1, 2, 4])
    def test_one_step_sees_nothing(self, n, prior, posterior):
        objective = objective_of(ExactPairs(n), prior, posterior, max_denoising_steps=1, num_chains=2)
        chains = chains_of(objective, ([0, 1, 1, 0] * 2)[:n] * 2, 3)
        torch.testing.assert_close(chains.bound, torch.full((3, 2), -2 * n * math.log(2)))
        assert chains.nfe.eq(1).all()
        assert not chains.kl.any()
        assert not chains.log_q.any()

    @each_of([pair for pair in [*LAWS, *MORE] if not {"max_normalized", "regret"} & {*pair}])
    @pytest.mark.parametrize("steps", [2, 3])
    def test_untrained_is_ancestral_sampling(self, steps, prior, posterior):
        denoiser, clean = ExactTable.random(3, seed=0), [1, 0, 1]
        untrained = objective_of(denoiser, prior, posterior, seed=None, max_denoising_steps=steps, num_chains=4)
        iid = objective_of(denoiser, "non_empty", None, max_denoising_steps=steps)
        with torch.no_grad():
            expected = Enumeration(iid, clean, rule=IIDSampler()).elbo()
            torch.testing.assert_close(Enumeration(untrained, clean).elbo(), expected)
            chains = chains_of(untrained, clean, 1024)
        assert z_score(chains.bound.flatten(), expected) < 4.5
        torch.testing.assert_close(chains.kl, torch.zeros_like(chains.kl), rtol=0, atol=1e-5)

    def test_scoring_by_the_decoding_loop_has_the_same_mean(self):
        """`decode(clean=...)` draws one order and sums: the same bound, without Rao-Blackwell."""
        denoiser, clean = ExactTable.random(3, seed=0), [1, 0, 1]
        denoiser.family, denoiser.max_length = ENCODER, None
        objective = objective_of(denoiser, "non_empty", None, max_denoising_steps=2)
        rows = 8000
        torch.manual_seed(0)
        output = decode(
            denoiser,
            torch.zeros(rows, 0, dtype=torch.long),
            sampler=LearnedOrderSampler(scorer=objective.scorer),
            max_new_tokens=3,
            max_denoising_steps=2,
            clean=torch.tensor([clean] * rows),
        )
        with torch.no_grad():
            assert z_score(output.log_likelihood, Enumeration(objective, clean).elbo()) < 4.5


class TestChains:
    @each_of([*LAWS, *MORE])
    def test_finished_chains_contribute_nothing(self, prior, posterior):
        objective = objective_of(ExactPairs(2), prior, posterior, max_denoising_steps=5, num_chains=3)
        chains = chains_of(objective, [0, 1, 0, 1], 20)
        assert chains.step_terms.shape == chains.log_q.shape == chains.kl.shape == chains.drawn.shape == (5, 20, 3)
        assert chains.nfe.shape == chains.bound.shape == (20, 3)
        assert len(chains.nfe.unique()) > 1
        over = torch.arange(1, 6)[:, None, None] > chains.nfe
        for values in (chains.step_terms, chains.log_q, chains.kl, chains.drawn):
            assert values.isfinite().all()
            assert not values[over].any()
        assert bool(chains.kl.any()) == (posterior is not None)
        assert bool(chains.drawn.any()) == ((prior, posterior) in DRAWN)
        if (prior, posterior) in EXACT:
            assert (chains.kl >= 0).all()

    @each_of(LAWS)
    def test_a_chain_ends_with_the_first_eos(self, prior, posterior):
        clean = [0, 1, 1, 0]  # EOS is 1: two tokens settle it
        objective = objective_of(
            ExactTable.random(4, seed=0), prior, posterior, max_denoising_steps=3, num_chains=4, eos_token_id=1
        )
        with torch.no_grad():
            chains = chains_of(objective, clean, 512)
            assert z_score(chains.bound.flatten(), Enumeration(objective, clean, eos=1).elbo()) < 4.5
            objective.eos_token_id = None
            assert chains.nfe.float().mean() < chains_of(objective, clean, 512).nfe.float().mean()

    def test_eos_everywhere_is_settled_by_its_first(self):
        objective = objective_of(
            ExactTable.random(3, seed=0), "non_empty", None, max_denoising_steps=3, num_chains=64, eos_token_id=1
        )
        chains = chains_of(objective, [1, 1, 1], 4)
        assert set(chains.nfe.unique().tolist()) == {1, 2, 3}

    def test_one_chain(self):
        objective = objective_of(
            ExactPairs(2), "non_empty", "non_empty", max_denoising_steps=2, num_chains=1, baseline="none"
        )
        chains = chains_of(objective, [0, 1, 0, 1], 3)
        assert chains.bound.shape == (3, 1)
        assert gradient(chains.surrogate(), objective).isfinite().all()


class TestRealModel:
    @staticmethod
    def batch() -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randint(WORDS.start, WORDS.stop, (2, 5), generator=generator)
        clean = torch.randint(WORDS.start, WORDS.stop, (2, 6), generator=generator)
        return prompt, torch.tensor([[1] * 5, [0, 0, 1, 1, 1]]), clean

    @pytest.mark.parametrize("family", ["bert", "qwen2"])
    def test_padding_on_either_side(self, family):
        denoiser = Denoiser(tiny_model(family), mask_token_id=MODEL_MASK)
        objective = objective_of(denoiser, "non_empty", "non_empty", max_denoising_steps=3, num_chains=2)
        prompt, mask, clean = self.batch()
        right, right_mask = prompt.clone(), mask.clone()
        right[1], right_mask[1] = prompt[1].roll(-2), mask[1].roll(-2)
        outputs = []
        for ids, attention in ((prompt, mask), (right, right_mask)):
            torch.manual_seed(0)
            outputs.append(objective(ids, attention, clean))
        for name, value in outputs[0].items():
            torch.testing.assert_close(outputs[1][name], value)

    def test_a_frozen_denoiser_gets_no_gradient_and_a_tuned_one_does(self):
        denoiser = Denoiser(tiny_model("bert").requires_grad_(False), mask_token_id=MODEL_MASK)
        objective = objective_of(denoiser, "non_empty", "non_empty", seed=None, max_denoising_steps=3, num_chains=2)
        objective(*self.batch())["loss"].backward()
        assert objective.scorer.network.head.weight.grad.abs().sum() > 0
        assert all(p.grad is None for p in denoiser.parameters())
        denoiser.requires_grad_(True)
        objective(*self.batch())["loss"].backward()
        assert denoiser.model.get_input_embeddings().weight.grad.abs().sum() > 0

    def test_gradient_of_the_denoiser_at_one_step(self):
        denoiser = Denoiser(tiny_model("bert"), mask_token_id=MODEL_MASK)
        objective = objective_of(
            denoiser, "non_empty", None, seed=None, max_denoising_steps=1, num_chains=1, baseline="none"
        )
        prompt, mask, clean = self.batch()
        weight = denoiser.model.get_input_embeddings().weight
        (got,) = torch.autograd.grad(objective(prompt, mask, clean)["loss"], weight)
        masks = torch.full_like(clean, MODEL_MASK)
        logits, _ = denoiser(torch.cat([prompt, masks], 1), torch.cat([mask, torch.ones_like(clean)], 1), 5)
        logits = logits.index_fill(-1, torch.tensor(MODEL_MASK), -torch.inf)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), clean.flatten())
        (expected,) = torch.autograd.grad(loss, weight)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("family", ["modernbert", "llama"])
    @pytest.mark.parametrize("steps", [1, 3, 8])
    def test_untrained_learned_order_draws_what_iid_draws(self, family, steps):
        denoiser = Denoiser(tiny_model(family), mask_token_id=MODEL_MASK)
        prompt, mask, _ = self.batch()
        outputs = [
            decode(
                denoiser,
                prompt,
                mask,
                sampler=sampler,
                max_new_tokens=8,
                max_denoising_steps=steps,
                temperature=1.0,
                generator=torch.Generator().manual_seed(7),
            )
            for sampler in (IIDSampler(), LearnedOrderSampler(scorer=OrderScorer.for_denoiser(denoiser)))
        ]
        for name, value in outputs[0].items():
            assert outputs[1][name].tolist() == value.tolist(), name


class TestBadInput:
    @pytest.mark.parametrize("name", ["max_denoising_steps", "num_chains"])
    @pytest.mark.parametrize("value", [0, -2, 2.5])
    def test_counts(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be a positive integer, got {value}"):
            objective_of(ExactPairs(1), "non_empty", None, **{name: value})

    @pytest.mark.parametrize(
        ("name", "choices"),
        [
            ("baseline", "leave_one_out, value, none"),
            ("returns", "per_step, trajectory"),
            ("gradient_steps", "all, one"),
        ],
    )
    def test_choices(self, name, choices):
        with pytest.raises(ValueError, match=f"{name} must be one of {choices}, got 'mean'"):
            objective_of(ExactPairs(1), "non_empty", None, **{name: "mean"})

    @pytest.mark.parametrize("posterior", ["non_empty", "max_normalized"])
    @pytest.mark.parametrize("law", ["max_normalized", "regret"])
    def test_prior_that_rules_sets_out_with_a_posterior_of_its_own(self, law, posterior):
        with pytest.raises(ValueError, match=rf'posterior must be "prior" with law "{law}": the KL .* is infinite'):
            objective_of(ExactPairs(1), law, posterior)

    def test_exploration(self):
        with pytest.raises(ValueError, match=r"exploration must be 0 or more, got -0\.1"):
            objective_of(ExactPairs(1), "non_empty", None, exploration=-0.1)
        for law in ("max_normalized", "regret"):
            with pytest.raises(ValueError, match=f'exploration must be 0 with law "{law}"'):
                objective_of(ExactPairs(1), law, None, exploration=0.1)
