"""Tasks: questions with answers, drawn or from files, described by the YAML files beside."""
