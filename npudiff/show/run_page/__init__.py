"""What a run leaves behind, and one page of it: records, how they are read back, and what is shown."""
