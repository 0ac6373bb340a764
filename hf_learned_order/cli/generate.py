"""`hf-learned-order generate`: decode one prompt."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_learned_order.cli.options import RULES, add_model, check_dtype, command_parser, load_both, loaded, taken

if TYPE_CHECKING:
    from hf_learned_order.evaluation.order_maps import OrderMap

# to `generate`, as they are
PASSED_ON = ("max_denoising_steps", "block_length", "kv_cache", "infill", "verify", "num_assistant_tokens", "seed")


def add_command(commands: Any) -> None:
    """Its options."""
    parser = command_parser(commands, "generate", "decode one prompt")
    add_model(parser)
    group = parser.add_argument_group("prompt")
    group.add_argument("--prompt", required=True)
    group.add_argument("--infill", action="store_true", help="fill the mask tokens within the prompt, and add nothing")
    group.add_argument(
        "--chat_template",
        action=argparse.BooleanOptionalAction,
        help="put the prompt into the tokenizer's chat template; by default where it has one",
    )
    group.add_argument("--system_prompt", metavar="TEXT", help="of the chat template")
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--sampler",
        nargs="+",
        help=f"one, or several to compare: {', '.join(RULES)}; by default learned_order with a scorer, else top_prob",
    )
    group.add_argument(
        "--sampler_config", nargs="+", metavar="JSON", help="options of each sampler in turn, e.g. '{\"greedy\": true}'"
    )
    group.add_argument("--max_new_tokens", type=int, help="positions of the canvas; by default 64")
    group.add_argument(
        "--max_denoising_steps", type=int, help="step budget; by default the scorer's, else one for each position"
    )
    group.add_argument("--block_length", type=int, help="decode in blocks of so many tokens, from left to right")
    group.add_argument("--kv_cache", choices=("exact", "prefix", "dual"), help="keep keys and values between calls")
    group.add_argument("--verify", help="a rule whose own response is wanted, in fewer calls, e.g. top_prob")
    group.add_argument("--num_assistant_tokens", type=int, help="with --verify: canvases of one call; by default 8")
    group.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument(
        "--order_map", metavar="FILE", help="which step unmasked which token: FILE.html, FILE.png, or - to print it"
    )
    parser.add_argument(
        "--expected", metavar="TEXT", help="the right response, if you know it: the order map marks what is wrong"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_learned_order.evaluation.order_maps import OrderMap
    from hf_learned_order.interface.attach import attach

    if options.order_map not in (None, "-"):
        if not options.order_map.endswith((".html", ".png")):
            raise ValueError(f"--order_map must be - or end in .html or .png, got {options.order_map}")
        if not Path(options.order_map).parent.is_dir():
            raise ValueError(f"--order_map must be in a folder that there is, got {options.order_map}")
    samplers = options.sampler or ["top_prob" if options.scorer is None else "learned_order"]
    if "learned_order" in samplers and options.scorer is None:
        raise ValueError('sampler "learned_order" needs --scorer')
    configs = _configs(samplers, options.sampler_config)
    check_dtype(options.dtype)
    tokenizer, model = load_both(options, samplers=samplers)
    model = loaded("scorer", options.scorer, lambda scorer: attach(model, scorer, tokenizer=tokenizer))
    inputs = _inputs(tokenizer, options)
    length = options.max_new_tokens if options.infill or options.max_new_tokens is not None else 64
    expected = None
    if options.expected is not None:
        expected = tokenizer([options.expected], add_special_tokens=False)["input_ids"]
    maps = []
    for sampler, config in zip(samplers, configs, strict=True):
        output = model.generate(  # pyrefly: ignore[not-callable]
            **inputs.to(model.device),
            sampler=sampler,
            sampler_config=config,
            max_new_tokens=length,
            return_dict_in_generate=True,
            **taken(options, *PASSED_ON),
        )
        response = output.sequences[0] if options.infill else output.sequences[0, -length:]
        print(tokenizer.decode(response, skip_special_tokens=True))
        speed = f"{int(output.nfe[0])} denoiser calls, {float(output.tokens_per_forward[0]):.2f} tokens a call"
        if options.verify is not None:
            speed += f", {int(output.canvases[0])} canvases"
        print(speed if len(samplers) == 1 else f"{sampler}: {speed}", file=sys.stderr)
        if options.order_map is not None:
            maps += OrderMap.of(output, tokenizer, label=sampler, expected=expected)
    if options.order_map is not None:
        _order_map(maps, options.order_map)


def _inputs(tokenizer: Any, options: argparse.Namespace) -> Any:
    """The token ids of the prompt, as a batch of one row."""
    if options.infill and (tokenizer.mask_token is None or tokenizer.mask_token not in options.prompt):
        raise ValueError(
            f"--prompt must hold the tokenizer's mask token {tokenizer.mask_token} with --infill, got {options.prompt}"
        )
    _warn_of_unknown(tokenizer, options.prompt)
    chat = options.chat_template
    if chat is None:
        chat = bool(tokenizer.chat_template) and not options.infill
    if chat and (not tokenizer.chat_template or options.infill):
        why = "--infill" if options.infill else "a tokenizer that has none"
        raise ValueError(f"--chat_template must be left out with {why}")
    if not chat:
        if options.system_prompt is not None:
            raise ValueError(f"--system_prompt must be left out without a chat template, got {options.system_prompt}")
        return tokenizer(options.prompt, return_tensors="pt")
    messages = [{"role": "user", "content": options.prompt}]
    if options.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": options.system_prompt})
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")


def _warn_of_unknown(tokenizer: Any, prompt: str) -> None:
    """Says which parts of the prompt the model cannot see."""
    if tokenizer.unk_token_id is None or not tokenizer.is_fast:
        return
    encoded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    unknown = dict.fromkeys(prompt[start:end] for token, (start, end) in pairs if token == tokenizer.unk_token_id)
    if unknown:
        shown = ", ".join(map(repr, unknown))
        print(
            f"hf-learned-order: the tokenizer does not know {shown}; the model sees {tokenizer.unk_token} there",
            file=sys.stderr,
        )


def _configs(samplers: Sequence[str], given: Sequence[str] | None) -> list[dict[str, Any]]:
    """The options of each sampler, from the JSON that was given for it."""
    if given is None:
        return [{}] * len(samplers)
    if len(given) != len(samplers):
        raise ValueError(
            f"--sampler_config must be given once for each --sampler, got {len(given)} and {len(samplers)}"
        )
    configs = []
    for text in given:
        try:
            config = json.loads(text)
        except ValueError:
            config = None
        if not isinstance(config, dict):
            raise ValueError(f"--sampler_config must be JSON like '{{\"greedy\": true}}', got {text}")
        configs.append(config)
    return configs


def _order_map(maps: "Sequence[OrderMap]", path: str) -> None:
    """Printed for `-`, else written as what the file is called."""
    if path == "-":
        from hf_learned_order.evaluation.order_maps import show

        show(maps)
        return
    if path.endswith(".html"):
        from hf_learned_order.evaluation.order_maps import page

        Path(path).write_text(page(maps, title=f"Order map: {maps[0].prompt}"), encoding="utf-8")
    else:
        from hf_learned_order.evaluation.plotting import order_map

        order_map(maps, path)
    print(f"Written to {path}", file=sys.stderr)
