"""Where do tensor trains with sparse entries pay? Forms of saten at equal honest bytes."""
