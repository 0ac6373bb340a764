"""The one decoding loop.

    canvas of mask tokens -> { denoiser -> predictions -> the rule proposes -> at least one, everything at the last
    step -> tokens drawn at the proposed positions, the mask token at those to remask } -> sequences, order, nfe

Each step unmasks something and the last step unmasks everything and remasks nothing, so every rule ends.

The same loop scores a given response (`clean=`): the true token takes the place of the drawn one, and the sum of
log p_theta over the unmasked positions bounds log p(x | c) from below when the rule is deterministic, and in
expectation when it is random (method: ELBO with the rule as prior and posterior).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from hf_learned_order.canvas import left_padded, settled
from hf_learned_order.denoisers import Denoiser, predict
from hf_learned_order.distributions import at_least_one, everything
from hf_learned_order.predictions import Step
from hf_learned_order.rules import Sampler, State


# every field is always there; ModelOutput asks for the default None
@dataclass
class LearnedOrderOutput(ModelOutput):
    """What `generate(..., return_dict_in_generate=True)` returns.

    Attributes:
        sequences: [batch, prompt + canvas], the prompt as it was given and the response; padding after the first EOS.
        order: int [batch, canvas], the step, from 1, at which a position was (last) unmasked; 0 where an early EOS made
            it unnecessary.
        nfe: int [batch], denoiser calls made while the sequence still had a masked position.
        tokens_per_forward: float [batch], tokens of the response, first EOS included, a denoiser call.
        log_likelihood: float [batch], nats: log p_theta of each token when it was (last) unmasked, summed. With a rule
            that remasks it bounds nothing.
    """

    sequences: Tensor = None  # pyrefly: ignore[bad-assignment]
    order: Tensor = None  # pyrefly: ignore[bad-assignment]
    nfe: Tensor = None  # pyrefly: ignore[bad-assignment]
    tokens_per_forward: Tensor = None  # pyrefly: ignore[bad-assignment]
    log_likelihood: Tensor = None  # pyrefly: ignore[bad-assignment]


@torch.no_grad()
def decode(
    denoiser: Denoiser,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    sampler: Sampler,
    max_new_tokens: int = 128,
    max_denoising_steps: int | None = None,
    temperature: float = 0.0,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
    generator: torch.Generator | None = None,
    clean: Tensor | None = None,
) -> LearnedOrderOutput:
    """Fill a canvas of `max_new_tokens` masks behind each prompt.

    Args:
        denoiser: the model.
        input_ids: int [batch, prompt], padded on either side.
        attention_mask: [batch, prompt], 0 at padding; by default nothing is padding.
        sampler: the rule.
        max_new_tokens: length of the canvas.
        max_denoising_steps: step budget T; by default one for each position.
        temperature: 0 takes the most likely token at an unmasked position, otherwise it is drawn.
        eos_token_id: a row is finished when everything before its first EOS is settled; None decodes every position.
            Several ids may end a response.
        pad_token_id: what follows the first EOS in `sequences`; by default more EOS.
        clean: [batch, canvas], a response to score instead of drawing one; not with a rule that remasks.

    Raises:
        ValueError, TypeError: an argument is out of range; the message names it.
    """
    attention_mask = _check_inputs(denoiser, input_ids, attention_mask, max_new_tokens)
    steps = max_new_tokens if max_denoising_steps is None else max_denoising_steps
    _check_positive("max_denoising_steps", steps)
    if isinstance(temperature, bool) or not temperature >= 0:
        raise ValueError(f"temperature must be 0 or more, got {temperature!r}")
    batch, canvas_length = input_ids.shape[0], max_new_tokens
    if clean is not None and clean.shape != (batch, canvas_length):
        raise ValueError(f"clean must have the shape {(batch, canvas_length)}, got {tuple(clean.shape)}")
    if clean is not None and sampler.remasks:
        raise ValueError(
            f"sampler must not remask when clean is given, got {type(sampler).__name__}: its order bounds no likelihood"
        )

    prompt, prompt_mask = left_padded(input_ids, attention_mask)
    device = input_ids.device
    eos = None if eos_token_id is None else torch.tensor(eos_token_id, device=device).reshape(-1)
    canvas = torch.full((batch, canvas_length), denoiser.mask_token_id, device=device)
    masked = torch.ones_like(canvas, dtype=torch.bool)
    order = torch.zeros_like(canvas)
    nfe = torch.zeros(batch, dtype=torch.long, device=device)
    token_log_probs = torch.zeros(batch, canvas_length, device=device)
    state: State = ()
    rows = torch.arange(batch, device=device)  # the rows that are not finished; the others cost nothing
    for number in range(1, steps + 1):
        predictions, hidden = predict(
            denoiser, prompt[rows], prompt_mask[rows], canvas[rows], hidden_states=sampler.needs_hidden_states
        )
        step = Step(
            predictions=predictions,
            masked=masked[rows],
            steps_left=steps - number + 1,
            unmasked=order[rows] > 0,
            canvas=canvas[rows],
            token_log_probs=token_log_probs[rows],
            hidden_states=hidden,
            generator=generator,
        )
        if number == 1:
            state = sampler.init_state(step)
        unmask, remask, state = _changes(sampler, step, state)
        tokens = predictions.draw(temperature=temperature, generator=generator) if clean is None else clean[rows]
        log_prob = torch.where(unmask, predictions.log_prob(tokens), token_log_probs[rows])
        token_log_probs[rows] = log_prob.masked_fill(remask, 0.0)
        canvas[rows] = torch.where(unmask, tokens, canvas[rows]).masked_fill(remask, denoiser.mask_token_id)
        order[rows] = order[rows].masked_fill(unmask, number).masked_fill(remask, 0)
        nfe[rows] += 1
        masked[rows] = step.masked & ~unmask | remask
        if eos is not None:
            masked &= ~settled(torch.isin(canvas, eos), masked)[:, None]
        going_on = masked[rows].any(-1).nonzero().squeeze(-1)
        if len(going_on) == 0:
            break
        if len(going_on) < len(rows):
            rows, state = rows[going_on], tuple(part[going_on] for part in state)

    length = torch.full_like(nfe, canvas_length)
    if eos is not None:
        ended = torch.isin(canvas, eos).long()
        after = (ended.cumsum(-1) - ended) > 0
        length = (~after).sum(-1)
        canvas = canvas.masked_fill(after, int(eos[0]) if pad_token_id is None else pad_token_id)
    return LearnedOrderOutput(
        sequences=torch.cat([input_ids, canvas], 1),
        order=order,
        nfe=nfe,
        tokens_per_forward=length / nfe,
        log_likelihood=token_log_probs.sum(-1),
    )


def _changes(sampler: Sampler, step: Step, state: State) -> tuple[Tensor, Tensor, State]:
    """What a step unmasks and remasks, and the state of the next: the rule proposes, the laws of the loop hold."""
    nothing = torch.zeros_like(step.masked)
    if step.steps_left == 1:
        return everything(step.masked), nothing, state
    unmask, state, remask = sampler.propose(step, state)
    unmask = at_least_one(unmask, step.masked, step.predictions.confidence)
    return unmask, remask & step.unmasked if sampler.remasks and remask is not None else nothing, state


def _check_inputs(denoiser: Denoiser, input_ids: Tensor, attention_mask: Tensor | None, max_new_tokens: int) -> Tensor:
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.dtype not in (torch.long, torch.int):
        got = (
            f"{input_ids.dtype} {tuple(input_ids.shape)}" if isinstance(input_ids, Tensor) else type(input_ids).__name__
        )
        raise TypeError(f"input_ids must be an integer tensor [batch, prompt], got {got}")
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids {tuple(input_ids.shape)}, "
            f"got {tuple(attention_mask.shape)}"
        )
    _check_positive("max_new_tokens", max_new_tokens)
    limit = denoiser.max_length
    if limit is not None and input_ids.shape[1] + max_new_tokens > limit:
        raise ValueError(
            f"the prompt and max_new_tokens must fit the model's {limit} positions, "
            f"got {input_ids.shape[1]} + {max_new_tokens}"
        )
    if denoiser.family.shift and not attention_mask.any(-1).all():
        raise ValueError("each prompt must have at least one token: this model predicts a token from the one before it")
    return attention_mask


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
