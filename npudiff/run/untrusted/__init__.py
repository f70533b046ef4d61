"""Judging what may deceive: the candidate has a process of its own, which knows neither reference nor judge.

The candidate's process gets inputs and gives outputs. It was never part of the judge's: a fresh interpreter, the
``nursery``, forks it and imports the candidate's file there. Of ``npudiff.reference`` it has the contracts only, the
classes of inputs, and of what judges nothing at all. What comes back is data, which the judge's side reads as such.
"""
