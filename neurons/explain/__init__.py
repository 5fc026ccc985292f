"""Why a peer got its score in a window: what happened, what it was worth, and what would have changed it."""
