"""Drawing cases: choices that shrink, data from seeds, state machines, and cases derived from a case."""
