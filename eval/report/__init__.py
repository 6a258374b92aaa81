"""An evaluation written for people: markdown, HTML, tables, plots, examples."""
