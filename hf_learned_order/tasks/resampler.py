"""`Resampler`: chains like those of GSM8K, with other numbers."""

import random
from collections import defaultdict
from collections.abc import Sequence

from hf_learned_order.tasks.gsm8k import Chain, ChainError, Expression, Number


class Resampler:
    """Draws chains like those it was given, with other numbers.

    With probability `pieces` a run of consecutive expressions of a chain stands for the whole one, and with probability
    `drills` two to six unrelated expressions of different chains: there no result can be copied from a later operand.

    The numbers of an expression are kept together with probability `keep`. Otherwise each is replaced by one that
    stands in the same slot (the tokens on either side) somewhere in `chains`, by another of as many digits, or kept. A
    draw counts when its result is printable, not negative, whole exactly where the original one is whole, and at most
    `growth` digits longer than that; expressions that cannot be met after `tries` draws keep their numbers.
    """

    def __init__(
        self,
        chains: Sequence[Chain],
        *,
        keep: float = 0.0,
        growth: int = 6,
        pieces: float = 0.0,
        drills: float = 0.0,
        tries: int = 20,
    ):
        if not chains:
            raise ValueError("chains must hold at least one chain, but it is empty")
        self.chains = chains
        self.keep = keep
        self.growth = growth
        self.pieces = pieces
        self.drills = drills
        self.tries = tries
        self.pool: dict[tuple[str, str], list[Number]] = defaultdict(list)
        for chain in chains:
            for expression in chain.expressions:
                for slot, operand in zip(expression.slots(), expression.operands, strict=True):
                    if not isinstance(operand, tuple):
                        self.pool[slot].append(operand)

    def draw(self, rng: random.Random) -> Chain:
        """One chain: a template uniformly at random, its numbers replaced from left to right."""
        while True:
            template = self._template(rng)
            originals = template.results()
            results: list[Number] = []
            expressions = []
            for expression, original in zip(template.expressions, originals, strict=True):
                drawn = self._redraw(expression, results, original, rng)
                if drawn is None:
                    break
                expressions.append(drawn)
                results.append(drawn.value(results))
            else:
                return Chain(tuple(expressions))

    def _template(self, rng: random.Random) -> Chain:
        kind = rng.random()
        if kind < self.drills:
            singles = [self._part(rng, length=1).expressions[0] for _ in range(rng.randint(2, 6))]
            return Chain(tuple(singles))
        return self._part(rng) if kind < self.drills + self.pieces else rng.choice(self.chains)

    def _part(self, rng: random.Random, length: int | None = None) -> Chain:
        chain = rng.choice(self.chains)
        count = len(chain.expressions)
        if length is None:
            return chain.piece(*sorted(rng.sample(range(count + 1), 2)))
        first = rng.randrange(count - length + 1)
        return chain.piece(first, first + length)

    def _redraw(
        self, expression: Expression, results: list[Number], original: Number, rng: random.Random
    ) -> Expression | None:
        slots = expression.slots()
        first = self.tries if rng.random() < self.keep else 0
        for attempt in range(first, self.tries + 1):
            keep = attempt == self.tries
            operands = tuple(
                operand if keep or isinstance(operand, tuple) else self._number(operand, slot, rng)
                for slot, operand in zip(slots, expression.operands, strict=True)
            )
            candidate = Expression(expression.tokens, operands)
            try:
                value = candidate.value(results)
            except ChainError:
                continue
            if self._printable(value, original) and isinstance(value, int) == isinstance(original, int):
                return candidate
        return None

    def _number(self, original: Number, slot: tuple[str, str], rng: random.Random) -> Number:
        kind = rng.random()
        if kind < 0.2:
            return original
        if kind < 0.8 or not isinstance(original, int):
            return rng.choice(self.pool[slot])
        digits = len(str(original))
        zeros = digits - len(str(original).rstrip("0")) if original else 0
        return rng.randrange(10 ** (digits - zeros - 1), 10 ** (digits - zeros)) * 10**zeros if original else 0

    def _printable(self, value: Number, original: Number) -> bool:
        digits = min(7, len(str(int(original))) + self.growth)
        if value < 0 or value >= 10**digits:
            return False
        return isinstance(value, int) or 1000 % value.denominator == 0
