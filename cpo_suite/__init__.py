"""From a profile to the tables and figures of the paper."""
