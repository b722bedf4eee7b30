"""The one exception that means "your input is wrong": its text is the whole message a person sees."""


class InputError(ValueError):
    """Bad input: one line that names the file, row, key or name, and the mend. Jobs print it and exit with code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # one line, whatever was interpolated


class DivergedError(InputError):
    """The loss is no number any more: the same settings would come to the same end."""
