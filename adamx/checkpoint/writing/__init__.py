"""Writers of files, and their atomic replacement."""
