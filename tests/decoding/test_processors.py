"""transformers' logits processors on a canvas: each is given what it reads, or is refused."""

import pytest
import torch
import transformers
from models import EOS, MASK, PAD, tiny_model
from transformers import (
    ExponentialDecayLengthPenalty,
    ForcedEOSTokenLogitsProcessor,
    GenerationConfig,
    LogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WatermarkLogitsProcessor,
)

from hf_learned_order.decoding.processors import AROUND, GRAMMARS, LENGTH, PREFIX, REFUSED, refusal
from hf_learned_order.interface.attach import attach

IDS, MASKS = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
WIDTH, LENGTH_OF = 4, 8
PARALLEL = {"sampler": "threshold", "sampler_config": {"threshold": 0.3}}


@pytest.fixture(scope="module")
def model():
    return attach(tiny_model("llama"), mask_token_id=MASK)


def decoded(model, *processors, **options):
    options = {"sampler": "top_prob", "max_new_tokens": LENGTH_OF, "eos_token_id": [], "pad_token_id": PAD, **options}
    out = model.generate(IDS, MASKS, logits_processor=list(processors), **options)
    return out[:, WIDTH:].tolist()


def by_hand(model, processors):
    """From left to right, one token a step, each processor given what stands before it, as transformers does."""
    denoiser, rows = model._denoiser(), []
    for row in range(2):
        canvas = torch.cat([IDS[row], torch.full((LENGTH_OF,), MASK)])[None]
        mask = torch.cat([MASKS[row], torch.ones(LENGTH_OF, dtype=torch.long)])[None]
        for place in range(WIDTH, WIDTH + LENGTH_OF):
            with torch.no_grad():
                scores = denoiser(canvas, mask, place)[0][:, 0].float()
            scores[:, MASK] = -torch.inf
            before = canvas[:, :place].masked_fill(mask[:, :place] == 0, MASK)
            for processor in processors:
                scores = processor(before, scores)
            scores[:, MASK] = -torch.inf
            canvas[0, place] = scores.argmax()
        rows.append(canvas[0, WIDTH:].tolist())
    return rows


class TestByLength:
    def test_no_eos_before_the_least_length(self, model):
        plain = decoded(model)
        eos = plain[0][1]
        for processor in (
            MinNewTokensLengthLogitsProcessor(WIDTH, 5, eos, device="cpu"),
            MinLengthLogitsProcessor(WIDTH + 5, eos, device="cpu"),
        ):
            for options in ({}, PARALLEL):
                rows = decoded(model, processor, eos_token_id=[eos], pad_token_id=PAD, **options)
                assert all(eos not in row[:5] for row in rows)
        assert decoded(model, eos_token_id=[eos])[0][2:] == [PAD] * 6

    def test_eos_is_forced_at_the_last_place(self, model):
        plain = decoded(model)
        for options in ({}, PARALLEL, {"block_length": 4}):
            rows = decoded(model, ForcedEOSTokenLogitsProcessor(WIDTH + LENGTH_OF, 30, device="cpu"), **options)
            assert [row[-1] for row in rows] == [30, 30] != [row[-1] for row in plain]

    def test_suppressed_at_the_beginning_and_favoured_at_the_end(self, model):
        plain = decoded(model)
        rows = decoded(model, SuppressTokensAtBeginLogitsProcessor([row[0] for row in plain], WIDTH, device="cpu"))
        assert all(row[0] not in [other[0] for other in plain] for row in rows)
        penalty = ExponentialDecayLengthPenalty((2, 50.0), EOS, WIDTH)
        rows = decoded(model, penalty)
        assert all(row[4:] == [EOS] * 4 for row in rows)
        assert any(EOS not in row[4:] for row in plain)

    def test_by_setting_or_by_hand(self, model):
        eos = decoded(model)[0][1]
        settings = {"min_new_tokens": 5, "forced_eos_token_id": 30, "begin_suppress_tokens": [decoded(model)[1][0]]}
        by_setting = decoded(model, eos_token_id=[eos], **settings)
        config = GenerationConfig(**settings)
        assert decoded(model, eos_token_id=[eos], generation_config=config) == by_setting
        given = [
            MinNewTokensLengthLogitsProcessor(WIDTH, 5, eos, device="cpu"),
            ForcedEOSTokenLogitsProcessor(WIDTH + LENGTH_OF, 30, device="cpu"),
            SuppressTokensAtBeginLogitsProcessor(settings["begin_suppress_tokens"], WIDTH, device="cpu"),
        ]
        assert decoded(model, *given, eos_token_id=[eos]) == by_setting
        assert decoded(model, min_length=WIDTH + 5, eos_token_id=[eos]) == decoded(
            model, min_new_tokens=5, eos_token_id=[eos]
        )
        assert decoded(model, min_new_tokens=5) == decoded(model)  # nothing ends a response
        decay = decoded(model, exponential_decay_length_penalty=(2, 50.0), eos_token_id=[EOS])
        assert all(EOS in row for row in decay)

    def test_not_within_prompts(self, model):
        holes = torch.tensor([[5, MASK, 6]])
        with pytest.raises(ValueError, match="must not hold MinLengthLogitsProcessor: infill=True has no response"):
            model.generate(holes, sampler="iid", infill=True, logits_processor=[MinLengthLogitsProcessor(3, EOS)])
        model.generation_config.min_new_tokens = 2  # of responses
        model.generate(holes, sampler="iid", infill=True)
        model.generation_config.min_new_tokens = None


def counted(row, seen):
    return [10 + len(seen) - WIDTH]


class TestByPrefix:
    PROCESSORS = {
        "pair": lambda: SequenceBiasLogitsProcessor([[[7, 8], -30.0], [[9], 2.0], [[5, 6, 7], 20.0]]),
        "words": lambda: NoBadWordsLogitsProcessor([[5, 6], [7], [9, 10, 11]]),
        "ngram": lambda: NoRepeatNGramLogitsProcessor(2),
        "constrained": lambda: PrefixConstrainedLogitsProcessor(lambda row, seen: [int(seen[-1] + 1) % 40, 4], 1),
        "watermark": lambda: WatermarkLogitsProcessor(40, "cpu", bias=5.0),
    }

    @pytest.mark.parametrize("name", PROCESSORS)
    def test_what_stands_before_is_known_from_left_to_right(self, model, name):
        processors = [self.PROCESSORS[name](), RepetitionPenaltyLogitsProcessor(1.5)]
        expected = by_hand(model, processors)
        for options in ({}, {"block_length": 4}, {"max_denoising_steps": LENGTH_OF}):
            assert decoded(model, *processors, sampler="left_to_right", **options) == expected

    @pytest.mark.parametrize("name", ["ngram", "constrained", "watermark"])
    def test_elsewhere_it_is_not(self, model, name):
        processor = self.PROCESSORS[name]()
        message = f"logits_processor must not hold {type(processor).__name__}: it reads the tokens before a position"
        for options in ({}, PARALLEL, {"sampler": "left_to_right", "max_denoising_steps": LENGTH_OF - 1}):
            with pytest.raises(ValueError, match=message):
                decoded(model, processor, **options)

    def test_by_setting_or_by_hand(self, model):
        left = {"sampler": "left_to_right"}
        with pytest.raises(ValueError, match=r"it reads the tokens before a position, .* got TopProbSampler"):
            decoded(model, no_repeat_ngram_size=2)
        for settings, processor in (
            ({"no_repeat_ngram_size": 2}, NoRepeatNGramLogitsProcessor(2)),
            ({"bad_words_ids": [[5, 6], [7]]}, NoBadWordsLogitsProcessor([[5, 6], [7]])),
            ({"sequence_bias": [[[7, 8], -30.0]]}, SequenceBiasLogitsProcessor([[[7, 8], -30.0]])),
        ):
            expected = decoded(model, processor, **left)
            assert decoded(model, **settings, **left) == expected
            assert decoded(model, generation_config=GenerationConfig(**settings), **left) == expected

    def test_allowed_tokens(self, model):
        rows = decoded(model, prefix_allowed_tokens_fn=counted, sampler="left_to_right")
        assert rows == [list(range(10, 10 + LENGTH_OF))] * 2

    def test_rows_keep_their_numbers_when_others_have_ended(self, model):
        asked = []

        def allowed(row, seen):
            asked.append((row, len(seen)))
            return [EOS if row == 0 else 20]

        rows = decoded(model, prefix_allowed_tokens_fn=allowed, sampler="left_to_right", eos_token_id=[EOS])
        assert rows == [[EOS, *[PAD] * 7], [20] * 8]
        rows = model.generate(
            IDS, MASKS, prefix_allowed_tokens_fn=allowed, sampler="left_to_right", max_new_tokens=2, do_sample=True,
            num_return_sequences=2, eos_token_id=[EOS], pad_token_id=PAD,
        )  # fmt: skip
        assert rows[:, WIDTH:].tolist() == [[EOS, PAD]] * 2 + [[20, 20]] * 2

    def test_single_words_are_forbidden_anywhere(self, model):
        banned = sorted({token for row in decoded(model) for token in row})
        for options in ({}, PARALLEL):
            words = [[token] for token in banned]
            rows = decoded(model, NoBadWordsLogitsProcessor(words), **options)
            assert not {token for row in rows for token in row} & set(banned)
            assert decoded(model, SuppressTokensLogitsProcessor(banned, device="cpu"), **options) == rows
            assert decoded(model, bad_words_ids=words, **options) == rows

    def test_within_prompts(self, model):
        holes = torch.tensor([[5, MASK, 6, MASK, MASK]])
        out = model.generate(
            holes, sampler="left_to_right", infill=True, prefix_allowed_tokens_fn=lambda row, seen: [10 + len(seen)]
        )
        assert out.tolist() == [[5, 11, 6, 13, 14]]


class TestAround:
    """Words of several tokens, whatever the order: they are completed from either side."""

    @pytest.mark.parametrize("sampler", ["top_prob", "margin", "entropy", "random", "position", "left_to_right"])
    def test_sequences_that_may_not_be(self, model, sampler):
        options = {"sampler": sampler, "seed": 0}
        plain = decoded(model, **options)
        whole = [[*given[MASKS[row] > 0].tolist(), *plain[row]] for row, given in enumerate(IDS)]
        words = [row[i : i + size] for row in whole for size in (2, 3) for i in range(1, len(row) - size, 2)]
        rows = decoded(model, bad_words_ids=words, **options)
        assert rows == decoded(model, NoBadWordsLogitsProcessor(words), **options) != plain
        for row, given in zip(rows, IDS, strict=True):
            found = [*given.tolist(), *row]
            spelled = [
                found[i : i + len(word)] for word in words for i in range(WIDTH + 1 - len(word), WIDTH + LENGTH_OF)
            ]
            assert not [word for word in words if word in spelled]

    def test_what_stands_behind_counts(self, model):
        holes = torch.tensor([[7, MASK, 6, 9, 8, MASK]])
        options = {"sampler": "top_prob", "infill": True}
        (plain,) = model.generate(holes, **options).tolist()
        (other,) = model.generate(holes, bad_words_ids=[[plain[1], 6, 9]], **options).tolist()
        assert other[1] != plain[1]
        (wanted,) = model.generate(holes, sequence_bias=[[[30, 6], 500.0], [[8, 31], 500.0]], **options).tolist()
        assert wanted == [7, 30, 6, 9, 8, 31]

    def test_where_positions_go_together(self, model):
        together = ({"max_denoising_steps": LENGTH_OF - 1}, PARALLEL, {"sampler": "iid"}, {"verify": "margin"})
        for options in together:
            with pytest.raises(ValueError, match=r"two positions of one step could complete a sequence together"):
                decoded(model, bad_words_ids=[[5, 6]], **options)


class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_by_name(self, name):
        kind = getattr(transformers.generation.logits_process, name)
        assert refusal(object.__new__(kind)) == REFUSED[name]

    def test_every_class_of_transformers_is_known(self):
        """What a new release brings has to be looked at."""
        processes = transformers.generation.logits_process
        kinds = {
            name
            for name, kind in vars(processes).items()
            if isinstance(kind, type) and issubclass(kind, LogitsProcessor) and kind is not LogitsProcessor
        }
        anywhere = {name for name in kinds if name.endswith("Warper")} | {
            "InfNanRemoveLogitsProcessor", "LogitNormalization", "RepetitionPenaltyLogitsProcessor",
            "SuppressTokensLogitsProcessor",
        }  # fmt: skip
        known = {kind.__name__ for kind in (*LENGTH, AROUND, *PREFIX)} | anywhere | set(REFUSED)
        assert kinds - known <= {"NoBadWordsLogitsProcessor"}

    def test_message(self, model):
        processor = transformers.EncoderNoRepeatNGramLogitsProcessor(2, IDS)
        with pytest.raises(ValueError, match="must not hold EncoderNoRepeatNGramLogitsProcessor: there is no encoder"):
            decoded(model, processor)

    @pytest.mark.parametrize("library", GRAMMARS)
    def test_grammars(self, model, library):
        kind = type("GrammarProcessor", (LogitsProcessor,), {"__module__": f"{library}.contrib.hf"})
        with pytest.raises(ValueError, match="must not hold GrammarProcessor: a grammar is followed from token to"):
            decoded(model, kind())

    def test_ones_own_sees_prompt_and_canvas(self, model):
        class Own(LogitsProcessor):
            def __call__(self, input_ids, scores):
                assert input_ids.shape[1] == WIDTH + LENGTH_OF
                return scores

        assert decoded(model, Own()) == decoded(model)
