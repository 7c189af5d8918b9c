"""Widgets and their views, live curves, checks of exercises."""
