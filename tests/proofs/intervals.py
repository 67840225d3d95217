"""Intervals of figures that are made from documents, and what a bound is worth beside them.

95 %, by bootstrap over documents: 2,000 draws of as many documents as there are, fixed seed. Of fewer than two there is
none. Of few documents (nine, say) such an interval is a little too narrow.
"""
import functools
import random

DRAWS = 2000


def sums(documents):
    """The columns' sums of rows of numbers."""
    return [sum(column) for column in zip(*documents)]


@functools.cache
def draws_of(n):
    """The draws of n documents: numbers of documents."""
    draw = random.Random(1)
    return [draw.choices(range(n), k=n) for _ in range(DRAWS)]


def bootstrap(documents, figures):
    """[(low, high)] of each figure of figures(documents), a tuple; None: one document."""
    if len(documents) < 2:
        return None
    drawn = [figures([documents[i] for i in draw]) for draw in draws_of(len(documents))]
    return [(values[DRAWS // 40], values[DRAWS - 1 - DRAWS // 40]) for values in map(sorted, zip(*drawn))]


def verdict(value, interval, limit, is_least):
    """Whether a figure keeps to a limit that it may not fall below (is_least) or exceed. The figure decides; where its
    interval reaches past the limit this is said."""
    is_met = value >= limit if is_least else value <= limit
    straddles = interval is not None and interval[0] < limit < interval[1]
    if straddles:
        return "met, but the interval straddles it" if is_met else "DOES NOT HOLD, and the interval straddles it"
    return "holds" if is_met else "DOES NOT HOLD"


def unexpected(outcomes, missed):
    """1 and a sentence for each bound whose verdict is another than the documentation says: `missed` names those that do
    not hold. Otherwise 0."""
    failed = {name for name, outcome in outcomes.items() if outcome.startswith("DOES NOT HOLD")}
    for name in sorted(failed.symmetric_difference(missed)):
        print(f"bound '{name}': {outcomes.get(name, 'is not there')}, and MISSED says otherwise")
    return int(failed != set(missed))
