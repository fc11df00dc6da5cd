"""The errors and warnings of minibert.

Each message says the rule, the expected value, the received value and the remedy. All errors about a model repo have
the base class :class:`ModelFileError`, so one ``except`` catches them all.
"""

import sys
import warnings


class MinibertError(Exception):
    """Base class of the errors that minibert raises, except TypeError and ValueError."""


class ModelFileError(MinibertError, ValueError):
    """A file of a model repo cannot be used; the message names the file and the remedy."""


class ConfigError(ModelFileError):
    """A configuration file is malformed, or it needs something that minibert does not implement."""


class WeightsError(ModelFileError):
    """A weights file is malformed or unsafe, or its tensors do not match the config."""


class TokenizerError(ModelFileError):
    """The tokenizer files are missing or malformed, or they do not match the model."""


class UnsupportedModuleError(ModelFileError, NotImplementedError):
    """``modules.json`` names a module that minibert does not implement."""


class HubError(MinibertError, OSError):
    """A repo could not be fetched from the hub, or is not in the local cache."""


class IndexFileError(MinibertError, ValueError):
    """The file of a search index cannot be used; the message names the file and the remedy."""


class JobError(MinibertError, ValueError):
    """A job over files cannot begin, continue or be verified; the message names the file and the remedy."""


class DeviceError(MinibertError, RuntimeError):
    """The requested device cannot be used; the message says what to install."""


class TruncationError(MinibertError, ValueError):
    """A text is longer than ``max_seq_length``, and ``on_truncate`` is ``"error"``."""


class VectorError(MinibertError, ValueError):
    """A vector has NaN or infinity; the message names the text and the remedy."""


class TruncationWarning(UserWarning):
    """Some texts were truncated to ``max_seq_length`` tokens. Their vectors cover only the tokens that remain."""


def warn_caller(message: str, category: type[Warning]) -> None:
    """Show a warning at the line that called minibert, at any depth of calls inside minibert.

    Python shows a warning once per line. At a line of minibert, it would appear only once per process.
    """
    level, frame = 1, sys._getframe()  # noqa: SLF001
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "minibert":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
