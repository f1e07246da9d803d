"""What the algorithms are: plain torch, no cluster and no storage."""
