"""Our rules in the `generate` of a tiny random DiffusionGemma."""

import functools

import oracles
import pytest
import torch
import transformers
from models import EOS, MASK, PAD, VOCAB, WORDS
from transformers import DiffusionGemmaConfig, DiffusionGemmaTextConfig
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

from hf_learned_order.decoding.samplers.adaptive import (
    EntropyBoundSampler,
    FactorSampler,
    KLASSSampler,
    ThresholdSampler,
)
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.scheduled import TopProbSampler
from hf_learned_order.interface.attach import attach
from hf_learned_order.interface.diffusion_gemma import (
    ACCEPTANCE,
    AcceptanceConfig,
    AcceptanceSampler,
    DiffusionGemmaForBlockDiffusion,
)
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.scorer import OrderScorer

CANVAS, STEPS = 6, 4
# torch's compiler, which transformers' loop loads, says so of itself
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")


@functools.cache
def tiny(stock: bool = False) -> transformers.PreTrainedModel:
    text = DiffusionGemmaTextConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        layer_types=["full_attention"],
        num_attention_heads=2,
        num_key_value_heads=1,
        num_global_key_value_heads=1,
        head_dim=16,
        global_head_dim=16,
        num_experts=2,
        top_k_experts=1,
        moe_intermediate_size=16,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=0,
    )
    vision = Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        position_embedding_size=8,
    )
    special = {"image_token_id": VOCAB - 1, "boi_token_id": VOCAB - 2, "eoi_token_id": VOCAB - 3}
    config = DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=CANVAS, **special)
    torch.manual_seed(0)
    kind = transformers.DiffusionGemmaForBlockDiffusion if stock else DiffusionGemmaForBlockDiffusion
    return kind(config).eval()


def generated(sampler_config, *, stock: bool = False, **options) -> torch.Tensor:
    model = tiny(stock)  # made before the seed is set: its weights are drawn
    torch.manual_seed(1)
    prompt = torch.randint(WORDS.start, WORDS.stop - 3, (2, 4), generator=torch.Generator().manual_seed(2))
    options = {"max_new_tokens": 2 * CANVAS, "max_denoising_steps": STEPS, "eos_token_id": None, **options}
    return model.generate(prompt, sampler_config=sampler_config, **options).sequences


def sampler_of(rule) -> AcceptanceSampler:
    return AcceptanceSampler(AcceptanceConfig(sampler=rule), CANVAS, VOCAB, STEPS)


def scorer_of(**options) -> OrderScorer:
    config = OrderScorerConfig(hidden_size=8, num_attention_heads=2, vocab_size=VOCAB, mask_token_id=MASK, **options)
    return OrderScorer(config).eval()


@pytest.mark.parametrize("bound", [0.5, 6.0])
def test_the_entropy_bound_is_that_of_transformers(bound):
    native = EntropyBoundSamplerConfig(entropy_bound=bound)
    expected = generated(native, stock=True)
    assert generated(native).tolist() == expected.tolist()
    assert generated(AcceptanceConfig(sampler=EntropyBoundSampler(gamma=bound))).tolist() == expected.tolist()
    accept_all = generated(AcceptanceConfig(sampler=ThresholdSampler(threshold=0.0)))
    assert accept_all.tolist() != expected.tolist()


def test_a_rule_accepts_and_the_rest_is_renoised():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, CANVAS, VOCAB, generator=generator)
    now, drawn = torch.full((3, CANVAS), 5), torch.full((3, CANVAS), 7)
    c = logits.softmax(-1).amax(-1).tolist()
    for rule, oracle in (
        (ThresholdSampler(threshold=0.4), lambda row: oracles.threshold(row, [True] * CANVAS, 0.4)),
        (FactorSampler(factor=2.0), lambda row: oracles.factor(row, [True] * CANVAS, 2.0)),
        (ThresholdSampler(threshold=1.0), lambda row: oracles.threshold(row, [True] * CANVAS, 1.0)),  # at least one
    ):
        sampler = sampler_of(rule)
        accepted = sampler.accept_canvas(now, drawn, logits, torch.tensor(STEPS))
        expected = [[7 if i in oracle(row) else 5 for i in range(CANVAS)] for row in c]
        assert accepted.tolist() == expected
        renoised = sampler.renoise_canvas(accepted, STEPS)
        assert (renoised[accepted == 7] == 7).all()


def test_the_state_of_a_canvas():
    """KLASS accepts what is stable, and a new canvas starts anew."""
    sure = torch.zeros(1, CANVAS, VOCAB)
    sure[..., 9] = 20.0
    now, drawn = torch.full((1, CANVAS), 5), torch.full((1, CANVAS), 7)
    sampler = sampler_of(KLASSSampler(history=2))
    for _ in range(2):
        counts = [int((sampler.accept_canvas(now, drawn, sure, left) == 7).sum()) for left in range(STEPS, 0, -1)]
        assert counts == [1, 1, CANVAS, CANVAS]


@pytest.mark.parametrize("law", ["non_empty", "regret"])
def test_a_learned_order_of_logits_only(law):
    rule = LearnedOrderSampler(scorer=scorer_of(law=law, pair_weight=1.0, denoiser_hidden_size=0))
    first, again = (generated(AcceptanceConfig(sampler=rule)) for _ in range(2))
    assert first.shape == (2, 4 + 2 * CANVAS)
    assert first.tolist() == again.tolist()


def test_the_last_step_of_an_untrained_scorer_accepts_everything():
    sampler = sampler_of(LearnedOrderSampler(scorer=scorer_of(denoiser_hidden_size=0)))
    now, drawn = torch.full((1, CANVAS), 5), torch.full((1, CANVAS), 7)
    assert (sampler.accept_canvas(now, drawn, torch.zeros(1, CANVAS, VOCAB), 1) == 7).all()


def test_other_rules_are_refused():
    with pytest.raises(ValueError, match=r"sampler must be one of ThresholdSampler, .*, got TopProbSampler"):
        AcceptanceConfig(sampler=TopProbSampler())
    with pytest.raises(ValueError, match=r"sampler must be one of ThresholdSampler, .*, got 'threshold'"):
        AcceptanceConfig(sampler="threshold")
    assert "entropy_bound" in ACCEPTANCE


def test_a_scorer_that_asks_for_hidden_states_is_refused():
    with pytest.raises(ValueError, match="scorer must have denoiser_hidden_size 0"):
        AcceptanceConfig(sampler=LearnedOrderSampler(scorer=scorer_of(denoiser_hidden_size=32)))


def test_a_static_cache_is_refused():
    rule = ThresholdSampler()
    with pytest.raises(ValueError, match="cache_implementation must not be a static one"):
        generated(AcceptanceConfig(sampler=rule), cache_implementation="static")


def test_attach_says_where_to_look():
    with pytest.raises(ValueError, match=r"model must have a mask token, .* see hf_learned_order\.interface\.d"):
        attach(tiny(stock=True))
