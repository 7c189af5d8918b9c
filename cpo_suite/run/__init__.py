"""The runner of notebooks, with its doctor, dry run, run record and command line."""
