"""The step map of a response: at which denoiser step each of its tokens was unmasked, for reinforcement learning."""

from hf_learned_order.decoding.outputs import LearnedOrderOutput


def step_maps(output: LearnedOrderOutput) -> list[list[int]]:
    """The step, from 1, that unmasked each token of each response, up to the response's end.

    One list a row, aligned with the tokens of the response, as SGLang's `meta_info["step_maps"]` is proposed to be
    (sgl-project/sglang#27943): trajectory replay takes these.

    Args:
        output: of `generate(..., return_dict_in_generate=True)`, with `order`, and not of `infill=True`.

    Raises:
        ValueError: it has no `order`, or is one of infilling.
    """
    if output.order is None:
        raise ValueError("output must have order, but has none: leave out output_order=False in generate")
    if output.order.shape == output.sequences.shape:
        raise ValueError("output must be of masks behind a prompt, got one of infill=True, which has no response")
    return [row[:length] for row, length in zip(output.order.tolist(), output.length.tolist(), strict=True)]
