"""One pass per file, each a pure `Variant -> Variant` function of the file's name; `pipeline` holds their order."""
