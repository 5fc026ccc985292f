"""What a miner and a validator do with the model: build it, measure its loss, train it for one window."""
