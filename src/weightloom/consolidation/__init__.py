"""Published checkpoints of any architecture in few bits: codes, one prior, and what an output can bear."""
