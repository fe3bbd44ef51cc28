"""Publishing a model directory: write its card, verify it, push it to the Hub."""
