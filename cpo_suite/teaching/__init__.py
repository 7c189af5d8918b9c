"""What the notebooks let a reader move or watch, and the checks of their exercises."""
