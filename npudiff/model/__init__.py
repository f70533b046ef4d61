"""The words of npudiff: components, implementations, targets, cases within constraints, jobs and their outcomes."""
