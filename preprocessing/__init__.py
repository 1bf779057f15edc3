"""From raw material to a training set: procedural heads, packing, checking."""
