"""Judges, chat models and their stored replies, metrics, statistics."""
