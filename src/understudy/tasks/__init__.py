"""What a kind of experiment is: its models, data, step and metric, built from a recipe."""
