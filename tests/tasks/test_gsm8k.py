import json
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_learned_order.tasks.gsm8k import (
    ALPHABET,
    MAX_EXPRESSIONS,
    Chain,
    ChainError,
    Expression,
    answer_of,
    chains_of,
    parse_chain,
    read_rows,
    to_text,
)

FILES = Path(__file__).parents[3] / "shared/data/gsm8k"
needs_files = pytest.mark.skipif(not FILES.is_dir(), reason=f"the published GSM8K files are not in {FILES}")

SOLUTION = """Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.
She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer's market.
#### 18"""


def evaluate(text: str) -> Fraction:
    """Python's own arithmetic and precedence on exact numbers."""
    return eval(re.sub(r"\d+\.?\d*|\.\d+", lambda number: f"Fraction('{number[0]}')", text), {"Fraction": Fraction})


def solution_of(*expressions: str) -> str:
    """A solution whose stated results are right."""
    results = [to_text(evaluate(expression)) for expression in expressions]
    steps = [f"<<{expression}={result}>>" for expression, result in zip(expressions, results, strict=True)]
    return "\n".join(steps) + f"\n#### {results[-1]}"


def check_texts(chain: Chain) -> list[Fraction]:
    """The results of a chain, after checking both of its texts by other means than the package's own arithmetic."""
    prompt, response = chain.texts()
    assert set(prompt + response) <= set(ALPHABET)
    *equations, answer = response.split(" ")
    results: list[Fraction] = []
    for named, equation in zip(prompt.split(";"), equations, strict=True):
        expression, result = equation.split("=")
        letters = {chr(ord("a") + i): to_text(value) for i, value in enumerate(results)}
        assert re.sub("[a-l]", lambda name, letters=letters: letters[name[0]], named) == expression
        results.append(evaluate(expression))
        assert Fraction(result) == results[-1]
    assert answer == f"#{result}"
    assert answer_of(response) == result
    assert chain.results() == results
    return results


# ---- chains ------------------------------------------------------------------------------------------------------


def test_the_first_test_problem():
    assert parse_chain(SOLUTION).texts() == ("16-3-4;a*2", "16-3-4=9 9*2=18 #18")


@pytest.mark.parametrize(
    ("expressions", "prompt", "response"),
    [
        (["20/100*60"], "20/100*60", "20/100*60=12 #12"),
        ([".5*3", "1.5+2.50"], "0.5*3;a+2.5", "0.5*3=1.5 1.5+2.5=4 #4"),
        (["2+2", "8/2", "4*3"], "2+2;8/2;b*3", "2+2=4 8/2=4 4*3=12 #12"),  # the latest of equal results
        (["2*(3+4)-1", "13-20"], "2*(3+4)-1;a-20", "2*(3+4)-1=13 13-20=-7 #-7"),
        (["0.5+0.5", "1+1"], "0.5+0.5;a+a", "0.5+0.5=1 1+1=2 #2"),
        (["10.*3"], "10*3", "10*3=30 #30"),
    ],
)
def test_texts(expressions, prompt, response):
    chain = parse_chain(solution_of(*expressions))
    assert chain.texts() == (prompt, response)
    check_texts(chain)


numbers = st.one_of(
    st.integers(0, 9999).map(str), st.decimals(0, 50, places=2).map(str), st.integers(1, 9).map(lambda n: f".{n}")
)
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join), inner.map(lambda text: f"({text})")
    ),
    max_leaves=4,
)


@given(texts=st.lists(expressions, min_size=1, max_size=3))
def test_arithmetic_is_exact(texts):
    try:
        solution = solution_of(*texts)
    except (ZeroDivisionError, ChainError):
        assume(False)
    chain = parse_chain(solution)
    assert check_texts(chain) == [evaluate(text) for text in texts]


def test_whole_results_are_integers():
    """0.5 + 0.5 is as whole as 1: what is whole decides what a resampled chain may be."""
    for text in ("0.5+0.5", "2.5-0.5", "0.2*100", "9/3", "1.5-0.5*3"):
        assert [type(result) for result in parse_chain(solution_of(text)).results()] == [int]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-12, "-12"),
        (Fraction(1, 4), "0.25"),
        (Fraction(-5, 2), "-2.5"),
        (Fraction(7), "7"),
        (Fraction(1, 1000), "0.001"),
        (Fraction(1234567, 10**6), "1.234567"),
    ],
)
def test_to_text(value, text):
    assert to_text(value) == text


@pytest.mark.parametrize("value", [Fraction(1, 3), Fraction(1, 10**7)])
def test_to_text_without_a_short_decimal(value):
    with pytest.raises(ChainError, match="a number has no short decimal form"):
        to_text(value)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so\n#### 1,234", "1234"),
        ("1+1=2 #2", "2"),
        ("#1 #-0.5 ", "-0.5"),
        ("# 70 000", "70000"),
        ("none", ""),
        ("#", ""),
    ],
)
def test_answer_of(text, answer):
    assert answer_of(text) == answer


PLAIN = "an expression is not plain arithmetic"
REASONS = [
    ("It is 3.\n#### 3", "no calculator annotation"),
    ("<<1+1=2>>" * (MAX_EXPRESSIONS + 1) + "#### 2", "more than 12 steps"),
    *[
        (f"<<{left}=5>> #### 5", PLAIN)
        for left in (
            "",
            "5%",
            "x+1",
            "2 + 3",
            "-5+10",
            "5+",
            "(5",
            "5)",
            "()",
            "2(3)",
            "5.5.5",
            "5**1",
            "5//1",
            "1,000",
        )
    ],
    ("<<2+2=5>> #### 5", "a stated result is not exact"),
    ("<<1/3=.33>> #### .33", "a stated result is not exact"),
    ("<<1/3=1/3>> #### 1/3", "a number has no short decimal form"),
    ("<<0.00000005*100000000=5>> #### 5", "a number has no short decimal form"),
    ("<<5/0=5>> #### 5", "a division by zero"),
    ("<<5/(3-3)=5>> #### 5", "a division by zero"),
    ("<<5>> #### 5", "a number cannot be read"),
    ("<<2+3=five>> #### 5", "a number cannot be read"),
    ("<<2+3=5/0>> #### 5", "a number cannot be read"),
    ("<<2+3=5>> and no answer", "a number cannot be read"),
    ("<<2+3=5>> #### 6", "the answer is not the last result"),
]


@pytest.mark.parametrize(("solution", "reason"), REASONS)
def test_unusable_solutions(solution, reason):
    with pytest.raises(ChainError, match=f"^{reason}$"):
        parse_chain(solution)


def test_twelve_steps_are_enough_for_the_alphabet():
    chain = parse_chain(solution_of(*["1+1"] * MAX_EXPRESSIONS))
    check_texts(chain)
    longest = parse_chain(solution_of("1+1", *[f"{2**k}+{2**k}" for k in range(1, MAX_EXPRESSIONS)]))
    assert longest.texts()[0].endswith("k+k")


def test_chains_of_counts_what_it_leaves_out():
    rows = [{"question": "?", "answer": solution} for solution, _ in REASONS]
    chains, reasons = chains_of([{"question": "?", "answer": SOLUTION}, *rows])
    assert chains == [parse_chain(SOLUTION)]
    assert reasons == Counter(reason for _, reason in REASONS)


def test_slots_are_the_neighbours_of_an_operand():
    expression = Expression(("", "/", "", "*", "(", "", ")"), (20, 100, 60))
    assert expression.slots() == [("", "/"), ("/", "*"), ("(", ")")]


# ---- files -------------------------------------------------------------------------------------------------------


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


GOOD = json.dumps({"question": "Wie viele Äpfel?", "answer": SOLUTION, "more": 1})


def test_read_rows(tmp_path):
    rows = read_rows(write(tmp_path / "rows.jsonl", GOOD, "", GOOD))
    assert rows == [{"question": "Wie viele Äpfel?", "answer": SOLUTION}] * 2


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ('{"question": "?"', "not a JSON object"),
        ("[1, 2]", "must have the strings 'question' and 'answer'"),
        ('{"question": "?"}', "must have the strings 'question' and 'answer'"),
        ('{"question": "?", "answer": 5}', "must have the strings 'question' and 'answer'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, broken, message):
    path = write(tmp_path / "broken.jsonl", GOOD, "", broken, GOOD)
    with pytest.raises(ValueError, match=f"broken.jsonl, line 3: {message}"):
        read_rows(path)


def test_an_empty_file(tmp_path):
    with pytest.raises(ValueError, match=r"empty.jsonl: must hold at least one problem, but it is empty"):
        read_rows(write(tmp_path / "empty.jsonl", "", ""))


@needs_files
@pytest.mark.parametrize(
    ("file", "usable", "last", "none", "plain"),
    [("train.jsonl", 6984, 375, 95, 19), ("test.jsonl", 1202, 92, 18, 7)],
)
def test_the_published_problems(file, usable, last, none, plain):
    chains, reasons = chains_of(read_rows(FILES / file))
    assert len(chains) == usable
    assert reasons == {"the answer is not the last result": last, "no calculator annotation": none, PLAIN: plain}
    for chain in chains:
        check_texts(chain)
