"""Model folders: what a checkpoint holds, held against what it says it is."""
