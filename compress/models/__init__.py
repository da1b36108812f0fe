"""Model families, noise levels, and the folders they are read from; `source.resolve` is the way in."""
