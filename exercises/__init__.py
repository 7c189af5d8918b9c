"""The notebooks' exercises, one file for each notebook: stubs, checks and solutions in one place.

Each file runs from top to bottom, and then is the solution. `python -m exercises` writes the
notebooks' last sections from them; the format is described in `exercises/build.py`.
"""
