"""Where bytes live: buckets, the names of objects in them, sealed shards, datasets and checkpoints."""
