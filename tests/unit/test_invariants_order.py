"""The incremental check of order against comparing every pair."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from torpor.testing import invariants_order

#: Kind (append or read), place, beginning, duration.
ENTRIES = st.lists(
    st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 12), st.integers(0, 6)), max_size=12
)


@given(ENTRIES)
def test_order_says_what_all_pairs_say(entries: list[tuple[bool, int, int, int]]) -> None:
    """In whatever order they come, it is wrong exactly if two of them contradict each other."""
    order, placed, contradicted = invariants_order.Order(), [], False
    for number, (append, place, begun, lasts) in enumerate(entries, 1):
        add = order.append if append else order.read
        slot = 2 * place + (not append)
        contradicted |= add(place, begun, begun + lasts, number) is not None
        placed.append((slot, begun, begun + lasts))
    pairs = itertools.permutations(placed, 2)
    assert contradicted == any(
        before[0] < after[0] and before[1] > after[2] for before, after in pairs
    )


def test_contradicted_operation_is_named() -> None:
    """The operation on the other side is named, from whichever side the news comes."""
    order = invariants_order.Order()
    assert order.append(1, 5.0, 6.0, 11) is None
    assert order.append(2, 1.0, 2.0, 12) == 11
    order = invariants_order.Order()
    assert order.append(2, 1.0, 2.0, 12) is None
    assert order.append(1, 5.0, 6.0, 11) == 12
