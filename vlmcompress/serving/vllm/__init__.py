"""The plug-in itself. Only vLLM imports these modules; nothing else of `vlmcompress` needs it."""
