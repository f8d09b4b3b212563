"""The exception that reports a user's mistake, and one-line texts of other exceptions."""

INSTALL_DETECTRON2 = (
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
)


class InputError(ValueError):
    """A configuration, a file or data that cannot be used as given.

    The message is one line. It names the key, file or class and says what would be valid. Command
    line tools print ``error: <message>`` and exit with status 2. Any other exception is a bug and
    keeps its traceback.
    """


def one_line(error: BaseException) -> str:
    """Returns the text of an exception on one line."""
    return " ".join(str(error).split())
