"""One model type after the other, from a tiny checkpoint to a merged one."""
