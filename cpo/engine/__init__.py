"""Speed without changing values: vocabulary head, shared prefixes, processes, precision."""
