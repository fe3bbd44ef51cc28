"""Training objectives: each turns packed tokens into rows with targets."""
