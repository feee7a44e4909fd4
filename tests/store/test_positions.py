import random

from watchman.store.positions import Positions


def test_positions_are_as_a_set_whatever_is_done() -> None:
    chance = random.Random(7)
    positions, plain = Positions(), set[int]()
    for step in range(20_000):
        position = step if chance.random() < 0.5 else chance.randrange(step + 1)
        if chance.random() < 0.6:
            positions.add(position)
            plain.add(position)
        else:
            positions.discard(position)
            plain.discard(position)
        assert len(positions) == len(plain)
    assert list(positions) == sorted(plain)
