"""What every peer must compute alike. Pure functions of their arguments, except the adapters in `chain/`."""
