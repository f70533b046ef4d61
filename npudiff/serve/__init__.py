"""A judge that stays warm: torch and every component are imported once, and each candidate costs a fork.

Candidates are text that somebody else, or a program, has written. Each runs in a process that gets inputs and gives
outputs (``npudiff.run.untrusted``), and each is judged in a process of its own, with seeds that nobody knows before.

``requests`` says what can be asked, ``verdict`` judges one candidate, ``bench`` has processes waiting for it, ``lines``
answers on standard output, and ``http`` on a socket.
"""
