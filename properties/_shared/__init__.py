"""What several components draw, lay out, compare or leave out alike; each module is one such subject."""
