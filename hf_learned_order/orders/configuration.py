"""The configuration of a scorer: its law, its shape, and the denoiser that it was made for."""

import inspect
import math
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from hf_learned_order.common.files import read_json, reading
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import Family
from hf_learned_order.denoisers.inside.layers import LAST
from hf_learned_order.denoisers.probe import check_probe
from hf_learned_order.orders.features import FEATURES

RANDOM_LAWS = ("non_empty", "max_normalized", "count")  # draw a set; "regret" is one, and has a random form
LAWS = ("regret", *RANDOM_LAWS)
LEFT = ("factor", "dependent", "repulsive", "plackett_luce")  # laws of version 0.1.0, the last that had them
FIELDS_LEFT = ("warm_start", "entropy_weight")  # with them; without a meaning for the laws that stayed
TUNINGS = (None, "adapter", "denoiser")


class OrderScorerConfig(PreTrainedConfig):
    """Shape of a scorer, and the denoiser it was made for.

    Args:
        law: "regret" (`BoundedRegret` with a learned probability, weight and A), "non_empty" (`NonEmptyBernoulli` with
            the ancestral schedule as offset), "max_normalized", or "count" (`CountedBernoulli`: how many, then which).
        law_temperature: tau, which scores (and log-weights of counts) are divided by; of "regret" that of its random
            form, `RandomRegret`, in training. None: 0.5 with "regret", 0.1 with the others.
        bound: of the regret law: what a position may cost.
        pair_weight: of the regret law: what A counts; 0 until the training has chosen it.
        token_pairs: of the regret law: A can see whether the most likely tokens of two positions are the same. That of
            scorers from `for_denoiser` can.
        sees_tokens: of the regret law: whether it does; the training chooses.
        features: what the scorer sees of each position beside whether it is masked, among `FEATURES`; None: all but
            the position, and the budget only with laws that decide by it.
        hidden_layers: which of the denoiser's hidden states the scorer sees, as indices into the tuple `hidden_states`
            that transformers' models return: 0 the embeddings, -1 the last. None: the last alone.
        law_bias: added to the `bias` of every draw, of laws that draw. `target_nfe` moves it.
        max_denoising_steps: T, the budget that the scorer was trained for, the largest if it was trained for several;
            None if it serves any.
        hidden_size: width of the scorer.
        num_hidden_layers: transformer layers over the canvas.
        num_attention_heads: heads of each.
        denoiser_hidden_size, vocab_size, mask_token_id: what a denoiser must have to be used with this scorer. A
            `denoiser_hidden_size` of 0 is a scorer that looks at predictions only, never at hidden states.
        base_model_name_or_path, base_model_revision: the denoiser it was trained with.
        denoiser_tuning: what that one is beyond it, in the folder of that name beside the scorer's: "adapter" (tuned
            along, or its own before) or "denoiser" (every weight was tuned along); None: nothing.
        denoiser_family: how to call that one, the fields of a `Family`, where it was said and the table of families has
            it otherwise or not at all; None: as in the table.
        denoiser_probe, base_model_probe: what the denoiser said to a few tokens (`denoisers.probe`), as it was trained
            with and, where it is more than its base model, that one. None: not known.

    Raises:
        ValueError, TypeError: a field is out of its range or of another type.
    """

    model_type = "order_scorer"

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        """transformers' own, which goes on with a list, a number or null and fails without naming the file."""
        return read_json(Path(json_file), dict)

    def __init__(
        self,
        *,
        law: str = "non_empty",
        law_temperature: float | None = None,
        bound: float = 0.5,
        pair_weight: float = 0.0,
        token_pairs: bool = False,
        sees_tokens: bool = True,
        features: list[str] | None = None,
        hidden_layers: list[int] | None = None,
        law_bias: float = 0.0,
        max_denoising_steps: int | None = None,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        denoiser_hidden_size: int = 128,
        vocab_size: int = 32,
        mask_token_id: int | None = None,
        base_model_name_or_path: str | None = None,
        base_model_revision: str | None = None,
        denoiser_tuning: str | None = None,
        denoiser_family: dict[str, Any] | None = None,
        denoiser_probe: str | None = None,
        base_model_probe: str | None = None,
        **kwargs: Any,
    ):
        law_temperature = (0.5 if law == "regret" else 0.1) if law_temperature is None else law_temperature
        _check_fields(locals())
        if law in LEFT:
            raise ValueError(
                f"law must be one of {', '.join(LAWS)}, got {law!r}, which left after version 0.1.0: install "
                "hf-learned-order==0.1.0 to use this scorer, or train one with the law 'regret'"
            )
        if law not in LAWS:
            raise ValueError(f"law must be one of {', '.join(LAWS)}, got {law!r}")
        if denoiser_tuning not in TUNINGS:
            raise ValueError(f"denoiser_tuning must be one of {', '.join(map(str, TUNINGS))}, got {denoiser_tuning!r}")
        if not law_temperature > 0:
            raise ValueError(f"law_temperature must be positive, got {law_temperature!r}")
        for name, value in (("bound", bound), ("pair_weight", pair_weight)):
            if not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value!r}")
        if not math.isfinite(law_bias):
            raise ValueError(f"law_bias must be finite, got {law_bias!r}")
        _family(denoiser_family)
        check_probe("denoiser_probe", denoiser_probe)
        check_probe("base_model_probe", base_model_probe)
        _check_features(features)
        _check_layers(hidden_layers, denoiser_hidden_size)
        self.law = law
        self.features = None if features is None else list(features)
        self.hidden_layers = None if hidden_layers is None else list(hidden_layers)
        self.bound = bound
        self.pair_weight = pair_weight
        self.token_pairs = token_pairs
        self.sees_tokens = sees_tokens
        self.law_bias = law_bias
        self.max_denoising_steps = max_denoising_steps
        self.law_temperature = law_temperature
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.denoiser_hidden_size = denoiser_hidden_size
        self.vocab_size = vocab_size
        self.mask_token_id = mask_token_id
        self.base_model_name_or_path = base_model_name_or_path
        self.base_model_revision = base_model_revision
        self.denoiser_tuning = denoiser_tuning
        self.denoiser_family = denoiser_family
        self.denoiser_probe = denoiser_probe
        self.base_model_probe = base_model_probe
        super().__init__(**kwargs)

    @property
    def seen(self) -> tuple[str, ...]:
        """The features that the scorer sees, in the order of `FEATURES`."""
        # what the regret law learns of a state does not depend on the budget
        left_out = {"position", "budget"} if self.law == "regret" else {"position"}
        chosen = set(FEATURES) - left_out if self.features is None else set(self.features)
        return tuple(name for name in FEATURES if name in chosen)

    @property
    def family(self) -> Family | None:
        """How to call the denoiser, where the table of families does not say it."""
        return _family(self.denoiser_family)

    @property
    def layers_seen(self) -> tuple[int, ...]:
        """The numbers of the hidden states that the scorer sees; empty, if it looks at predictions only."""
        return tuple(self.hidden_layers or (LAST,)) if self.denoiser_hidden_size > 0 else ()

    @classmethod
    def for_denoiser(cls, denoiser: Denoiser, **kwargs: Any) -> "OrderScorerConfig":
        """The configuration of a scorer that fits `denoiser`.

        Raises:
            TypeError: there is no such field, or one is of another type.
            ValueError: a field is out of its range, or the denoiser has no such `hidden_layers`.
        """
        unknown = sorted(kwargs.keys() - cls._known())
        if unknown:
            raise TypeError(f"{', '.join(unknown)} must be fields of {cls.__name__}, but it has none of that name")
        config = denoiser.model.config
        kwargs.setdefault("denoiser_hidden_size", denoiser.hidden_size)
        kwargs.setdefault("token_pairs", kwargs.get("law") == "regret")
        mine = cls(
            vocab_size=config.vocab_size,
            mask_token_id=denoiser.mask_token_id,
            base_model_name_or_path=getattr(config, "_name_or_path", None) or None,
            base_model_revision=getattr(config, "_commit_hash", None),
            **kwargs,
        )
        mine.note_family(denoiser)
        if mine.hidden_layers is not None:
            denoiser.layer_numbers(mine.hidden_layers)
        return mine

    def note_family(self, denoiser: Denoiser) -> None:
        """Keep how this denoiser is called, where the table of families does not say it."""
        own = getattr(denoiser, "own_family", None)  # what stands in for a model in a proof has none
        if own is not None:
            self.denoiser_family = asdict(own)

    @classmethod
    def _known(cls) -> set[str]:
        """Its own and those that every configuration of transformers has."""
        return {*inspect.signature(cls.__init__).parameters, *PreTrainedConfig().to_dict(), "auto_map", "torch_dtype"}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """transformers' own, with a warning that names the keys this version does not know."""
        if config_dict.get("warm_start") is not None:
            raise ValueError(
                f"warm_start must be None, got {config_dict['warm_start']!r}: warm starts left after version 0.1.0; "
                "install hf-learned-order==0.1.0 to use this scorer, or train one with the law 'regret'"
            )
        config_dict = {name: value for name, value in config_dict.items() if name not in FIELDS_LEFT}
        unknown = sorted(name for name in config_dict.keys() - cls._known() if not name.startswith("_"))
        if unknown:
            warnings.warn(
                f"the scorer's configuration has keys that this version of hf_learned_order does not know and that it "
                f"does not use: {', '.join(unknown)}; a newer version may have written them",
                stacklevel=2,
            )
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """transformers' own, which goes on with the default fields where there are none.

        Raises:
            OSError: there is no file, or an empty one.
        """
        where = "/".join(filter(None, (str(pretrained_model_name_or_path), kwargs.get("subfolder"))))
        found, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not found:
            raise OSError(f"{where} must hold a scorer, but it has no {CONFIG_NAME}, or an empty one")
        return found, unused

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """transformers' own; a damaged file raises `ValueError`, `TypeError` or `OSError` and nothing else."""
        with reading(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


# field of a configuration -> its type, and its least and largest value where it has them
_FIELDS: dict[str, tuple[Any, float, float]] = {
    **dict.fromkeys(("law_temperature", "bound", "pair_weight", "law_bias"), (int | float, -math.inf, math.inf)),
    **dict.fromkeys(("hidden_size", "num_attention_heads", "vocab_size"), (int, 1, 2**24)),
    "denoiser_hidden_size": (int, 0, 2**24),
    "num_hidden_layers": (int, 1, 256),
    "max_denoising_steps": (int | None, 1, math.inf),
    "mask_token_id": (int | None, 0, math.inf),
    **dict.fromkeys(("base_model_name_or_path", "base_model_revision", "base_model_probe"), (str | None, 0, 0)),
    **dict.fromkeys(("denoiser_tuning", "denoiser_probe"), (str | None, 0, 0)),
    **dict.fromkeys(("features", "hidden_layers"), (list | tuple | None, 0, 0)),
    "denoiser_family": (dict | None, 0, 0),
}


def _check_fields(values: dict[str, Any]) -> None:
    for name in ("token_pairs", "sees_tokens"):
        if not isinstance(values[name], bool):
            raise TypeError(f"{name} must be of type bool, got {values[name]!r}")
    for name, (kind, low, high) in _FIELDS.items():
        value = values[name]
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(f"{name} must be of type {getattr(kind, '__name__', kind)}, got {value!r}")
        if isinstance(value, int | float) and not (math.isnan(value) or low <= value <= high):
            raise ValueError(f"{name} must be in [{low}, {high}], got {value!r}")
    if values["hidden_size"] % values["num_attention_heads"]:
        raise ValueError(
            f"hidden_size must be a multiple of num_attention_heads, "
            f"got {values['hidden_size']} and {values['num_attention_heads']}"
        )


def _family(facts: dict[str, Any] | None) -> Family | None:
    """Raises `ValueError` where a fact is unknown or out of range."""
    if facts is None:
        return None
    given: dict[str, Any] = {  # JSON knows no tuples
        name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()
    }
    try:
        return Family(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"denoiser_family must hold the fields of a Family, got {facts!r}: {error}") from error


def _check_features(features: list[str] | None) -> None:
    unknown = [name for name in features or () if name not in FEATURES]
    if unknown:
        raise ValueError(f"features must be among {', '.join(FEATURES)}, got {', '.join(map(repr, unknown))}")


def _check_layers(hidden_layers: list[int] | None, denoiser_hidden_size: int) -> None:
    if hidden_layers is None:
        return
    if any(isinstance(index, bool) or not isinstance(index, int) for index in hidden_layers):
        raise TypeError(f"hidden_layers must hold integers, got {hidden_layers!r}")
    if not hidden_layers:
        raise ValueError("hidden_layers must not be empty: a scorer with denoiser_hidden_size 0 sees no hidden states")
    if len(set(hidden_layers)) < len(hidden_layers):
        raise ValueError(f"hidden_layers must be different ones, got {hidden_layers!r}")
    if denoiser_hidden_size == 0:
        raise ValueError(f"hidden_layers must be None with denoiser_hidden_size 0, got {hidden_layers!r}")
