"""Measuring a classifier on labelled conversations: `run` decides them, `metrics` counts, `report` prints."""
