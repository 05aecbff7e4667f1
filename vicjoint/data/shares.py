"""Whose turn a step is, in a run of several pairs: known from the step alone.

shares = Shares([3, 1])
[shares.turn(step) for step in range(5)]   # (0, 0) (0, 1) (0, 2) (1, 0) (0, 3): (pair, its batch)
shares.count(0, 5)                         # 4
"""

from collections.abc import Sequence
from fractions import Fraction


class Shares:
    """Pairs by weights, each with its share of every stretch of steps, to a step or two. The first pair takes
    the steps where ceil(step w) goes up by one, w its share; what is left is shared among the others in the
    same way. With equal weights step s of P pairs is that of pair s % P."""

    def __init__(self, weights: Sequence[Fraction | float]):
        exact = [Fraction(weight) for weight in weights]
        self.of = [weight / sum(exact) for weight in exact]
        # of each pair, its share of what the ones before it leave
        self._of_rest = [(weight / sum(exact[i:])).as_integer_ratio() for i, weight in enumerate(exact)]

    def turn(self, step: int) -> tuple[int, int]:
        """(the pair that a step trains, the number of its batch), all from 0."""
        rest = step
        for number, (above, below) in enumerate(self._of_rest):
            before, after = (-(-at * above // below) for at in (rest, rest + 1))
            if after > before:
                return number, before
            rest -= before
        raise AssertionError("the last pair takes what is left")

    def count(self, number: int, steps: int) -> int:
        """How many of the first `steps` steps are those of a pair."""
        rest = steps
        for above, below in self._of_rest[:number]:
            rest -= -(-rest * above // below)
        above, below = self._of_rest[number]
        return -(-rest * above // below)
