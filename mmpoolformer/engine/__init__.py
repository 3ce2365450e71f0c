"""Training and testing: what the launchers are made of."""
