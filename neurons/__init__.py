"""The processes people start. The only place with event loops, clocks, files and screens."""
