"""From raw videos to a data set, stage by stage."""
