"""A storm: faults drawn at random, by a seed, over one run."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from submitrain.train.faults import FaultKind, Moment
from tests.faults.rows import Course, Expected, Inside, Outside, Row
from tests.faults.site import CHECKPOINT_EVERY, VALIDATE_EVERY
from tests.faults.table import HANG_BUDGETS, HUNG, WHO, died

HANGING = (FaultKind.HANG, FaultKind.STOP, FaultKind.HANG_GIL)
DEADLY = (FaultKind.KILL, FaultKind.SEGV, FaultKind.ABORT)
PLACES = {
    Moment.STEP: 1,
    Moment.ACCUMULATION: 1,
    Moment.OPTIMIZER: 1,
    Moment.SAVE: CHECKPOINT_EVERY,
    Moment.PUBLISH: CHECKPOINT_EVERY,
    Moment.LATEST: CHECKPOINT_EVERY,
    Moment.VALIDATE: VALIDATE_EVERY,
}
"""Where a rank may be struck, and in every how many steps that comes."""
ONLY_RANK_0 = (Moment.PUBLISH, Moment.LATEST)
BEGINNINGS = (Moment.START, Moment.RENDEZVOUS, Moment.BUILD, Moment.FIRST_STEP)
FROM_OUTSIDE = {
    "preempt": Expected("preempted", "leave", loses="nothing"),
    "requeue": Expected("requeued", "leave", loses="nothing"),
    "scancel": Expected("cancelled", "stop", loses="nothing"),
    "kill_supervisor": Expected("lost", "leave"),
    "lose_first_node": Expected("lost", "leave"),
    "lose_last_node": Expected("node_lost", None, ("{node}",)),
}
"""Graceful ends lose nothing, hard ones at most one interval."""
CONFIG = {**HANG_BUDGETS, "slurm": {"spare_nodes": 1}}
MARGIN = 6


def storm(count: int, seed: int) -> Course:
    """``count`` faults, inside ranks and from outside; the run is as long as they need."""
    chance = random.Random(seed)
    acts, hangs = _deck(chance, FROM_OUTSIDE), _deck(chance, HANGING)
    rows: list[Row] = []
    step = 0
    while len(rows) < count:
        number = len(rows) + 1
        lot = chance.random()
        if lot < 0.2 and rows and not _begins(rows[-1]):
            rows.append(_at_beginning(chance, number))
            continue
        step += chance.randint(2, 6)
        if lot < 0.5:
            rows.append(_from_outside(next(acts), number, step))
        elif lot < 0.65:
            rows.append(_hang(chance, next(hangs), number, step))
        else:
            row, step = _death(chance, number, step)
            rows.append(row)
    return Course(f"storm-{seed}", "bare", tuple(rows), config=CONFIG, steps=step + MARGIN)


def _begins(row: Row) -> bool:
    return isinstance(row.fault, Inside) and row.fault.pinned


def _at_beginning(chance: random.Random, number: int) -> Row:
    moment, kind = chance.choice(BEGINNINGS), chance.choice(DEADLY)
    fault = Inside(moment, kind, chance.randrange(2))
    return Row(_name(number, kind, moment), fault, died())


def _deck(chance: random.Random, words: Iterable[str]) -> Iterator[str]:
    """All words in random order, then again: no kind is left out for long."""
    while True:
        cards = sorted(words)
        chance.shuffle(cards)
        yield from cards


def _from_outside(act: str, number: int, step: int) -> Row:
    return Row(_name(number, act), Outside(act, step=step), FROM_OUTSIDE[act])


def _hang(chance: random.Random, word: str, number: int, step: int) -> Row:
    kind = FaultKind(word)
    moment = chance.choice((Moment.STEP, Moment.ACCUMULATION, Moment.OPTIMIZER))
    return Row(_name(number, kind, moment), Inside(moment, kind, chance.randrange(2), step), HUNG)


def _death(chance: random.Random, number: int, step: int) -> tuple[Row, int]:
    """A rank dies not before ``step``; also the step at which that will be."""
    moment, kind = chance.choice(list(PLACES)), chance.choice(DEADLY)
    rank = 0 if moment in ONLY_RANK_0 else chance.randrange(2)
    step = -(-step // PLACES[moment]) * PLACES[moment]
    expected = Expected("rank_died", "restart", (WHO,))
    return Row(_name(number, kind, moment), Inside(moment, kind, rank, step), expected), step


def _name(number: int, *words: str) -> str:
    return "-".join([f"{number:02d}", *words]).replace("_", "-")
