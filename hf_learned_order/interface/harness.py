"""A model of lm-evaluation-harness. Needs the extra `lm-eval`.

    lm_eval.simple_evaluate(model=LearnedOrderLM("examples/denoiser", scorer="examples/scorer-0"), tasks=["gsm8k"])

By name, `model="hf_learned_order"`, it is found through the entry-point group `lm_eval.models` by versions of the
harness that look there (later than 0.4.13), and by older ones when this module has been imported. Started by
`accelerate launch`, each process has a model and answers its share of the requests.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast

import accelerate.utils
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_learned_order.common.checks import check_positive
from hf_learned_order.common.processes import started_processes
from hf_learned_order.decoding.canvas import stacked
from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.outputs import LearnedOrderOutput
from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.samplers.table import make_sampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.inside.hooks import evaluating
from hf_learned_order.interface.calls import run, steps_of
from hf_learned_order.interface.placing import placed
from hf_learned_order.interface.settings import Settings
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.orders.tuned import bring_up

logger = logging.getLogger(__name__)
Pair = tuple[Any, list[int], list[int]]  # the texts, and the token ids of context and continuation


@register_model("hf_learned_order")
class LearnedOrderLM(TemplateLM):
    """Any masked diffusion model with any unmasking rule.

    `generate_until` decodes. `loglikelihood` is the bound that the rule's order gives, log p_theta of each token when
    it is unmasked, summed, on a canvas of the continuation's length, as LLaDA is scored; it is greedy where decoding
    that canvas without chance gives the continuation. `loglikelihood_rolling` sums the bounds of windows.

    Args:
        pretrained: the denoiser, or where it is.
        tokenizer: by default the one that stands beside the denoiser.
        scorer: the scorer of `learned_order`, or where it is; an adapter beside it is loaded into the denoiser.
        sampler: a name of `SAMPLERS` or a `Sampler`; by default `learned_order` with a scorer, else `top_prob`.
        max_denoising_steps: step budget; by default the one that the scorer was trained for, else one for each
            position.
        max_gen_toks: length of the canvas where the task does not say.
        batch_size: requests decoded at once; results do not depend on it, but for what is drawn for equal prompts.
        seed: of rules and tokens that are drawn.
        device: where to put the model; by default, where it is loaded here, the accelerator, if there is one. Several
            processes have one each. "cuda:0", which the harness's command line gives unless told otherwise, says
            nothing with a `device_map` or without CUDA.
        dtype: of a model that is loaded.
        device_map: where it is loaded to, as in transformers, e.g. "auto": over all devices; instead of `device`.
        trust_remote_code: run the code that its repository brings.
        sampler_config: options of a sampler given by name, e.g. `threshold=0.9`.

    Raises:
        ValueError, TypeError: as `load_denoiser`, `Denoiser`, `make_sampler`; a number is out of range; a `pretrained`
            model comes without its tokenizer; the denoiser was tuned along with the scorer, and this is the one from
            before; `device_map` is given with a `device`, a model that is loaded already, or several processes.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        *,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        scorer: str | OrderScorer | None = None,
        sampler: str | Sampler | None = None,
        max_denoising_steps: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str = 8,
        seed: int = 0,
        device: str | None = None,
        dtype: str = "auto",
        device_map: Any = None,
        trust_remote_code: bool = False,
        **sampler_config: Any,
    ):
        super().__init__()
        self._processes = started_processes()
        how: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "trust_remote_code": trust_remote_code}
        model, self.tokenizer = placed(pretrained, tokenizer, self._processes, device=device, **how)
        loaded = OrderScorer.from_pretrained(scorer).eval() if isinstance(scorer, str) else scorer
        family = None if loaded is None else loaded.config.family
        self.denoiser = Denoiser(model, mask_token_id=self.tokenizer.mask_token_id, family=family)
        self.rule = make_sampler(
            sampler or ("learned_order" if loaded is not None else "top_prob"), sampler_config, scorer=loaded
        )
        own = getattr(self.rule, "scorer", None)
        if isinstance(own, OrderScorer):
            own.check_fits(self.denoiser)
            bring_up(self.denoiser, own.config, scorer if isinstance(scorer, str) else None)
            own.to(self.denoiser.device)  # pyrefly: ignore[bad-argument-type]
        self.batch_size = int(batch_size) if str(batch_size).isdecimal() else batch_size
        check_positive("batch_size", self.batch_size)  # pyrefly: ignore[bad-argument-type]
        check_positive("max_gen_toks", max_gen_toks)
        self.max_denoising_steps, self.max_gen_toks, self.seed = max_denoising_steps, max_gen_toks, seed
        self._device = self.denoiser.device
        if self._processes is not None:
            self._rank, self._world_size = self._processes.process_index, self._processes.num_processes

    # ---- several processes ---------------------------------------------------------------------------------------

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Those of all processes, one behind the other."""
        return tensor if self._processes is None else accelerate.utils.gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:  # pyrefly: ignore[bad-override]
        """Those of all processes, in process `dst`; None elsewhere."""
        every = [obj] if self._processes is None else accelerate.utils.gather_object([obj])
        return every if self.rank == dst else None

    def barrier(self) -> None:
        """Wait for all processes."""
        if self._processes is not None:
            self._processes.wait_for_everyone()

    # ---- what the harness asks -----------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The responses to the contexts, up to the first of the task's stop strings."""
        asked: list[tuple[str, dict[str, Any]]] = [request.args for request in requests]  # pyrefly: ignore
        groups: dict[str, list[int]] = {}
        for i, (_, options) in enumerate(asked):
            groups.setdefault(repr(sorted(options.items())), []).append(i)
        texts = [""] * len(asked)
        with tqdm(total=len(asked), disable=disable_tqdm or self.rank != 0, desc="generate_until") as bar:
            for indices in groups.values():
                options: Any = normalize_gen_kwargs(asked[indices[0]][1], self.max_gen_toks)
                until, length = options.pop("until"), options.pop("max_gen_toks")
                contexts = {i: self._cut(self.tok_encode(asked[i][0]), length) for i in indices}
                for batch in self._batches(contexts):
                    output = self._generate([contexts[i] for i in batch], length, stop_strings=until or None, **options)
                    responses = self.tokenizer.batch_decode(output.sequences[:, -length:], skip_special_tokens=True)
                    for i, text in zip(batch, responses, strict=True):
                        for stop in until:
                            text = text.partition(stop)[0]
                        texts[i] = text
                        self.cache_hook.add_partial("generate_until", asked[i], text)
                    bar.update(len(batch))
        return texts

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The bounds of whole texts; what is longer than the model takes is scored in windows."""
        pairs: list[Pair] = []
        counts = []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            # the last token of a window is on the canvas, where a causal model's is not read
            longest = len(ids) or 1 if self.denoiser.max_length is None else self.denoiser.max_length - 1
            windows = get_rolling_token_windows(ids, self.prefix_token_id, longest, context_len=1)
            before = len(pairs)
            pairs += [(None, *make_disjoint_window(window)) for window in windows]
            counts.append(len(pairs) - before)
        scores = iter(self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm))
        sums = [sum(next(scores)[0] for _ in range(count)) for count in counts]
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; with the tokenizer's special tokens unless the text begins with BOS already."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        return self.tokenizer(string, add_special_tokens=add_special_tokens, **kwargs)["input_ids"]

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context: BOS, else EOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation in the words of the tokenizer's template."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    # ---- decoding ------------------------------------------------------------------------------------------------

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As the harness does it, but that special tokens of a prompt's end stay between the two."""
        kept = context.rstrip()
        whole = self.tok_encode(context + continuation, add_special_tokens=False)
        plain = self.tok_encode(kept, add_special_tokens=False)
        return self.tok_encode(kept) if kept else [self.prefix_token_id], whole[len(plain) :]

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(requests)  # of an empty continuation
        lengths: dict[int, list[int]] = {}
        for i, (_, _, continuation) in enumerate(requests):
            if continuation:
                lengths.setdefault(len(continuation), []).append(i)
        with tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="loglikelihood") as bar:
            for length, indices in lengths.items():
                contexts = {i: self._cut(requests[i][1], length) for i in indices}
                for batch in self._batches(contexts):
                    prompts = [contexts[i] for i in batch]
                    clean = torch.tensor([requests[i][2] for i in batch], device=self.denoiser.device)
                    bounds = self._decode(prompts, length, clean=clean).log_likelihood.tolist()
                    drawn = self._decode(prompts, length).sequences[:, -length:]
                    greedy = (drawn == clean).all(-1).tolist()
                    for i, bound, same in zip(batch, bounds, greedy, strict=True):
                        scores[i] = bound, same
                        if requests[i][0] is not None:
                            self.cache_hook.add_partial("loglikelihood", requests[i][0], scores[i])
                    bar.update(len(batch))
        return scores

    def _generate(self, prompts: list[list[int]], length: int, **options: Any) -> LearnedOrderOutput:
        """Responses as `generate` gives them, up to EOS or a stop string, with the task's `options`."""
        given = {"max_new_tokens": length, "max_denoising_steps": self.max_denoising_steps, **options}
        model: Any = self.denoiser.model
        settings = Settings.resolve(
            given,
            None,
            own=getattr(model, "generation_config", None) or GenerationConfig(),
            special_tokens=(model.config, self.denoiser.family, self.tokenizer),
        )
        try:
            criteria = settings.criteria(self.tokenizer)
        except ValueError:  # transformers finds no token that could spell them; the text is cut in any case
            criteria = []
        ids, mask = self._padded(prompts)
        return run(
            self.denoiser,
            self.rule,
            settings,
            input_ids=ids,
            attention_mask=mask,
            logits_processor=settings.processors(ids.shape[1], ids.device),
            logits_warper=settings.warpers(ids.device),
            stopping_criteria=criteria,
            seed=self.seed,
        )

    def _decode(self, prompts: list[list[int]], length: int, clean: Tensor | None = None) -> LearnedOrderOutput:
        """The whole canvas, whatever it says, by the rule and without drawing tokens; with `clean`, scored."""
        with evaluating(self.denoiser.model):
            return decode(
                self.denoiser,
                *self._padded(prompts),
                sampler=self.rule,
                max_new_tokens=length,
                max_denoising_steps=steps_of(self.rule, self.max_denoising_steps, self.denoiser),
                generator=torch.Generator(self.denoiser.device).manual_seed(self.seed),
                clean=clean,
            )

    def _padded(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Prompts on the left of which is padding, and their mask."""
        pad = self.tokenizer.pad_token_id
        ids, mask = stacked(prompts, self.eot_token_id if pad is None else pad)
        return ids.to(self.denoiser.device), mask.to(self.denoiser.device)

    def _batches(self, contexts: dict[int, list[int]]) -> Iterator[list[int]]:
        """The numbers of the requests, those of like length together: less padding."""
        ordered, size = sorted(contexts, key=lambda i: len(contexts[i])), cast(int, self.batch_size)
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]

    def _cut(self, context: list[int], length: int) -> list[int]:
        """The end of a context that is longer than what the model takes in front of a canvas of `length`."""
        limit = self.denoiser.max_length
        if limit is None or len(context) + length <= limit:
            return context
        if length >= limit:
            raise ValueError(f"a canvas must leave room in the model's {limit} positions, got one of {length} tokens")
        logger.warning("a context of %d tokens was cut on the left to %d", len(context), limit - length)
        return context[length - limit :]
