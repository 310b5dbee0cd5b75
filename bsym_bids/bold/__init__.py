"""From BOLD to windows for the model."""
