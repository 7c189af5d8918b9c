"""Interactive parts of the notebooks, and the checks of their exercises."""
