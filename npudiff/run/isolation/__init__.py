"""Judging cases in a process that may die of them: what died, hung or was poisoned is a finding like any other.

``scouting`` has jobs run by a ``scout``, which does so in itself, and once more by ``judge`` where that is not to be
believed: each case in a ``worker``, to find out whose fault it was. ``process`` is how a parent sees either, and
``guardian`` ends what is left. ``journal`` says what was begun before it is begun, ``wire`` is what goes between (text,
and tensors in shared memory), and ``faults`` tells errors apart.
"""
