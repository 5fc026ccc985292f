"""What people look at: one view of a run, from the chain and the buckets alone, and the screens that show it."""
