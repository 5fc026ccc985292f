"""`windrow doctor`: whether a node could take part in a run, from this machine and with these settings."""
