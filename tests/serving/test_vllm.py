"""Our choice within `MaskedDiffusionSampler` of vLLM's source."""

import importlib
import sys
import types

import numpy as np
import pytest
import torch
from engine_files import folder_of, forget, importable
from models import MASK, VOCAB, tiny_model
from test_export import exported
from test_loop import words

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.adaptive import ThresholdSampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.serving import vllm as ours

BLOCK, PROMPT, SLOTS = 6, 4, [3, 1]


class OnCpu:
    """vLLM's tensor that both sides see."""

    def __init__(self, size, dtype):
        self.gpu = torch.zeros(size, dtype=dtype)
        self.np = self.gpu.numpy()

    def copy_to_uva(self):
        pass


# what the file of the model imports; `WeightsMapper` is called at once
LEFT_OUT = """config config.compilation model_executor.layers.logits_processor model_executor.layers.quantization
model_executor.layers.rotary_embedding model_executor.layers.vocab_parallel_embedding model_executor.models.llama
model_executor.models.interfaces sequence v1.sample.ops.topk_topp_sampler v1.worker.gpu.attn_utils
v1.worker.gpu.input_batch v1.worker.gpu.model_states.interface v1.worker.gpu.sample.logprob v1.worker.gpu.states"""
REPLACED = {
    **{f"vllm.{name}": {} for name in LEFT_OUT.split()},
    "vllm.logger": {"init_logger": lambda name: None},
    "vllm.model_executor.models.utils": {"WeightsMapper": dict},
    "vllm.utils.torch_utils": {"async_tensor_h2d": lambda array, device: torch.as_tensor(array, device=device)},
    "vllm.v1.outputs": {"LogprobsTensors": types.SimpleNamespace},
    "vllm.v1.worker.gpu.buffer_utils": {"UvaBackedTensor": OnCpu},
    "vllm.v1.worker.gpu.sample.output": {"SamplerOutput": types.SimpleNamespace},
    "vllm.v1.worker.gpu.sample.penalties": {"use_penalty": lambda params: False},
}
FILE = "vllm.model_executor.models.nemotron_dllm"


@pytest.fixture
def nemotron(monkeypatch):
    """The real file of the sampler, run as it is, without compilation; what it imports for GPUs is replaced."""
    folder = folder_of("vllm", "vllm")
    packages = [FILE.split(".")[:depth] for depth in (1, 2, 3)]  # of these, no `__init__`
    replaced = {".".join(names): {"__path__": [str(folder.parent.joinpath(*names))]} for names in packages}
    monkeypatch.setattr(torch, "compile", lambda **options: lambda function: function)
    importable(monkeypatch, folder, replaced=replaced | REPLACED)
    yield importlib.import_module(FILE)
    forget("vllm")
    sys.modules[ours.__name__] = ours


class Requests:
    """vLLM's sampling states, as far as the sampler asks them."""

    def __init__(self):
        self.temperature, self.logprobs = OnCpu(4, torch.float32), -1

    def add_request(self, slot, params):
        self.temperature.gpu[slot] = params.temperature
        self.logprobs = -1 if params.logprobs is None else params.logprobs

    def get_top_k_top_p(self, slots, slots_np):
        return None, None

    def max_num_logprobs(self, slots):
        return self.logprobs


def sampler_of(nemotron, *, steps: int = BLOCK, temperature: float = 0.0, policy: str = "confidence_threshold"):
    """What the model's state gives vLLM's runner."""
    state = object.__new__(nemotron.NemotronLabsDiffusionModelState)  # without a model
    state.model_config = types.SimpleNamespace(get_vocab_size=lambda: VOCAB)
    state.diffusion_states = nemotron.NemotronLabsDiffusionRequestStates(4, BLOCK, MASK, steps, torch.device("cpu"))
    state.sampling_temperature, state.selection_policy, state.confidence_threshold = temperature, policy, 0.9
    base = types.SimpleNamespace(sampling_states=Requests())
    base.req_states = types.SimpleNamespace(draft_tokens=torch.zeros(4, BLOCK, dtype=torch.long))
    return state.custom_sampler(base)[0]


def batch_of(lengths: list[int], *, prefill: bool = False):
    """A step of vLLM's runner: two requests, which stand in other slots than rows."""
    count, starts = len(lengths), np.concatenate([[0], np.cumsum(lengths)])
    return types.SimpleNamespace(
        num_reqs=count,
        num_draft_tokens=0 if prefill else sum(lengths),
        idx_mapping_np=np.array(SLOTS[:count]),
        idx_mapping=torch.tensor(SLOTS[:count]),
        cu_num_logits_np=starts,
        query_start_loc_np=starts,
        query_start_loc=torch.tensor(starts),
        num_computed_prefill_tokens_np=np.zeros(count, dtype=int),
        num_scheduled_tokens=np.full(count, PROMPT),
        prefill_len_np=np.full(count, PROMPT),
    )


def run(sampler, prompt, lengths: list[int], **params) -> list:
    """A prefill, then steps until each request has committed a block: its tokens, log-probabilities, ranks, steps."""
    denoiser, found = Denoiser(tiny_model("llama"), mask_token_id=MASK), [None] * len(prompt)
    values = types.SimpleNamespace(**{"temperature": 1.0, "logprobs": 0, **params})
    for slot in SLOTS[: len(prompt)]:
        sampler.diffusion_states.add_request(slot)
        sampler.add_request(slot, values)
    sampler(torch.zeros(0, VOCAB), batch_of([0] * len(prompt), prefill=True))
    for step in range(BLOCK + 1):
        logits = []
        for row, length in enumerate(lengths):
            ids = torch.cat([prompt[row], sampler.req_states.draft_tokens[SLOTS[row], :length]])[None]
            with torch.no_grad():
                logits.append(denoiser(ids, torch.ones_like(ids), PROMPT)[0][0])
        output = sampler(torch.cat(logits), batch_of(lengths))
        for row, count in enumerate(output.num_sampled.tolist()):
            if count and found[row] is None:
                start = output.logprobs_tensors.cu_num_generated_tokens[row]
                noted = slice(start, start + count)
                found[row] = output.sampled_token_ids[row, :count].tolist(), step
                found[row] += (
                    output.logprobs_tensors.logprobs[noted],
                    output.logprobs_tensors.selected_token_ranks[noted],
                )
    return found


def decoded(prompt, rule, *, length: int = BLOCK, **options):
    denoiser = Denoiser(tiny_model("llama"), mask_token_id=MASK)
    return decode(denoiser, prompt, sampler=rule, max_new_tokens=length, **options)


def configured(monkeypatch, folder, text: str) -> None:
    (folder / "learned.yaml").write_text(text)
    monkeypatch.setenv("HLO_VLLM", str(folder / "learned.yaml"))
    ours.register()


@pytest.mark.parametrize("steps", [BLOCK, 3])
@pytest.mark.parametrize("learned", [False, True])
def test_a_block_of_the_real_sampler(nemotron, monkeypatch, tmp_path, learned, steps):
    """Tokens and steps of our own decoding loop, and the log-probability of each token at the step that unmasked it."""
    if learned:
        exported().save(tmp_path / "scorer.pt2")
        configured(monkeypatch, tmp_path, f"scorer: {tmp_path}/scorer.pt2\nsampler_config: {{greedy: true}}\n")
        rule = LearnedOrderSampler(scorer=exported(), greedy=True)
    else:
        configured(monkeypatch, tmp_path, "sampler: threshold\nsampler_config: {threshold: 0.4}\n")
        rule = ThresholdSampler(threshold=0.4)
    prompt = words(2, PROMPT)
    found = run(sampler_of(nemotron, steps=steps), prompt, [BLOCK, BLOCK])
    for row, (tokens, taken, log_p, ranks) in enumerate(found):
        expected = decoded(prompt[row : row + 1], rule, max_denoising_steps=steps)
        assert tokens == expected.sequences[0, PROMPT:].tolist()
        assert taken == int(expected.nfe.max())
        assert (log_p < 0).all()
        assert ranks.tolist() == [1] * BLOCK


THRESHOLD = "sampler: threshold\nsampler_config: {threshold: 0.4}\n"


def test_a_canvas_that_is_cut_short(nemotron, monkeypatch, tmp_path):
    """Near the model's longest sequence vLLM gives fewer positions; the other request is not touched by that."""
    configured(monkeypatch, tmp_path, THRESHOLD)
    prompt, lengths = words(2, PROMPT), [BLOCK - 2, BLOCK]
    for row, found in enumerate(run(sampler_of(nemotron), prompt, lengths)):
        rule = ThresholdSampler(threshold=0.4)
        expected = decoded(prompt[row : row + 1], rule, length=lengths[row])
        assert found[0] == expected.sequences[0, PROMPT:].tolist()


def test_certain_positions_wait_for_the_rule(nemotron, monkeypatch, tmp_path):
    """vLLM alone unmasks all that is over its threshold."""
    logits = torch.zeros(BLOCK, VOCAB)
    logits[:, 5] = torch.linspace(20, 30, BLOCK)
    configured(monkeypatch, tmp_path, "sampler: top_prob\n")
    for ours_at_work, left in ((True, BLOCK - 1), (False, 0)):
        sampler = sampler_of(nemotron)
        sampler = sampler if ours_at_work else sampler.inner
        sampler.diffusion_states.add_request(SLOTS[0])
        sampler(torch.zeros(0, VOCAB), batch_of([0], prefill=True))
        sampler(logits, batch_of([BLOCK]))
        assert int((sampler.diffusion_states.canvas[SLOTS[0]] == MASK).sum()) == left


def test_drawn_tokens(nemotron, monkeypatch, tmp_path):
    """They are drawn at the engine's temperature, unless the request is greedy, and noted as they were drawn."""
    configured(monkeypatch, tmp_path, "sampler: top_prob\n")
    prompt, options = words(1, PROMPT), {"steps": 1, "temperature": 3.0}
    ids = torch.cat([prompt, torch.full((1, BLOCK), MASK)], 1)
    with torch.no_grad():
        logits = Denoiser(tiny_model("llama"), mask_token_id=MASK)(ids, torch.ones_like(ids), PROMPT)[0][0].float()
    logits[:, MASK] = -torch.inf
    (greedy,) = run(sampler_of(nemotron, **options), prompt, [BLOCK], temperature=0.0)
    assert greedy[0] == logits.argmax(-1).tolist()
    torch.manual_seed(0)
    (drawn,) = run(sampler_of(nemotron, **options), prompt, [BLOCK])
    assert drawn[0] != greedy[0]
    own = (logits / 3).log_softmax(-1).gather(-1, torch.tensor(drawn[0])[:, None])
    torch.testing.assert_close(drawn[2], own)
    assert drawn[3].tolist() == ((logits / 3).log_softmax(-1) >= own).sum(-1).tolist()


def test_what_a_request_cannot_ask_for(nemotron, monkeypatch, tmp_path):
    """It is dropped, as flat logits that `top_k` cuts would be certain, and others' log-probabilities are not known."""
    configured(monkeypatch, tmp_path, THRESHOLD)
    sampler, found = sampler_of(nemotron), []
    sampler.sampling_states.add_request = lambda slot, params: found.append(params)
    params = types.SimpleNamespace(temperature=1.0, logprobs=5, top_k=1, top_p=0.5)
    sampler.add_request(0, params)
    assert vars(found[0]) == {"temperature": 1.0, "logprobs": 0, "top_k": 0, "top_p": 1.0}
    assert params.logprobs == 5


def test_without_the_variable_vllm_is_as_it_was(nemotron, monkeypatch, tmp_path):
    made = nemotron.NemotronLabsDiffusionModelState.custom_sampler
    monkeypatch.delenv("HLO_VLLM", raising=False)
    ours.register()
    assert nemotron.NemotronLabsDiffusionModelState.custom_sampler is made
    configured(monkeypatch, tmp_path, THRESHOLD)
    ours.register()
    sampler = sampler_of(nemotron)
    assert type(sampler) is ours.LearnedOrderStep
    assert type(sampler.inner) is nemotron.MaskedDiffusionSampler


def test_a_vllm_without_masked_models(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    with pytest.raises(ImportError, match="HLO_VLLM must not be set with this vLLM, which has no vllm"):
        configured(monkeypatch, tmp_path, THRESHOLD)


def test_refusals(nemotron, monkeypatch, tmp_path):
    configured(monkeypatch, tmp_path, "sampler: threshold\nsteps: 8\n")
    with pytest.raises(
        ValueError, match="HLO_VLLM must be a file with scorer, sampler, sampler_config only, got steps"
    ):
        sampler_of(nemotron)
    with pytest.raises(ValueError, match='selection_policy must be "confidence_threshold" with HLO_VLLM'):
        sampler_of(nemotron, policy="leftmost")
