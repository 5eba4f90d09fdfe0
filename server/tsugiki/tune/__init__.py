"""Training in the compressed space: the bytes of a variant file stay, their values get better."""
