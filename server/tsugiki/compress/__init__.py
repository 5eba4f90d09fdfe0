"""From a fine-tuned checkpoint to a variant file, and back."""
