"""Speed, never a value: the vocabulary head, shared prefixes, processes, precision."""
