"""What is taken where nobody says otherwise, for the commands, the evaluation and the docs.

Nothing is imported here, so that the command line can show these before torch is loaded.
"""

AUTO = "auto"
"""As a method: the most accurate one for the model and the budget, see `vlmcompress.auto`."""

METHOD = "divprune"
BUDGET = "25%"
"""Of the visual tokens of each image, mean over decoder layers."""

MODEL = "tiny-llava"
VIDEO_MODEL = "tiny-qwen"
"""Where there is a video."""

ANSWER_TOKENS = 64
"""Of the longest answer to a question."""

DEMO_HOST, DEMO_PORT = "127.0.0.1", 7860
"""Where `vlmcompress demo` serves its page: this machine only."""

EVAL_BUDGETS = "50%,25%,12.5%"
"""Of `vlmcompress eval`, which shows how accuracy falls with the budget, and of `tune`."""
EVAL_LIMIT = 500
"""Questions of each task that draws them."""
EVAL_BATCH = 32
"""Questions at once."""

PROFILE_WORDS = 40
"""Of the prompt beside an image, where weights are random."""

CALIBRATE_TOLERANCE = 0.02
"""Share of the questions whose next token may change."""

TUNE_SAMPLES = 320
"""Questions that methods race on: from fewer the choice loses points by chance."""
TUNE_BATCH = 16
TUNE_TOKENS = 32
"""Questions at once, and tokens of the longest answer."""
