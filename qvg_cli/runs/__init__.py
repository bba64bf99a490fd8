"""What an unfinished run keeps on disk, so that it can go on from its last whole chunk."""
