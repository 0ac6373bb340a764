"""The task metric of an evaluation in training, as `Trainer` takes it: `compute_metrics=AnswerMetrics(tokenizer)`."""

from transformers import EvalPrediction, PreTrainedTokenizerBase

from hf_learned_order.gsm8k import answer_of


class AnswerMetrics:
    """From token ids of decoded responses and of references [rows, canvas] to what of them is right.

    `same`: share of responses whose text, up to the first EOS, is the reference's; `accuracy`: where references have an
    answer behind a last `#`, as those of GSM8K's equations, the share of those that the response gives.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        responses, references = (
            # pyrefly: ignore[bad-argument-type] (one array each)
            self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            for ids in (prediction.predictions, prediction.label_ids)
        )
        pairs = list(zip(responses, references, strict=True))
        measured = {"same": sum(response == reference for response, reference in pairs) / len(pairs)}
        asked = [(response, reference) for response, reference in pairs if answer_of(reference)]
        if asked:
            measured["accuracy"] = sum(answer_of(given) == answer_of(right) for given, right in asked) / len(asked)
        return measured
