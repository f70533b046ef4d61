"""Judging cases in a process that may die of them: what died, hung or was poisoned is a finding like any other.

``journal`` says what was begun before it is begun, ``process`` is the worker and its clock, ``wire`` what goes between
(text, and tensors in shared memory), ``faults`` tells errors apart, and ``judge`` finds out whose fault it was.
"""
