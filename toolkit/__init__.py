"""Explore, learn and run the research on training and tuning large models, from Jupyter."""

__version__ = "0.1.0"
