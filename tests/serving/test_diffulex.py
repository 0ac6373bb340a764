"""Our sampler with the requests, blocks and scheduler of Diffulex's source."""

import types

import pytest
import torch
from engine_files import folder_of, forget, importable
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
def diffulex():
    """Our module, over the real package; what its files import for kernels and hashes is replaced."""
    folder = folder_of("diffulex", "diffulex")
    with pytest.MonkeyPatch.context() as patch:
        importable(patch, folder, replaced={"easydict": {"EasyDict": dict}, "xxhash": {}})
        import hf_learned_order.serving.diffulex as module

        yield module
    forget("diffulex")


@pytest.fixture
def registry(diffulex, monkeypatch):
    monkeypatch.setattr(diffulex.AutoSampler, "SAMPLER_MAPPING", dict(diffulex.AutoSampler.SAMPLER_MAPPING))
    return diffulex.AutoSampler


def config_of(**options):
    from diffulex.config_types import DecodingThresholds

    thresholds = DecodingThresholds(add_block_threshold=0.25, semi_complete_threshold=0.5, accept_threshold=0.9)
    values = {"model_name": "llada", "data_parallel_size": 1, "tokenizer_vocab_size": VOCAB, "eos": -1}
    values |= {"sampling_mode": "naive"}
    values |= {"block_size": BLOCK, "buffer_size": 2, "mask_token_id": MASK, "max_model_len": 64}
    return types.SimpleNamespace(decoding_thresholds=thresholds, **{**values, **options})


def request_of(prompt: torch.Tensor, blocks: int):
    from diffulex.engine.request import DllmReq
    from diffulex.sampling_params import SamplingParams

    tokens = (blocks + 2) * BLOCK  # it counts the blocks that are only there to come
    request = DllmReq(prompt.tolist(), SamplingParams(max_tokens=tokens, ignore_eos=True))
    request.init_multi_block(config_of())
    request.make_pending()
    return request


def logits_of(denoiser: Denoiser, request) -> torch.Tensor:
    """What Diffulex's model gives: of each position that is run, seeing its block and those before."""
    start, found = request.running_position_ids[0], []
    for end in range(start + BLOCK, start + len(request.running_position_ids) + 1, BLOCK):
        ids = torch.tensor([request.token_ids[:end]])
        with torch.no_grad():
            found.append(denoiser(ids, torch.ones_like(ids), end - BLOCK)[0][0])
    return torch.cat(found)


def run(sampler, requests: list, temperature: float = 0.0) -> None:
    """Diffulex's engine: a forward pass and the scheduler's step for all requests, until all are finished."""
    from diffulex.attention import metadata
    from diffulex.engine.scheduler import SchedulerBase

    class Scheduler(SchedulerBase):
        """The step after the sampler, without a cache."""

        def __init__(self):
            self.running_reqs, self.kv_cache_manager = list(requests), types.SimpleNamespace(free=lambda request: None)

    Scheduler.__abstractmethods__ = frozenset()
    denoiser, scheduler = Denoiser(tiny_model("llama"), mask_token_id=MASK), Scheduler()
    while running := list(scheduler.running_reqs):
        for request in running:
            request.step()
        state = types.SimpleNamespace(cu_seqlens_q=None, is_prefill=[request.is_prefilling for request in running])
        metadata.set_fetch_fn_for_attn_metadata(lambda state=state: state)
        logits = torch.cat([logits_of(denoiser, request) for request in running])
        scheduler.postprocess(running, sampler(running, logits, torch.full((len(running),), temperature)))
        sampler.evict_req_states([request.req_id for request in running if request not in scheduler.running_reqs])


@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("learned", [False, True])
def test_the_real_loop(diffulex, registry, learned, steps):
    """Tokens of our own decoding loop, block after block, for two requests of different lengths."""
    rule = LearnedOrderSampler(scorer=exported(), greedy=True) if learned else ThresholdSampler(threshold=0.4)
    diffulex.register("llada", rule, steps=steps)
    sampler = registry.from_config(config_of())
    denoiser, prompts = Denoiser(tiny_model("llama"), mask_token_id=MASK), [words(1, BLOCK), words(2, 2 * BLOCK)[1:]]
    requests = [request_of(prompt[0], 2) for prompt in prompts]
    run(sampler, requests)
    for prompt, request in zip(prompts, requests, strict=True):
        expected = prompt
        for _ in range(2):
            block = decode(denoiser, expected, sampler=rule, max_new_tokens=BLOCK, max_denoising_steps=steps)
            expected = block.sequences
        assert request.token_ids[: expected.shape[1]] == expected[0].tolist()
    assert sampler._taken == {}


def test_a_prompt_that_ends_within_a_block(diffulex, registry):
    """Its tokens stay, and the first block is filled by the pass that reads the prompt."""
    prompt = words(1, BLOCK + 2)[0]
    prompt[-1] = MASK  # what the request brought is not written over
    diffulex.register("llada", TopProbSampler(), steps=1)
    request = request_of(prompt, 2)
    run(registry.from_config(config_of()), [request])
    assert request.token_ids[: BLOCK + 2] == prompt.tolist()
    with torch.no_grad():
        ids = torch.cat([prompt, torch.full((2,), MASK)])[None]
        logits = Denoiser(tiny_model("llama"), mask_token_id=MASK)(ids, torch.ones_like(ids), BLOCK + 2)[0][0]
    expected = logits.index_fill(-1, torch.tensor([MASK]), -torch.inf).argmax(-1)
    assert request.token_ids[BLOCK + 2 : 2 * BLOCK] == expected.tolist()


def test_tokens_beyond_the_tokenizer_are_never_chosen(diffulex, registry):
    diffulex.register("llada", TopProbSampler(), steps=1)
    sampler = registry.from_config(config_of())
    sampler.tokenizer_vocab_size = 3
    request = request_of(words(1, BLOCK)[0], 1)
    run(sampler, [request], temperature=5.0)
    assert set(request.token_ids[BLOCK : 2 * BLOCK]) <= {0, 1, 2}


def test_refusals(diffulex, registry):
    with pytest.raises(ValueError, match=r"model_name must be one of llada, sdar, .*, got 'dream'"):
        diffulex.register("dream", TopProbSampler())
    diffulex.register("llada", TopProbSampler())
    for name, value, wanted in (("data_parallel_size", 2, "1"), ("sampling_mode", "edit", "'naive'")):
        with pytest.raises(ValueError, match=f"{name} must be {wanted} with LearnedOrderBlockSampler, got {value!r}"):
            registry.from_config(config_of(**{name: value}))
