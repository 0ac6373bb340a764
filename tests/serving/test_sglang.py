"""Our algorithm in the published loops of `sglang.srt.dllm`, synchronous and first-done-first-out."""

import types

import pytest
import torch
from engine_files import folder_of, forget, importable
from models import MASK, tiny_model
from test_export import exported
from test_loop import words

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.adaptive import ThresholdSampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.denoisers.denoiser import Denoiser

BLOCK = 6
REPLACED = {
    "sglang.srt.layers.logits_processor": {},
    "sglang.srt.model_executor.forward_batch_info": {},
    "sglang.srt.model_executor.model_runner": {},
    "sglang.srt.server_args": {},
    "sglang.srt.utils": {"is_npu": lambda: False},
    "sglang.srt.configs.model_config": {},
    "sglang.srt.arg_groups.overrides": {},
}


@pytest.fixture(scope="module")
def sglang():
    """Our module, imported over the real `sglang.srt.dllm`; what that imports for its annotations is replaced."""
    folder = folder_of("sglang", "sglang")
    with pytest.MonkeyPatch.context() as patch:
        importable(patch, folder, replaced=REPLACED)
        import hf_learned_order.serving.sglang as module

        module.register()
        yield module
    forget("sglang")


class Runner:
    """SGLang's model runner: a forward pass of the block behind its prompt, logits [batch * block, vocab]."""

    def __init__(self, prompt: torch.Tensor):
        self.prompt, self.denoiser, self.calls = prompt, Denoiser(tiny_model("llama"), mask_token_id=MASK), 0

    @torch.no_grad()
    def forward(self, batch, pp_proxy_tensors=None):
        self.calls += 1
        ids = torch.cat([self.prompt, batch.input_ids.view(len(self.prompt), BLOCK)], 1)
        logits = self.denoiser(ids, torch.ones_like(ids), self.prompt.shape[1])[0]
        output = types.SimpleNamespace(full_logits=logits.flatten(0, 1))
        return types.SimpleNamespace(logits_output=output, can_run_graph=False)


def algorithm_of(sglang, *, fdfo: bool = False, **options):
    from sglang.srt.dllm.algorithm import get_algorithm
    from sglang.srt.dllm.config import DllmConfig

    config = DllmConfig(
        algorithm="LearnedOrder",
        algorithm_config=options,
        block_size=BLOCK,
        mask_id=MASK,
        max_running_requests=2,
        first_done_first_out_mode=fdfo,
    )
    algorithm = get_algorithm(config)
    assert type(algorithm) is sglang.LearnedOrder
    return algorithm


def batch_of(rows: int):
    ids = torch.full((rows * BLOCK,), MASK)
    return types.SimpleNamespace(batch_size=rows, input_ids=ids, dllm_prompt_mask=None)


@pytest.mark.parametrize("fdfo", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_a_block_of_the_real_loop(sglang, learned, fdfo, tmp_path):
    """Tokens and calls of our own decoding loop, and one call more: SGLang's last one stores keys and values."""
    if learned:
        exported().save(tmp_path / "scorer.pt2")
        options = {"scorer": str(tmp_path / "scorer.pt2"), "sampler_config": {"greedy": True}}
        rule = LearnedOrderSampler(scorer=exported(), greedy=True)
    else:
        options = {"sampler": "threshold", "sampler_config": {"threshold": 0.4}}
        rule = ThresholdSampler(threshold=0.4)
    prompt = words(2, 4)
    expected = decode(Denoiser(tiny_model("llama"), mask_token_id=MASK), prompt, sampler=rule, max_new_tokens=BLOCK)
    algorithm, runner, batch = algorithm_of(sglang, fdfo=fdfo, **options), Runner(prompt), batch_of(2)
    address = batch.input_ids.data_ptr()
    if fdfo:
        states = None
        for _ in range(BLOCK + 1):
            _, tokens, accepted, states, _ = algorithm.run(runner, batch, states)
            if all(accepted):
                break
        assert accepted == [BLOCK, BLOCK]
        assert states == [None, None]
        tokens = torch.tensor(tokens)
    else:
        tokens = torch.stack(algorithm.run(runner, batch)[1])
    assert tokens.tolist() == expected.sequences[:, 4:].tolist()
    assert runner.calls == int(expected.nfe.max()) + 1
    assert batch.input_ids.data_ptr() == address


def test_a_prompt_that_holds_the_mask_token(sglang):
    """What the request brought is never written over, nor waited for."""
    batch = batch_of(1)
    batch.dllm_prompt_mask = torch.tensor([[True, True, False, False, False, False]])
    algorithm = algorithm_of(sglang, sampler="top_prob", steps=1)
    states = algorithm.init_step_state(batch)
    logits = torch.randn(BLOCK, 40, generator=torch.Generator().manual_seed(0))
    assert algorithm.step(batch, logits, states) == [False]
    assert (batch.input_ids == MASK).tolist() == [True, True, False, False, False, False]
    assert algorithm.step(batch, logits, states) == [True]


def test_learned_order_needs_a_scorer(sglang):
    with pytest.raises(ValueError, match='sampler "learned_order" needs a scorer'):
        algorithm_of(sglang)
