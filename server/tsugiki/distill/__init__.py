"""Distillation: what a teacher expects is the loss; one training loop for all students."""
