"""Image classification: models, data, steps and scores; what a run of it does."""
