"""Isolation: cases run in processes that may die of them, and a crash, a hang or a poisoned device is a finding.

``supervisor`` runs whole jobs in a ``batch_worker``. Where that worker dies, hangs or reports a failure that does not
repeat, the supervisor runs the job again with ``judge``, which runs each case in a ``worker`` and finds the one at
fault. ``process`` is a forked process as its parent sees it, and ``reaper`` kills what is left over. ``journal``
records each case before it runs, ``ipc`` is the format of messages, and ``faults`` classifies errors.
"""
