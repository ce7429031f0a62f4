"""What a model's files really are, and whether any of them acts when it is loaded. Nothing is run."""
