"""The batch that is made ahead: the one that is asked for next, in whole steps and in parts."""

import threading

import pytest

from palimpsa.tasks.token_batches import Prefetch


@pytest.mark.parametrize("parts", [[(0, 1)], [(0, 2), (1, 2)], [(3, 8), (4, 8), (5, 8)]], ids=len)
def test_nothing_is_made_twice_once_a_step_has_said_its_parts(parts):
    made, in_thread = [], []

    def make(*key):
        made.append(key)
        in_thread.append(threading.current_thread().name.startswith("batches"))
        return key

    prefetch = Prefetch(make)
    asked = [(step, *part) for step in range(5, 12) for part in parts]
    assert [prefetch.take(*key) for key in asked] == asked
    prefetch.close()
    # In the first step it is not known yet how many parts there are.
    assert len(made) <= len(asked) + len(parts)
    later = [key for key in made if key[0] > 6]
    assert len(later) == len(set(later))
    assert all(ahead for key, ahead in zip(made, in_thread, strict=True) if key[0] > 6)
