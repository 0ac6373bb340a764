"""A random Markov chain, and a masked language model of it that is exact: nothing is learned and nothing is wrong.

Symbols: P transitions, pi the stationary law, that the chain starts from, e_i the evidence at position i (one-hot where
a token is known, ones where it is masked); forward messages a_1 = pi, a_{i+1} = (a_i e_i) P, backward ones b_L = 1,
b_i = P (e_{i+1} b_{i+1}); p(x_i | what is known) is proportional to a_i b_i e_i (Baum et al., 1970).
"""

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import MaskedLMOutput

from hf_learned_order.denoisers.families import register_family
from hf_learned_order.tasks.data import character_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class ExactChainConfig(PreTrainedConfig):
    """A chain of so many states; `concentration` of the Dirichlet law of a row of P, the smaller the sharper."""

    model_type = "exact-chain"

    def __init__(
        self, states: int = 6, concentration: float = 0.3, chain_seed: int = 0, first_token: int = 5, **kwargs
    ):
        self.states = states
        self.concentration = concentration
        self.chain_seed = chain_seed
        self.first_token = first_token  # of the states; special tokens come before it
        self.hidden_size = 3 * states + 1
        self.vocab_size = first_token + states
        super().__init__(**kwargs)


class ExactChainForMaskedLM(PreTrainedModel):
    """Conditionals of the chain given whatever is known; the hidden states are a, b, e and whether it is masked."""

    config_class = ExactChainConfig

    def __init__(self, config: ExactChainConfig):
        super().__init__(config)
        torch.manual_seed(config.chain_seed)
        rows = torch.full((config.states, config.states), config.concentration, dtype=torch.double)
        transitions = torch.distributions.Dirichlet(rows).sample().clamp(min=1e-4)
        self.transitions = nn.Parameter(transitions / transitions.sum(-1, keepdim=True), requires_grad=False)
        self.post_init()

    @property
    def stationary(self) -> Tensor:
        """[states]"""
        return torch.linalg.matrix_power(self.transitions, 4096)[0]

    def pairs(self, distance: int) -> Tensor:
        """[states, states], the joint law of two positions so far apart."""
        return self.stationary[:, None] * torch.linalg.matrix_power(self.transitions, distance)

    def draw(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """int [count, length], states."""
        found = [torch.multinomial(self.stationary, count, replacement=True, generator=generator)]
        while len(found) < length:
            found.append(torch.multinomial(self.transitions[found[-1]], 1, generator=generator).squeeze(-1))
        return torch.stack(found, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_unused) -> MaskedLMOutput:
        """Logits [batch, length, vocab], hidden states [batch, length, hidden], all float32."""
        states = self.config.states
        known = input_ids - self.config.first_token
        masked = (known < 0)[..., None]
        evidence = nn.functional.one_hot(known.clamp(min=0), states).double().masked_fill(masked, 1.0)
        forward, backward = [self.stationary.expand(len(known), -1)], [torch.ones_like(evidence[:, 0])]
        for i in range(known.shape[1] - 1):
            forward.append(_normalised((forward[-1] * evidence[:, i]) @ self.transitions))
            backward.append(_normalised((evidence[:, -1 - i] * backward[-1]) @ self.transitions.T))
        a, b = torch.stack(forward, 1), torch.stack(backward[::-1], 1)
        logits = nn.functional.pad((a * b * evidence).log(), (self.config.first_token, 0), value=-torch.inf)
        hidden = torch.cat([a, b, evidence, masked], -1)
        return MaskedLMOutput(logits=logits.float(), hidden_states=(hidden.float(),))


register_family("ExactChainForMaskedLM")


def _normalised(values: Tensor) -> Tensor:
    return values / values.sum(-1, keepdim=True)


def exact_chain(**config) -> tuple[ExactChainForMaskedLM, PreTrainedTokenizerFast]:
    """The model and a tokenizer, a letter a state."""
    states = config.get("states", 6)
    tokenizer = character_tokenizer(LETTERS[:states])
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("mask", "pad", "eos")}
    return ExactChainForMaskedLM(ExactChainConfig(**config, **special)).eval(), tokenizer


def rows_of(chain: ExactChainForMaskedLM, count: int, length: int, *, seed: int) -> Dataset:
    """Draws of the chain as rows to train on: no prompt, a response of `length` tokens."""
    draws = chain.draw(count, length, torch.Generator().manual_seed(seed)) + chain.config.first_token
    row = {"prompt_ids": [], "answer": "", "length": length, "given": [False] * length}
    return Dataset.from_list([{**row, "response_ids": ids} for ids in draws.tolist()])
