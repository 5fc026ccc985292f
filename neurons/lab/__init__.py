"""The laboratory: attacks on a whole network in virtual time, and what they pay and break."""
