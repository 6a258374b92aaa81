"""Errors a user can meet. Each says in one line what was given and what is allowed."""


class VLMCompressError(ValueError):
    """Base of every error that `vlmcompress` raises on purpose."""


class UnknownNameError(VLMCompressError):
    """A method, option, family or built-in model that nobody registered."""


class PlugInError(VLMCompressError):
    """A method, family or task of another installed package that cannot be used."""


class BudgetError(VLMCompressError):
    """A budget that is malformed, out of range, or that the method cannot meet."""


class CompositionError(VLMCompressError):
    """Methods that cannot be combined."""


class UnsupportedModelError(VLMCompressError):
    """A model, or a version of transformers, that the engine has no seams for."""


class UnsupportedCallError(VLMCompressError):
    """A way of calling the model that cannot work on a shortened sequence."""


class MediaError(VLMCompressError):
    """An image or video that cannot be read, or that exceeds a limit."""


class UntestedModelWarning(UserWarning):
    """A model of a type that works by its structure, on which no test has run."""
