"""The score: how many planted bugs npudiff finds, and how many other ways of testing find."""
