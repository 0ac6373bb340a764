"""Which hidden states of a model, by number: as in the tuple `hidden_states` that transformers' models return.

Number i is what goes into layer i, so 0 is the embeddings. The number of layers, or -1, is the last one, which the
logits come from: behind the final norm where the model has one.
"""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

LAST = -1


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of a transformer: the first list of modules in it.

    Raises:
        ValueError: there is none, or it is not as long as the configuration says.
    """
    found = next((module for module in model.modules() if isinstance(module, nn.ModuleList)), None)
    count = getattr(model.config, "num_hidden_layers", None)
    if found is None or count not in (None, len(found)):
        raise ValueError(
            f"hidden_layers must be None or [-1] with {type(model).__name__}: its layers, of which its configuration "
            f"counts {count}, are not its first list of modules ({'none' if found is None else len(found)})"
        )
    return found


def layer_numbers(model: PreTrainedModel, indices: Sequence[int]) -> tuple[int, ...]:
    """`indices` with those from the end counted from the start, but for the last one, which is `LAST`.

    Raises:
        ValueError: one is out of range, or two are the same; the layers of the model are not found.
    """
    if tuple(indices) == (LAST,):
        return (LAST,)
    count, shown = len(layers_of(model)), list(indices)
    outside = [index for index in indices if not -count - 1 <= index <= count]
    if outside:
        raise ValueError(
            f"hidden_layers must be in [{-count - 1}, {count}] with {type(model).__name__} of {count} layers, "
            f"got {shown}"
        )
    numbers = [index % (count + 1) for index in indices]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"hidden_layers must be different ones, got {shown}: with {count} layers these are {numbers}")
    return tuple(LAST if number == count else number for number in numbers)
