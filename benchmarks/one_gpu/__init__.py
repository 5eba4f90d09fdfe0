"""How many fine-tunes of a large base one GPU serves, and at what price."""
