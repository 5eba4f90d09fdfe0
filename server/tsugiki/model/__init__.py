"""The base model: weights, one decoder forward, and where variants meet activations."""
