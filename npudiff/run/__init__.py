"""Running jobs: the plan, Hypothesis, processes beside each other, and processes that may die."""
