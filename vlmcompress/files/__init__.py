"""Files written whole or not at all, and texts of strangers read within limits."""

from vlmcompress.files.whole import at_home, cache_folder, check_output, whole_file, write_json

__all__ = ["at_home", "cache_folder", "check_output", "whole_file", "write_json"]
