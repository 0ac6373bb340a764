"""`hf-learned-order`: generate, evaluate, plot and push from the command line."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_learned_order.evaluation.order_maps import OrderMap


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; errors in what the user gave are printed in one line, and the exit status is 2."""
    parser = argparse.ArgumentParser(prog="hf-learned-order", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    generate = commands.add_parser("generate", help="decode one prompt")
    _add_model(generate)
    generate.add_argument("--prompt", required=True)
    generate.add_argument("--sampler", nargs="+", default=["learned_order"], help="one, or several to compare")
    generate.add_argument(
        "--sampler_config", nargs="+", metavar="JSON", help="options of each sampler in turn, e.g. '{\"greedy\": true}'"
    )
    generate.add_argument("--max_new_tokens", type=int, default=64)
    generate.add_argument("--max_denoising_steps", type=int)
    generate.add_argument("--block_length", type=int, help="decode in blocks of so many tokens, from left to right")
    generate.add_argument("--kv_cache", choices=("exact", "prefix", "dual"), help="keep keys and values between calls")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument(
        "--order_map", metavar="FILE", help="which step unmasked which token: FILE.html, FILE.png, or - to print it"
    )
    generate.set_defaults(run=_generate)

    evaluate = commands.add_parser("evaluate", help="compare samplers at matched NFE: table, JSON, CSV and plots")
    _add_model(evaluate, many=True)
    evaluate.add_argument("--dataset_name", help="GSM8K on the Hub, e.g. openai/gsm8k")
    evaluate.add_argument("--train_file", help="its train.jsonl: the last 400 rows tune the samplers")
    evaluate.add_argument("--test_file", help="its test.jsonl")
    evaluate.add_argument(
        "--tasks", nargs="+", default=["equations"], help="names of hf_learned_order.tasks.table.TASKS"
    )
    evaluate.add_argument("--samplers", nargs="+", help="by default all of them")
    evaluate.add_argument("--greedy", action="store_true", help="learned_order takes the likeliest positions, no draw")
    evaluate.add_argument("--nfe", nargs="+", type=float, default=[2, 4, 6, 8, 12, 16], help="target mean NFE")
    evaluate.add_argument("--canvas_length", type=int, help="positions of a response; by default the task's")
    evaluate.add_argument("--temperature", type=float, default=0.0, help="of the tokens; 0 takes the most likely ones")
    evaluate.add_argument("--batch_size", type=int, default=128)
    evaluate.add_argument("--dtype", default="float32", help="of the denoiser, e.g. bfloat16")
    evaluate.add_argument("--limit", type=int, help="test problems, the first so many; by default all")
    evaluate.add_argument("--tuning_limit", type=int, default=120, help="held-out problems that settings are tuned on")
    evaluate.add_argument(
        "--budget_shares",
        type=float,
        nargs="*",
        help="step budgets that the tuned rows try, times the target NFE; none: no tuned rows; by default three",
    )
    evaluate.add_argument("--no_bound", action="store_true", help="leave out the bound, which costs as much again")
    evaluate.add_argument("--seeds", type=int, default=3, help="runs of the random samplers")
    evaluate.add_argument(
        "--output_dir", default="runs/evaluation", help="the same command goes on with the rows that are there"
    )
    evaluate.set_defaults(run=_evaluate)

    plot = commands.add_parser("plot", help="draw the trade-off curve again")
    plot.add_argument("results", help="results.json or results.csv of evaluate")
    plot.add_argument("--output", default="trade_off.png")
    plot.set_defaults(run=_plot)

    push = commands.add_parser("push", help="push the folder of a scorer to the Hub, with its card")
    push.add_argument("folder", help="where the scorer was saved")
    push.add_argument("repo_id", help="user/name on the Hub")
    push.add_argument("--results", help="results.json of evaluate; without it the card says that nothing was measured")
    push.add_argument("--task", default="equations", help="whose results the card shows")
    push.add_argument("--plot", help="by default the trade_off.png beside the results")
    push.add_argument(
        "--data", default="", help="what the scorer was trained on, in words; by default as the trainer says"
    )
    push.add_argument("--train_command", default="", help="the command that trained it; by default as the trainer says")
    push.add_argument("--limits", default="", help="what else a reader should know")
    push.add_argument("--license", help="of the scorer, an identifier of the Hub")
    push.add_argument("--private", action="store_true")
    push.set_defaults(run=_push)

    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except ModuleNotFoundError as error:
        extras = "pip install 'hf_learned_order[plot,eval]'"
        print(f"hf-learned-order: {options.command} needs {error.name}: {extras}", file=sys.stderr)
        return 2
    except (ValueError, TypeError, OSError) as error:
        message = " ".join(str(error).split())  # transformers' have many lines
        print(f"hf-learned-order: {message}", file=sys.stderr)
        return 2
    return 0


def _add_model(parser: argparse.ArgumentParser, *, many: bool = False) -> None:
    parser.add_argument("--model", required=True, help="the denoiser: a folder or a Hub repository")
    if many:
        parser.add_argument("--scorer", nargs="+", default=[], help="one or more scorers (seeds) to average over")
    else:
        parser.add_argument("--scorer", help="a folder or a Hub repository")


def _generate(options: argparse.Namespace) -> None:
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
    tokenizer = _loaded("model", options.model, load_tokenizer)
    model = _loaded("model", options.model, load_denoiser)
    model = _loaded("scorer", options.scorer, lambda scorer: attach(model, scorer, tokenizer=tokenizer))
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


def _loaded(option: str, name: str | None, load: Callable[[Any], Any]) -> Any:
    """What `load` makes of the folder or repository; the Hub's errors do not always say which one it was about."""
    try:
        return load(name)
    except OSError as error:
        what = "" if name is None or Path(name).exists() else " (no folder here)"
        raise OSError(f"--{option} {name}{what}: {error}") from error


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


def _evaluate(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import track

    from hf_learned_order.denoisers.denoiser import Denoiser
    from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer
    from hf_learned_order.evaluation.comparison import BUDGET_SHARES, compare
    from hf_learned_order.evaluation.plotting import trade_off  # noqa: F401 (if it cannot be imported, that is told now)
    from hf_learned_order.evaluation.results import Sweep
    from hf_learned_order.orders.scorer import OrderScorer

    _check_numbers(options)
    tokenizer = _loaded("model", options.model, load_tokenizer)
    model = _loaded("model", options.model, lambda name: load_denoiser(name, dtype=options.dtype)).eval()
    denoiser = Denoiser(model, mask_token_id=tokenizer.mask_token_id)
    scorers = [_loaded("scorer", path, OrderScorer.from_pretrained).eval() for path in options.scorer]
    for scorer in scorers:
        scorer.check_fits(denoiser)
    options.samplers = _names(options.samplers, scorers)
    if options.budget_shares is None:
        options.budget_shares = list(BUDGET_SHARES)
    evaluators = _evaluators(options, denoiser, tokenizer)
    folder = Path(options.output_dir)
    sweep = Sweep(folder, _settings(options, model, scorers, evaluators))
    if sweep.results:
        print(f"{folder}: going on behind the {len(sweep.results)} rows that are there", file=sys.stderr)
    results = []
    for task, (tuning, test) in evaluators.items():
        comparison = compare(
            tuning,
            test,
            samplers=options.samplers,
            targets=sorted(options.nfe),
            scorers=scorers,
            greedy=options.greedy,
            seeds=options.seeds,
            budget_shares=options.budget_shares,
            with_bound=not options.no_bound,
            task=task,
            finished=sweep.results,
        )
        for result in track(comparison, description=f"{task}: samplers x budgets", console=Console(stderr=True)):
            sweep.add(result)
            results.append(result)
    _report(results, evaluators, scorers, folder, greedy=options.greedy)


def _check_numbers(options: argparse.Namespace) -> None:
    """What would else be found late, or not at all."""
    import torch

    from hf_learned_order.common.checks import check_positive
    from hf_learned_order.decoding.samplers.base import check_range

    for name in ("batch_size", "canvas_length", "limit", "tuning_limit", "seeds"):
        value = getattr(options, name)
        if value is not None:
            check_positive(f"--{name}", value)
    for target in options.nfe:
        check_range("--nfe", target, low=1.0, high=1e6)
    check_range("--temperature", options.temperature, low=0.0)
    for share in options.budget_shares or ():
        check_range("--budget_shares", share, low=1.0, high=1e6)
    dtype = getattr(torch, options.dtype, None)
    if options.dtype != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"--dtype must be a floating-point type of torch, e.g. bfloat16, got {options.dtype}")


def _report(results: list, evaluators: dict, scorers: list, folder: Path, *, greedy: bool) -> None:
    """Tables and pictures."""
    from rich.console import Console

    from hf_learned_order.evaluation.plotting import order_map_of, trade_off
    from hf_learned_order.evaluation.results import aup_table, order_table, table

    titles = {task: f"{task}, {len(test.dataset)} test problems" for task, (_, test) in evaluators.items()}
    trade_off(results, folder / "trade_off.png", title=", ".join(titles.values()) if len(titles) == 1 else "")
    console = Console(width=120)
    for task, (_, test) in evaluators.items():
        rows = [result for result in results if result.task == task]
        picture = folder / ("order_map.png" if len(titles) == 1 else f"order_map_{task}.png")
        order_map_of(test, scorers, picture, greedy=greedy)
        console.print(titles[task], table(rows), order_table(rows), aup_table(rows), sep="\n")
    print(f"Written to {folder}: results.json, results.csv, trade_off.png, order_map.png")


def _names(given: Sequence[str] | None, scorers: Sequence) -> list[str]:
    """The samplers to compare: those given, else all that can be."""
    from hf_learned_order.decoding.samplers.table import SAMPLERS

    names = list(given or [name for name in SAMPLERS if name != "learned_order" or scorers])
    unknown = sorted(set(names) - set(SAMPLERS))
    if unknown:
        raise ValueError(f"--samplers must be among {', '.join(SAMPLERS)}, got {', '.join(unknown)}")
    if "learned_order" in names and not scorers:
        raise ValueError('sampler "learned_order" needs --scorer')
    return names


def _evaluators(options: argparse.Namespace, denoiser: Any, tokenizer: Any) -> dict[str, tuple[Any, Any]]:
    """For each task what settings are tuned on and what is measured."""
    from hf_learned_order.evaluation.evaluator import Evaluator
    from hf_learned_order.tasks.table import Source, Task, find_task

    def evaluator(task: Task, split: str, count: int | None) -> Evaluator:
        length = options.canvas_length or task.canvas_length
        source = Source(
            split=split,
            count=count,
            canvas_length=length,
            dataset_name=options.dataset_name,
            train_file=options.train_file,
            test_file=options.test_file,
        )
        return Evaluator(
            denoiser,
            tokenizer,
            task.load(tokenizer, source),
            canvas_length=length,
            batch_size=options.batch_size,
            is_right=task.is_right,
            temperature=options.temperature,
        )

    tasks = {name: find_task(name) for name in options.tasks}
    return {
        name: (evaluator(task, "validation", options.tuning_limit), evaluator(task, "test", options.limit))
        for name, task in tasks.items()
    }


def _settings(options: argparse.Namespace, model: Any, scorers: list, evaluators: dict) -> dict[str, Any]:
    """All that the rows of a sweep depend on, and the command that measures them."""
    from importlib.metadata import version

    from hf_learned_order.common import files
    from hf_learned_order.evaluation.evaluator import fingerprint
    from hf_learned_order.evaluation.results import COMMAND

    given = {name: value for name, value in vars(options).items() if name not in ("run", "command", "output_dir")}
    return {
        COMMAND: ["hf-learned-order", options.command, *_words(given)],
        **{name: version(name) for name in ("hf_learned_order", "torch", "transformers")},
        "device": model.device.type,
        **given,
        "model_fingerprint": fingerprint(model),
        "scorer_fingerprints": [fingerprint(scorer) for scorer in scorers],
        "scorer_weights": [files.fingerprint(scorer.state_dict()) for scorer in scorers],
        "data_fingerprints": {task: [e.fingerprint() for e in both] for task, both in evaluators.items()},
    }


def _words(options: dict[str, Any]) -> list[str]:
    """The options as they are typed, defaults too: a later version may have others."""
    words = []
    for name, value in options.items():
        if value is None or value is False or (name == "scorer" and not value):
            continue
        values = value if isinstance(value, list) else [] if value is True else [value]
        words += [f"--{name}", *map(str, values)]
    return words


def _plot(options: argparse.Namespace) -> None:
    from hf_learned_order.evaluation.plotting import trade_off
    from hf_learned_order.evaluation.results import load_results

    trade_off(load_results(options.results), options.output)
    print(f"Written to {options.output}")


def _push(options: argparse.Namespace) -> None:
    from hf_learned_order.sharing.cards import Card
    from hf_learned_order.sharing.hub import push_folder

    card = Card(
        results=options.results,
        task=options.task,
        plot=options.plot,
        data=options.data,
        command=options.train_command,
        limits=options.limits,
        license=options.license,
    )
    push_folder(options.folder, options.repo_id, card=card, private=options.private or None)
    print(f"Pushed {options.folder} to {options.repo_id}")


if __name__ == "__main__":
    sys.exit(main())
