"""The chain: one port, and an adapter for each chain that can stand behind it."""
