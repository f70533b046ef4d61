"""What is kept of a failure: folders, evidence, replay, pictures as numbers, and scripts."""
