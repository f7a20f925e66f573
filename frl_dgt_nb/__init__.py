"""FRL-DGT: micro-expression recognition from an onset-apex pair of frames."""
