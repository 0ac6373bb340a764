"""`hf-learned-order calibrate`: the fastest setting of a rule that keeps a risk, saved beside the scorer."""

import argparse
from pathlib import Path
from typing import Any

from hf_learned_order.cli.options import (
    add_data,
    add_model,
    add_own_data,
    check_dtype,
    check_read,
    command_parser,
    evaluator_of,
    load_both,
    load_order,
)

PROMISE = ("risk", "confidence", "on_average", "against", "points")


def add_risk(group: Any, *, required: bool) -> None:
    """The options that say what is promised."""
    group.add_argument(
        "--risk", type=float, required=required, help="share of bad responses that is allowed, e.g. 0.02"
    )
    group.add_argument("--confidence", type=float, default=0.9, help="with which it is kept (learn then test)")
    group.add_argument(
        "--on_average", action="store_true", help="keep it on average only, in fewer calls (conformal risk control)"
    )
    group.add_argument(
        "--against",
        default="top_prob",
        help="bad is what is wrong where this rule, one token a step, is right; judge: whatever is wrong",
    )
    group.add_argument("--points", type=int, default=13, help="settings of the rule that are tried, from slow to fast")


def confidence_of(options: argparse.Namespace) -> float | None:
    """None for a risk that is kept on average."""
    return None if options.on_average else options.confidence


def add_command(commands: Any) -> None:
    """Its options."""
    parser = command_parser(commands, "calibrate", "the fastest setting of a rule that keeps a risk, saved by its name")
    add_model(parser)
    add_data(parser)
    add_own_data(parser)
    parser.add_argument("--task", default="equations", help="a name of hf_learned_order.tasks.table.TASKS")
    parser.add_argument("--prompts", type=int, default=400, help="held-out problems that are looked at")
    parser.add_argument("--sampler", default="learned_order", help="a rule with a knob")
    add_risk(parser.add_argument_group("risk"), required=True)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--output_dir", help="where generation_config.json is; by default the folder of the scorer")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_learned_order.evaluation.calibration import calibrate
    from hf_learned_order.evaluation.guarantees import check_prompts
    from hf_learned_order.orders.guarantees import write_guarantees

    folder = options.output_dir or options.scorer
    if folder is None:
        raise ValueError("--output_dir must be given without --scorer")
    if options.output_dir is None and not Path(folder).is_dir():
        raise ValueError(f"--output_dir must be given with a scorer of the Hub, {folder}, to save it there")
    confidence = confidence_of(options)
    check_prompts(options.prompts, options.risk, confidence)
    if options.sampler == "learned_order" and options.scorer is None:
        raise ValueError('sampler "learned_order" needs --scorer')
    check_dtype(options.dtype)
    check_read(options, [options.task])
    tokenizer, model = load_both(options, samplers=[options.sampler])
    scorer_paths = [] if options.scorer is None else [options.scorer]
    denoiser, scorers = load_order(scorer_paths, model, tokenizer)
    scorer = next(iter(scorers), None)
    held_out = evaluator_of(options, options.task, "validation", options.prompts, denoiser, tokenizer)
    found = calibrate(
        held_out,
        options.sampler,
        scorer=scorer,
        task=options.task,
        risk=options.risk,
        confidence=confidence,
        against=options.against,
        points=options.points,
    )
    if scorer is not None and options.output_dir is not None:
        scorer.save_pretrained(folder)
    budget = None if scorer is None else scorer.config.max_denoising_steps
    write_guarantees(folder, {found.name: found.to_dict()}, max_denoising_steps=budget)
    setting = ", ".join(f"{name}={value:.4g}" for name, value in found.options.items())
    print(f"{options.sampler} with {setting}: {found.bad} of {found.prompts} bad, {found.nfe:.2f} calls")
    print(f'Saved in {folder}: generate(sampler="{found.name}")')
