"""What pretraining, fine-tuning and the commands share, each in one place: errors, files, readers, checkpoints."""
