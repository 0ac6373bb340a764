"""`hf-learned-order generate`: decode one prompt."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_learned_order.cli.options import add_model, loaded

if TYPE_CHECKING:
    from hf_learned_order.evaluation.order_maps import OrderMap


def add_command(commands: Any) -> None:
    """Its options."""
    parser = commands.add_parser("generate", help="decode one prompt")
    add_model(parser)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--sampler", nargs="+", default=["learned_order"], help="one, or several to compare")
    parser.add_argument(
        "--sampler_config", nargs="+", metavar="JSON", help="options of each sampler in turn, e.g. '{\"greedy\": true}'"
    )
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--max_denoising_steps", type=int)
    parser.add_argument("--block_length", type=int, help="decode in blocks of so many tokens, from left to right")
    parser.add_argument("--kv_cache", choices=("exact", "prefix", "dual"), help="keep keys and values between calls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--order_map", metavar="FILE", help="which step unmasked which token: FILE.html, FILE.png, or - to print it"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer
    from hf_learned_order.evaluation.order_maps import OrderMap
    from hf_learned_order.interface.attach import attach

    if options.order_map not in (None, "-"):
        if not options.order_map.endswith((".html", ".png")):
            raise ValueError(f"--order_map must be - or end in .html or .png, got {options.order_map}")
        if not Path(options.order_map).parent.is_dir():
            raise ValueError(f"--order_map must be in a folder that there is, got {options.order_map}")
    if "learned_order" in options.sampler and options.scorer is None:
        raise ValueError('sampler "learned_order" needs --scorer')
    configs = _configs(options.sampler, options.sampler_config)
    tokenizer = loaded("model", options.model, load_tokenizer)
    model = loaded("model", options.model, load_denoiser)
    model = loaded("scorer", options.scorer, lambda scorer: attach(model, scorer, tokenizer=tokenizer))
    maps = []
    for sampler, config in zip(options.sampler, configs, strict=True):
        output = model.generate(  # pyrefly: ignore[not-callable]
            **tokenizer(options.prompt, return_tensors="pt").to(model.device),
            sampler=sampler,
            sampler_config=config,
            max_new_tokens=options.max_new_tokens,
            max_denoising_steps=options.max_denoising_steps,
            block_length=options.block_length,
            kv_cache=options.kv_cache,
            seed=options.seed,
            return_dict_in_generate=True,
        )
        response = output.sequences[0, -options.max_new_tokens :]
        print(tokenizer.decode(response, skip_special_tokens=True))
        speed = f"{int(output.nfe[0])} denoiser calls, {float(output.tokens_per_forward[0]):.2f} tokens a call"
        print(speed if len(options.sampler) == 1 else f"{sampler}: {speed}", file=sys.stderr)
        if options.order_map is not None:
            maps += OrderMap.of(output, tokenizer, label=sampler)
    if options.order_map is not None:
        _order_map(maps, options.order_map)


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
