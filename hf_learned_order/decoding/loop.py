"""The one decoding loop.

    canvas of mask tokens -> { denoiser -> guidance, logits processors -> predictions -> the rule proposes -> at least
    one, everything at the last step -> tokens drawn at the proposed positions, the mask token at those to remask }
    -> sequences, order, nfe

Each step unmasks something and the last step unmasks everything and remasks nothing, so every rule ends.

Which positions may be touched is one bool tensor, `Canvas.masked`: the whole window behind the prompts, or the masks
of the prompts themselves (`infill=True`). With a `block_length` the loop runs once for each block, from left to right,
and a rule sees the block only; the denoiser sees everything, or remembers some of it (`caches`). A block-causal model
goes through its own blocks, which start at another column in each row; rows whose blocks agree go together. With a
causal context blocks start behind the prompt, and the first call of each gives its first token (`Canvas.plan`).

The same loop scores a given response (`clean=`): the true token takes the place of the drawn one, and the sum of
log p_theta over the unmasked positions bounds log p(x | c) from below when the rule is deterministic, and in
expectation when it is random (method: ELBO with the rule as prior and posterior).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from hf_learned_order.common.checks import check_ids, check_temperature, check_token
from hf_learned_order.decoding.canvas import left_padded
from hf_learned_order.decoding.draws import RowDraws
from hf_learned_order.decoding.guidance import Guidance
from hf_learned_order.decoding.inputs import (
    canvas_of,
    check_clean,
    check_draft,
    check_infill,
    check_negative_prompt,
)
from hf_learned_order.decoding.outputs import LearnedOrderOutput, output_of
from hf_learned_order.decoding.processors import Processing
from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.stopping import Stopping
from hf_learned_order.decoding.streaming import Stream
from hf_learned_order.decoding.verification import verification_of
from hf_learned_order.decoding.walk import Walk
from hf_learned_order.denoisers.attention import check_padding
from hf_learned_order.denoisers.caches import WindowedDenoiser
from hf_learned_order.denoisers.denoiser import Denoiser


@torch.no_grad()
def decode(
    denoiser: Denoiser,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    sampler: Sampler,
    max_new_tokens: int | None = None,
    max_denoising_steps: int | None = None,
    block_length: int | None = None,
    kv_cache: str | None = None,
    infill: bool = False,
    temperature: float = 0.0,
    logits_processor: LogitsProcessorList | None = None,
    logits_warper: LogitsProcessorList | None = None,
    guidance_scale: float | None = None,
    negative_prompt_ids: Tensor | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    streamer: BaseStreamer | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    clean: Tensor | None = None,
    draft: Tensor | None = None,
    verify: Sampler | None = None,
    num_assistant_tokens: int | None = None,
) -> LearnedOrderOutput:
    """Fill a canvas of `max_new_tokens` masks behind each prompt, or the masks within it.

    Args:
        denoiser: the model.
        input_ids: int [batch, prompt], padded on either side.
        attention_mask: [batch, prompt], 0 at padding; by default nothing is padding.
        sampler: the rule.
        max_new_tokens: length of the canvas, by default 128.
        max_denoising_steps: step budget T; by default one for each position that is masked in the row. Divided evenly
            among blocks.
        block_length: decode in blocks of so many positions, from left to right; must divide `max_new_tokens`. A
            block-causal model always goes through its own blocks, which start at the first token of the prompt, or with
            a causal context behind the prompt. With `infill` blocks are counted from there too, and need not come out
            even.
        kv_cache: keep keys and values between calls: "exact" for a block-causal model; "prefix" or "dual", which
            approximate, for others in blocks. See `caches`.
        infill: fill the masks in `input_ids`, all of them; nothing else is touched or added, and no EOS ends a row.
        temperature: 0 takes the most likely token at an unmasked position, otherwise it is drawn.
        logits_processor: changes the logits at each position before rules and draws see them, see `processors`. In the
            ids that it is given padding looks like the mask token.
        logits_warper: the same, for draws only, behind the temperature.
        guidance_scale, negative_prompt_ids, negative_prompt_attention_mask: see `Guidance`; 1 or None is no guidance.
        eos_token_id: a row is finished when everything before its first EOS is settled; None decodes every position.
            Several ids may end a response.
        pad_token_id: what follows the end of a response in `sequences`; by default more EOS.
        stopping_criteria: end a row as well, see `Stopping`.
        streamer: gets prompt and response as they become final, see `Stream`.
        generator: source of all randomness; by default torch's global one. A row draws the same alone and in a batch
            (`RowDraws`). A sequence has one for each row.
        clean: [batch, canvas], a response to score instead of drawing one; not with a rule that remasks. With `infill`
            [batch, prompt], of which the positions of the masks are read.
        draft: int [batch, canvas], the canvas to begin with, some of it still the mask token; its length is that of the
            canvas. What stands there counts as unmasked before the first step; not with a rule that remasks.
        verify: a rule whose response with one step for each position is wanted, token for token; `sampler` then only
            drafts what that rule takes next, see `Verification`.
        num_assistant_tokens: with `verify`, the most canvases of a row that one call is about, by default 8.

    Raises:
        ValueError, TypeError: an argument is out of range; the message names it.
        ValueError: a position was unmasked of whose logits one is nan or inf, or all are -inf.
    """
    mask = check_ids("input_ids", input_ids, attention_mask, vocab_size=denoiser.vocab_size)
    check_padding(denoiser, mask)
    check_temperature(temperature)
    if infill:
        check_infill(
            denoiser,
            max_new_tokens=max_new_tokens,
            negative_prompt_ids=negative_prompt_ids,
            stopping_criteria=stopping_criteria or None,
        )
        eos_token_id = pad_token_id = None
    check_token("eos_token_id", eos_token_id, vocab_size=denoiser.vocab_size)
    check_token("pad_token_id", pad_token_id, vocab_size=denoiser.vocab_size)
    check_draft(draft, input_ids, sampler, infill=infill, max_new_tokens=max_new_tokens)
    canvas = canvas_of(denoiser, input_ids, mask, length=max_new_tokens, draft=draft, infill=infill)
    plan = canvas.plan(
        block_length,
        max_denoising_steps,
        block_size=denoiser.family.block_size,
        causal_context=denoiser.family.causal_context,
        infill=infill,
    )
    check_negative_prompt(denoiser, negative_prompt_ids)
    if infill and clean is not None and clean.shape == input_ids.shape:
        clean = left_padded(clean, mask)[0][:, canvas.start :]
    check_clean(clean, canvas, sampler)
    stopping = Stopping(canvas, eos_token_id=eos_token_id, criteria=stopping_criteria, pad_token_id=pad_token_id)
    slow = {"temperature": temperature, "clean": clean, "max_denoising_steps": max_denoising_steps}
    verification = verification_of(
        verify, num_assistant_tokens, canvas=canvas, stopping=stopping, drafter=sampler, **slow
    )
    processing = None
    if logits_processor:
        processing = Processing(
            logits_processor, canvas, sampler=sampler, plan=plan, infill=infill, verified=verification is not None
        )
    windowed, second = (
        WindowedDenoiser(denoiser, kv_cache, block_length=block_length, repeats=verify is not None) for _ in range(2)
    )
    walk = Walk(
        denoiser=windowed,
        sampler=sampler,
        canvas=canvas,
        stopping=stopping,
        verification=verification,
        guidance=Guidance.of(guidance_scale, canvas, second, negative_prompt_ids, negative_prompt_attention_mask),
        processing=processing,
        logits_warper=logits_warper,
        temperature=temperature,
        generator=None if isinstance(generator, Sequence) else generator,
        draws=RowDraws(input_ids, mask, generator) if sampler.is_random or temperature else None,
        clean=clean,
        own_budgets=max_denoising_steps is None and verify is None and (infill or draft is not None),
        stream=None if streamer is None else Stream(streamer, input_ids, canvas, mask if infill else None),
    )
    walk.through(plan)
    return output_of(canvas, stopping, input_ids, mask, infill=infill, **walk.calls())
