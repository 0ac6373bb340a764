"""One call of `generate`, however it came in: from an attached model, or through transformers' `custom_generate`."""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.outputs import LearnedOrderOutput
from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.inside.hooks import evaluating
from hf_learned_order.interface.processors import WARPERS
from hf_learned_order.interface.settings import Settings
from hf_learned_order.orders.scorer import OrderScorer


def run(
    denoiser: Denoiser,
    rule: Sampler,
    settings: Settings,
    *,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    negative_prompt_ids: Tensor | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
    infill: bool = False,
    logits_processor: Sequence[LogitsProcessor] = (),
    logits_warper: Sequence[LogitsProcessor] = (),
    stopping_criteria: Sequence[StoppingCriteria] = (),
    streamer: BaseStreamer | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> LearnedOrderOutput:
    """`decode` with these settings, the model in evaluation mode meanwhile; the output is where `input_ids` are.

    Raises:
        ValueError: the scorer was made for another denoiser, both `seed` and `generator` are given, the seed is no
            integer, or as `decode`.
        TypeError: as `decode`.
    """
    if seed is not None and generator is not None:
        raise ValueError(f"seed must be None when generator is given, got {seed!r}")
    if isinstance(seed, bool) or not isinstance(seed, Integral | None):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    device, home = denoiser.device, getattr(input_ids, "device", None)
    scorer = getattr(rule, "scorer", None)
    if isinstance(scorer, OrderScorer):
        scorer.check_fits(denoiser)
        scorer.to(device)  # pyrefly: ignore[bad-argument-type]
    slow = settings.slow_rule()
    width = input_ids.shape[-1] if isinstance(input_ids, Tensor) else 0  # `decode` says what is wrong with others
    rows = (input_ids, attention_mask, negative_prompt_ids, negative_prompt_attention_mask)
    ids, mask, negative_ids, negative_mask = (_repeated(one, settings.num_return_sequences, device) for one in rows)
    with evaluating(denoiser.model):
        output = decode(
            denoiser,
            ids,
            mask,
            sampler=rule,
            max_new_tokens=settings.canvas_length(width),
            max_denoising_steps=steps_of(
                rule if slow is None else slow, settings.max_denoising_steps, denoiser, settings.block_length
            ),
            block_length=settings.block_length,
            kv_cache=settings.kv_cache,
            infill=infill,
            temperature=settings.temperature if settings.do_sample else 0.0,
            logits_processor=LogitsProcessorList(logits_processor),
            logits_warper=LogitsProcessorList(logits_warper),
            guidance_scale=settings.guidance_scale,
            negative_prompt_ids=negative_ids,
            negative_prompt_attention_mask=negative_mask,
            eos_token_id=settings.eos_token_id,
            pad_token_id=settings.pad_token_id,
            stopping_criteria=StoppingCriteriaList(stopping_criteria),
            streamer=streamer,
            generator=torch.Generator().manual_seed(seed) if seed is not None else generator,
            verify=slow,
            num_assistant_tokens=None if slow is None else settings.num_assistant_tokens,
        )
    wanted = {name: value for name, value in output.items() if settings.output_order or name != "order"}
    return LearnedOrderOutput(**{name: value.to(home) for name, value in wanted.items()})


def steps_of(rule: Sampler, given: int | None, denoiser: Denoiser, block_length: int | None = None) -> int | None:
    """The step budget of a call: the one that is `given`, else the one that the rule's scorer was trained for.

    Trained for few steps, a law that draws goes slowly where many are left. Blocks share a budget, and the one of
    training says nothing of how many there are, so there it has to be given.
    """
    scorer = getattr(rule, "scorer", None)
    in_blocks = block_length is not None or denoiser.family.block_size is not None
    if given is not None or in_blocks or not isinstance(scorer, OrderScorer):
        return given
    return scorer.config.max_denoising_steps


def generate_custom(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    sampler: Sampler,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    attention_mask: Tensor | None,
    mask_token_id: int | None,
    seed: int | None,
    generator: torch.Generator | None,
    infill: bool,
    **settings: Any,
) -> LearnedOrderOutput | Tensor:
    """What `model.generate(ids, custom_generate=sampler)` runs in place of transformers' own loop.

    transformers has prepared the arguments: rows are repeated, `max_length` is set, warpers stand among the logits
    processors, and the criteria hold what the canvas and `eos_token_id` do here.

    Raises:
        ValueError, TypeError: as `run`; or `guidance_scale` is set, which transformers has made a left-to-right
            processor of.
    """
    resolved = Settings.resolve(settings, None, own=generation_config, special_tokens=(model.config,), infill=infill)
    if resolved.guidance_scale not in (None, 1):
        raise ValueError(
            f"guidance_scale must not be set with custom_generate, got {resolved.guidance_scale}: attach the model"
        )
    options = getattr(model, "denoiser_options", {"mask_token_id": mask_token_id})
    warpers = (TemperatureLogitsWarper, *(kind for kind, _ in WARPERS.values()))
    output = run(
        Denoiser(model, **options),  # pyrefly: ignore[bad-unpacking] (a dict: a module may have anything as attribute)
        sampler,
        replace(resolved, num_return_sequences=1),
        input_ids=input_ids,
        attention_mask=attention_mask,
        infill=infill,
        logits_processor=[_everywhere(one) for one in logits_processor if not isinstance(one, warpers)],
        logits_warper=[one for one in logits_processor if isinstance(one, warpers[1:])],
        stopping_criteria=[
            one for one in stopping_criteria if not isinstance(one, MaxLengthCriteria | EosTokenCriteria)
        ],
        seed=seed,
        generator=generator,
    )
    return output if resolved.return_dict_in_generate else output.sequences


def _everywhere(processor: LogitsProcessor) -> LogitsProcessor:
    """transformers has a repetition penalty look away from each row's padding; here that shows as the mask token."""
    if isinstance(getattr(processor, "prompt_ignore_length", None), Tensor):
        return RepetitionPenaltyLogitsProcessor(processor.penalty)  # pyrefly: ignore[missing-attribute]
    return processor


def _repeated(rows: Any, count: int, device: torch.device) -> Any:
    """Each of the rows so many times, where the model wants them: as to transformers, they may be on the CPU."""
    return rows.to(device).repeat_interleave(count, 0) if isinstance(rows, Tensor) else rows
