"""Training the network: simulated participants, a start from connectivity, objectives, the loop."""
