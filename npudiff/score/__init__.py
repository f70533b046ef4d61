"""How many bugs are found, by npudiff and by tests as they are usually written: the measurement that steers it."""
