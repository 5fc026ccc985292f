"""The arithmetic of SparseLoCo, one module per kind of device; `reference` is the definition."""
