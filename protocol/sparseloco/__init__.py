"""SparseLoCo (protocol §8, §9, §13): chunked top-k with error feedback, fixed-size records, exact aggregation."""
