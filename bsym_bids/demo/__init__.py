"""A small BIDS dataset with known answers, and the run that recovers them."""
