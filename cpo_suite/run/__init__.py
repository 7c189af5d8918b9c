"""Running notebooks, and what surrounds a run: doctor, estimates, record, command line."""
