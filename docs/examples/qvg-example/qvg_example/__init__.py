"""A qvg plugin: the family `short-memory`, the codec `absmax`, and a YAML for each in `configs/`."""
