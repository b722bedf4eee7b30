"""What ends a job: above all the exception that means "your input is wrong", whose text is all that a person sees."""


class InputError(ValueError):
    """Bad input: one line that names the file, row, key or name, and the mend. Jobs print it and exit with code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # one line, whatever was interpolated


class DivergedError(InputError):
    """The loss is no number any more: the same settings would come to the same end."""


class Abandoned(KeyboardInterrupt):
    """Interrupted while threads ask Ray, whose library ends a process that asks after its end.

    So nobody ends Ray: this process ends at once, and Ray's own processes with it.
    """
