"""A run from start to end: what it does in which order, and what it leaves."""
