"""Our scheduler in the published `LLaDA2Pipeline`."""

import pytest
import torch
from engine_files import folder_of, forget
from models import MASK, VOCAB, tiny_model
from test_export import exported
from test_loop import words

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.adaptive import ThresholdSampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.scheduled import TopProbSampler
from hf_learned_order.denoisers.denoiser import Denoiser

BLOCK = 4


@pytest.fixture(scope="module")
def diffusers():
    """Our module, over the real package."""
    folder = folder_of("diffusers", "diffusers")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder.parent))
        import hf_learned_order.serving.diffusers as module

        yield module
    forget("diffusers")


class Model(torch.nn.Module):
    """What the pipeline calls: a model that sees both ways, and the blocks so far only."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.denoiser, self.calls = Denoiser(tiny_model("llama"), mask_token_id=MASK), 0

    def forward(self, ids, attention_mask, position_ids):
        from transformers.modeling_outputs import MaskedLMOutput

        self.calls += 1
        return MaskedLMOutput(logits=self.denoiser(ids, attention_mask, 0)[0])


@pytest.mark.slow  # the pipeline imports all of diffusers
@pytest.mark.parametrize("steps", [BLOCK, 2])
@pytest.mark.parametrize("learned", [False, True])
def test_the_real_loop(diffusers, learned, steps):
    """Tokens and calls of our own decoding loop, block after block."""
    from diffusers.pipelines.llada2.pipeline_llada2 import LLaDA2Pipeline

    rule = LearnedOrderSampler(scorer=exported(), greedy=True) if learned else ThresholdSampler(threshold=0.4)
    model, prompt, calls = Model(), words(2, BLOCK), 0
    expected = prompt
    for _ in range(2):
        block = decode(model.denoiser, expected, sampler=rule, max_new_tokens=BLOCK, max_denoising_steps=steps)
        expected, calls = block.sequences, calls + int(block.nfe.max())
    pipeline = LLaDA2Pipeline(model=model, scheduler=diffusers.LearnedOrderScheduler(rule, block_length=BLOCK))
    pipeline.set_progress_bar_config(disable=True)
    options = {"mask_token_id": MASK, "editing_threshold": None, "output_type": "seq"}
    found = pipeline(input_ids=prompt, gen_length=2 * BLOCK, num_inference_steps=steps, **options).sequences
    assert found.tolist() == expected[:, BLOCK:].tolist()
    assert model.calls == calls


def logits_of(rows: int) -> torch.Tensor:
    logits = torch.randn(rows, BLOCK, VOCAB, generator=torch.Generator().manual_seed(0))
    return logits.index_fill(-1, torch.tensor([MASK]), -50.0)


def test_the_fields_of_diffusers_own_scheduler(diffusers):
    """Top probability, one position a step, is what that does with a threshold that nothing reaches."""
    given = torch.full((2, BLOCK), MASK).index_fill(1, torch.tensor([0]), 7)
    ours = diffusers.LearnedOrderScheduler(TopProbSampler(), block_length=BLOCK)
    theirs = diffusers.BlockRefinementScheduler(block_length=BLOCK, threshold=1.1)
    ours.set_timesteps(BLOCK)
    theirs.set_timesteps(BLOCK)
    found, expected = (of.step(logits_of(2), 1, given, mask_token_id=MASK) for of in (ours, theirs))
    for name in ("prev_sample", "transfer_index", "editing_transfer_index", "pred_logits"):
        assert torch.equal(found[name], expected[name]), name
    at = expected.transfer_index
    assert torch.equal(found.sampled_tokens[at], expected.sampled_tokens[at])
    torch.testing.assert_close(found.sampled_probs[at], expected.sampled_probs[at])
    as_tuple = ours.step(logits_of(2), 1, given, mask_token_id=MASK, return_dict=False)
    assert [type(value) for value in as_tuple] == [torch.Tensor] * 6
    assert torch.equal(as_tuple[0], found.prev_sample)


def test_greedy_draws_nothing(diffusers):
    scheduler, given = diffusers.LearnedOrderScheduler(TopProbSampler()), torch.full((3, BLOCK), MASK)
    scheduler.set_timesteps(1)

    def filled(method: str) -> torch.Tensor:
        options = {"temperature": 9.0, "generator": torch.Generator().manual_seed(0), "sampling_method": method}
        return scheduler.step(logits_of(3), 0, given, mask_token_id=MASK, **options).prev_sample

    assert torch.equal(filled("greedy"), logits_of(3).argmax(-1))
    assert not torch.equal(filled("multinomial"), filled("greedy"))


def test_a_prompt_that_holds_the_mask_token(diffusers):
    scheduler, prompt = diffusers.LearnedOrderScheduler(TopProbSampler()), torch.tensor([True, True, False, False])
    scheduler.set_timesteps(1)
    given = torch.full((1, BLOCK), MASK)
    output = scheduler.step(logits_of(1), 0, given, mask_token_id=MASK, prompt_mask=prompt)
    assert output.transfer_index.tolist() == [[False, False, True, True]]
    assert (output.prev_sample == MASK).tolist() == [[True, True, False, False]]


def test_a_full_block_is_not_asked_about_again(diffusers):
    scheduler, given = diffusers.LearnedOrderScheduler(TopProbSampler()), torch.full((2, BLOCK), MASK)
    scheduler.set_timesteps(2)
    state = {"masks_remaining": True, "editing_enabled": False, "editing_transfer_index": torch.zeros(2, BLOCK).bool()}
    state |= {"post_steps": 0, "max_post_steps": 16, "finished": torch.zeros(2).bool()}
    going_on = []
    for step in range(2):
        given = scheduler.step(logits_of(2), step, given, mask_token_id=MASK).prev_sample
        going_on.append(scheduler.check_block_should_continue(step_idx=step, **state))
    assert going_on == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0.9}, r"top_p must be None with LearnedOrderScheduler, got 0\.9"),
        ({"top_k": 5}, "top_k must be None with LearnedOrderScheduler, got 5"),
        ({"editing_threshold": 0.5}, r"editing_threshold must be None with LearnedOrderScheduler, got 0\.5"),
        ({"mask_token_id": None}, "mask_token_id must be a token id, got None"),
    ],
)
def test_what_a_rule_does_not_do(diffusers, options, message):
    scheduler = diffusers.LearnedOrderScheduler(TopProbSampler())
    with pytest.raises(ValueError, match=message):
        scheduler.step(logits_of(1), 0, torch.full((1, BLOCK), MASK), **{"mask_token_id": MASK, **options})
