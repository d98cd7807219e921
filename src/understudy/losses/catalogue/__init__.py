"""The rows of the table of losses, a file for each family."""
