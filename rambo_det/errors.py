"""The one exception that stands for a user's mistake."""


class InputError(ValueError):
    """A configuration, a file or data that cannot be used as given.

    The message is one line that names the key, file or class and says what would be right. Command
    line tools print it as ``error: <message>`` and exit with status 2; any other exception is a bug
    and keeps its traceback.
    """
