"""What lies on disk: how files are named, written and read. Who made what is there already is not known."""
