"""What one case says: comparison by bound, the properties that all share, and where and how outputs are wrong."""
