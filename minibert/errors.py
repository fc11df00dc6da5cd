"""Everything minibert raises or warns with on purpose.

Each message states the rule, what was expected, what was received and the remedy. Errors about a
model repo share the base :class:`ModelFileError`, so one ``except`` covers any unusable repo.
"""

import sys
import warnings


class MinibertError(Exception):
    """Base class of every error that minibert raises on purpose, but for TypeError and ValueError."""


class ModelFileError(MinibertError, ValueError):
    """A file of a model repo cannot be used; the message names the file and the remedy."""


class ConfigError(ModelFileError):
    """A configuration file is malformed, or asks for something that minibert does not implement."""


class WeightsError(ModelFileError):
    """A weights file is malformed, unsafe, or does not hold the tensors that the config promises."""


class TokenizerError(ModelFileError):
    """The tokenizer files are missing, malformed, or do not fit the model."""


class UnsupportedModuleError(ModelFileError, NotImplementedError):
    """``modules.json`` names a module that minibert does not implement."""


class HubError(MinibertError, OSError):
    """A repo could not be fetched from the hub, or is not in the local cache."""


class IndexFileError(MinibertError, ValueError):
    """The file of a search index cannot be used; the message names the file and the remedy."""


class DeviceError(MinibertError, RuntimeError):
    """The requested device cannot be used; the message says what to install."""


class TruncationError(MinibertError, ValueError):
    """A text is longer than ``max_seq_length`` and ``on_truncate="error"`` was asked for."""


class VectorError(MinibertError, ValueError):
    """A vector has NaN or infinity; the message names the text and what to look at."""


class TruncationWarning(UserWarning):
    """Some texts were cut to ``max_seq_length`` tokens, so their vectors cover only their beginning."""


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn of the line that called minibert, however many of its own functions lie between.

    Python shows a warning once for each line: from a line of minibert's it would be shown once in all.
    """
    level, frame = 1, sys._getframe()  # noqa: SLF001
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "minibert":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
