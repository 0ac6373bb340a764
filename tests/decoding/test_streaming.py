"""A streamer sees the prompt and then exactly the final tokens, each once, in order."""

import threading

import pytest
import torch
from models import EOS, MASK, PAD, PLAIN, VOCAB, WORDS, tiny_model, tiny_tokenizer
from test_loop import RemasksOnce, denoiser_of, padded, response, words
from transformers import TextIteratorStreamer, TextStreamer
from transformers.generation.streamers import BaseStreamer, TextDiffusionStreamer

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.remasking import ReMDMSampler, WINOSampler
from hf_learned_order.decoding.samplers.table import make_sampler
from hf_learned_order.interface.attach import attach

SOME_EOS = [EOS, *WORDS[::6]]
RULES = [make_sampler(name) for name in PLAIN if name != "learned_order"]


class Collector(BaseStreamer):
    def __init__(self):
        self.blocks, self.drafts, self.ended = [], [], 0

    def put(self, value):
        assert not self.ended
        self.blocks.append(value)

    def end(self):
        self.ended += 1


class Drafts(Collector):
    def put_draft(self, value):
        self.drafts.append((len(self.blocks), value))  # as it is: it must not change behind its back


def streamed(streamer, *, rows=3, eos=SOME_EOS, **options):
    ids = words(rows, 4)
    options = {"sampler": make_sampler("top_prob"), "max_new_tokens": 8, **options}
    output = decode(denoiser_of("bert"), ids, streamer=streamer, eos_token_id=eos, pad_token_id=PAD, **options)
    return ids, output


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("eos", [None, SOME_EOS], ids=["full", "eos"])
@pytest.mark.parametrize("block_length", [None, 2])
@pytest.mark.parametrize(
    "rule",
    [*RULES, RemasksOnce(), ReMDMSampler(eta=1.0), WINOSampler(draft=0.3, verify=0.9)],
    ids=lambda r: type(r).__name__,
)
def test_exactly_the_final_tokens(rule, block_length, eos, rows):
    streamer = Collector()
    ids, output = streamed(streamer, rows=rows, eos=eos, sampler=rule, block_length=block_length)
    assert torch.equal(streamer.blocks[0], ids)
    assert all(len(block) == rows and block.shape[1] > 0 for block in streamer.blocks)
    seen = torch.cat(streamer.blocks, 1)
    assert torch.equal(seen, output.sequences[:, : seen.shape[1]])
    assert streamer.ended == 1
    # what is missing is padding in every row, and the last column is not
    assert (output.sequences[:, seen.shape[1] :] == PAD).all()
    lengths = [next((i + 1 for i, t in enumerate(row) if eos and t in eos), 8) for row in response(output).tolist()]
    assert seen.shape[1] == 4 + max(lengths)


def test_tokens_come_as_soon_as_they_are_settled():
    streamer = Collector()
    streamed(streamer, rows=1, eos=None, sampler=make_sampler("left_to_right"))
    assert [block.shape[1] for block in streamer.blocks] == [4] + [1] * 8


def test_drafts_are_the_canvas_as_it_is():
    streamer = Drafts()
    _, output = streamed(streamer, rows=2, eos=None)
    assert len(streamer.drafts) == int(output.nfe.max()) - 1  # the last step leaves nothing to draft
    for step, (count, value) in enumerate(streamer.drafts, 1):
        draft = torch.cat([*streamer.blocks[1:count], value], 1)
        known = (output.order > 0) & (output.order <= step)
        assert torch.equal(draft, torch.where(known, response(output), MASK))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["bert", "qwen2"])
@pytest.mark.parametrize("block_length", [None, 3])
@pytest.mark.parametrize("rule", [make_sampler("entropy"), make_sampler("left_to_right"), RemasksOnce()], ids=repr)
def test_masks_within_prompts(rule, block_length, family, side):
    """What stands before the first mask of any row is the prompt; all that follows comes when it is final in each."""
    rows = [words(n, seed=n) for n in (9, 6, 8)]
    for row in rows:
        row[3] = row[-2:] = MASK
    ids, mask = padded(rows, side)
    streamer = Drafts()
    options = {"sampler": rule, "infill": True, "block_length": block_length}
    output = decode(denoiser_of(family), ids, mask, streamer=streamer, **options)
    prompt = 3  # of the longest row
    assert torch.equal(streamer.blocks[0], ids[:, :prompt])
    assert torch.equal(torch.cat(streamer.blocks, 1), output.sequences)
    if rule == make_sampler("left_to_right"):
        assert len(streamer.blocks) > 3
    assert streamer.ended == 1
    for count, draft in streamer.drafts:
        whole = torch.cat([*streamer.blocks[:count], draft], 1)
        assert torch.equal(whole[ids != MASK], ids[ids != MASK])
    if block_length is None:
        assert len(streamer.drafts) == int(output.nfe.max()) - 1


class TestText:
    @staticmethod
    def model():
        return attach(tiny_model("llama"), tokenizer=tiny_tokenizer())

    def run(self, streamer, **options):
        inputs = tiny_tokenizer()("w5 w6 w7", return_tensors="pt")
        return self.model().generate(**inputs, sampler="entropy", max_new_tokens=6, streamer=streamer, **options)

    @pytest.mark.parametrize("skip_prompt", [False, True])
    @pytest.mark.parametrize("kind", [TextStreamer, TextDiffusionStreamer])
    def test_printed(self, capsys, kind, skip_prompt):
        tokenizer = tiny_tokenizer()
        output = self.run(kind(tokenizer, skip_prompt=skip_prompt))
        printed = capsys.readouterr().out
        text = tokenizer.decode(output[0, 3 if skip_prompt else 0 :]).partition(" [PAD]")[0]
        if kind is TextStreamer:
            assert printed == text + "\n"
        else:  # drafts are overwritten by control sequences
            assert printed.endswith(text.split()[-1] + "\n")
            assert "\033[33m" in printed

    @pytest.mark.parametrize("skip_prompt", [False, True])
    def test_a_prompt_with_masks_is_printed_filled(self, capsys, skip_prompt):
        tokenizer = tiny_tokenizer()
        inputs = tokenizer("w5 w6 [MASK] w7 [MASK] w8", return_tensors="pt")
        streamer = TextStreamer(tokenizer, skip_prompt=skip_prompt)
        output = self.model().generate(**inputs, sampler="entropy", infill=True, streamer=streamer)
        assert capsys.readouterr().out == tokenizer.decode(output[0, 2 if skip_prompt else 0 :]) + "\n"

    def test_iterated_from_another_thread(self):
        streamer = TextIteratorStreamer(tiny_tokenizer(), skip_prompt=True, timeout=60)
        outputs = []
        thread = threading.Thread(target=lambda: outputs.append(self.run(streamer)))
        thread.start()
        text = "".join(streamer)
        thread.join()
        assert text == tiny_tokenizer().decode(outputs[0][0, 3:]).partition(" [PAD]")[0]

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"block_length": 4}, ValueError),  # does not divide the canvas: before the first `put`
            ({"foo": 3}, ValueError),
            ({"sampler_config": [1]}, TypeError),
            ({"logits_processor": [lambda ids, scores: 1 / 0]}, ZeroDivisionError),  # within a step
            ({"sampler": None, "num_beams": 2}, ValueError),  # transformers' own way
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_an_error_ends_it(self, options, error):
        """Who reads the stream in another thread does not wait for ever."""
        streamer, raised = TextIteratorStreamer(tiny_tokenizer(), skip_prompt=True, timeout=60), []

        def target():
            try:
                inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "max_new_tokens": 6, "streamer": streamer}
                self.model().generate(**{"sampler": "left_to_right", **inputs, **options})
            except (ValueError, TypeError, ZeroDivisionError) as problem:
                raised.append(type(problem))

        thread = threading.Thread(target=target)
        thread.start()
        assert isinstance("".join(streamer), str)
        thread.join()
        assert raised == [error]

    def test_an_error_of_the_streamer_is_the_one_that_is_told(self):
        class Broken(Collector):
            def put(self, value):
                raise ZeroDivisionError

            def end(self):
                super().end()
                raise KeyError

        streamer = Broken()
        with pytest.raises(ZeroDivisionError):
            self.run(streamer)
        assert streamer.ended == 1

    def test_eos_is_the_last_thing_to_be_said(self, capsys):
        output = self.run(TextStreamer(tiny_tokenizer(), skip_prompt=True), eos_token_id=list(range(VOCAB)))
        assert capsys.readouterr().out == tiny_tokenizer().decode(output[0, 3:4]) + "\n"

    def test_several_rows_are_too_many_for_text(self):
        with pytest.raises(ValueError, match="only supports batch size 1"):
            self.run(TextStreamer(tiny_tokenizer()), do_sample=True, num_return_sequences=2)
